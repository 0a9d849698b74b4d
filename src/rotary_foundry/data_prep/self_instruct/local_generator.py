"""Use a Hugging Face causal model in a folder as generator: one request at a time, on a GPU if there is one.

This is the simple way, for small models. For many documents, serve the model with vLLM, which batches requests.
"""

import threading
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from rotary_foundry.data.fast_tokenizer import open_fast
from rotary_foundry.data_prep.conversations.plain_contents import PlainContents
from rotary_foundry.data_prep.self_instruct.instruct_prompts import NoReply
from rotary_foundry.data_prep.self_instruct.request_log import Reply
from rotary_foundry.models.in_transformers import load_theirs
from rotary_foundry.utils.errors import DataError


class LocalGenerator:
    """A causal model that answers the body of a chat completion.

    Raises:
        DataError: the folder has no causal model, tensors of it are missing, or its tokenizer has no chat template.
    """

    concurrency, repeated = 1, 0

    def __init__(self, folder: Path) -> None:
        self.tokenizer = open_fast(folder)
        if self.tokenizer.chat_template is None:
            raise DataError(
                f"{folder}: the tokenizer has no chat template; give a model that was tuned to instructions"
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = "auto" if device == "cuda" else torch.float32
        self.model = load_theirs(
            AutoModelForCausalLM, folder, "a causal model", "a decoder with its output", dtype=dtype
        )
        self.model.eval().to(device)
        self._contents = PlainContents(self.tokenizer.backend_tokenizer, self.tokenizer.all_special_tokens)
        self._lock = threading.Lock()

    @torch.inference_mode()
    def ask(self, body: dict) -> Reply:
        """Answer a request: `messages`, `max_tokens`, `temperature` and `seed` of its body.

        Special tokens that a message spells, as a document may, stay text.

        Raises:
            NoReply: prompt and reply do not fit in the model's context.
        """
        messages = self._contents.hide(body["messages"])
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([self._contents.encode(self._contents.named(text)).ids], device=self.model.device)
        prompt, most = ids.shape[1], body["max_tokens"]
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and prompt + most > limit:
            raise NoReply(f"more tokens than the generator's context, {limit}; lower chunk_tokens")
        sampling = (
            {"do_sample": True, "temperature": body["temperature"]} if body["temperature"] else {"do_sample": False}
        )
        with self._lock:
            torch.manual_seed(body["seed"])
            made = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, **sampling)
        written = made[0, prompt:]
        finish = "length" if len(written) == most else "stop"
        return Reply(self.tokenizer.decode(written, skip_special_tokens=True), finish, prompt, len(written))

    def close(self) -> None:
        """Do nothing: there is no request to give up."""
