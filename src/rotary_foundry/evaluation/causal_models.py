"""One interface to any decoder: the loss of each token of a row, and greedy continuations of a prompt.

- Every model runs in transformers. The weights of our own runs and checkpoints are put into transformers' class in
  memory. So runs, exports and downloads use the same code, and transformers' `generate` generates with its key/value
  cache. Our own network, which has no cache, computes the same logits; a test checks that.
- A row is computed in chunks with the cache, so only the logits of a chunk are in memory. A row of 16,384 tokens and a
  vocabulary of 49,152 words would have logits of 3.2 GB.
- The positions of a model of our families may be changed: theta, or the method and factor that lengthen the context.
- Prompts begin with the tokens that the tokenizer puts before a text. The tokens that it puts after one are left out.
"""

from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedTokenizerFast

from rotary_foundry.data.same_tokenizer import check_ids
from rotary_foundry.data.special_tokens import as_text
from rotary_foundry.data_prep.conversations.chat_template import ChatTemplate
from rotary_foundry.data_prep.conversations.plain_contents import PlainContents
from rotary_foundry.data_prep.readers.messages import Unusable
from rotary_foundry.evaluation.models import (
    Encoded,
    Scores,
    counted,
    encode,
    open_tokenizer,
    told,
)
from rotary_foundry.evaluation.results import positions_variant
from rotary_foundry.evaluation.suites import DecoderConfig
from rotary_foundry.interop import load_model
from rotary_foundry.interop.generation import STOPS, read_generation, stop_ids
from rotary_foundry.interop.positions import most_tokens
from rotary_foundry.models.config_json import CONFIG, find_family_of
from rotary_foundry.models.family import Shape
from rotary_foundry.models.in_transformers import check_runs, load_theirs
from rotary_foundry.runs.trained_state import Source, read_source
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.wording import one_line

CHUNK = 1024  # tokens of a row that are computed at once


class CausalModel:
    """A decoder in transformers and its tokenizer.

    Args:
        path: the location of the model, for errors.
        facts: further facts about the model, for the result.

    Raises:
        DataError: the tokenizer does not belong to the model.
    """

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerFast, model: nn.Module, facts: dict):
        self.path, self.tokenizer, self.model, self.facts = path, tokenizer, model, facts
        self.limit = _longest_row(model.config)
        check_ids(tokenizer, path, model.get_input_embeddings().num_embeddings)
        chat = tokenizer.backend_tokenizer
        chat.no_truncation()
        chat.no_padding()
        self.backend = as_text(chat, tokenizer.all_special_tokens)
        self.contents = PlainContents(chat, tokenizer.all_special_tokens)
        encoding = self.backend.encode("a")
        special = takewhile(lambda pair: pair[1], zip(encoding.ids, encoding.special_tokens_mask, strict=True))
        self.before = np.array([token for token, _ in special], np.int64)
        stop = model.generation_config.eos_token_id
        stop = tokenizer.eos_token_id if stop is None else stop
        stops = stop_ids(tokenizer, stop, read_generation(Path(tokenizer.name_or_path)).get(STOPS))
        model.generation_config = GenerationConfig(  # no other settings of the directory, such as sampling
            do_sample=False, eos_token_id=stops or None, pad_token_id=0
        )

    def encode(self, text: str) -> Encoded:
        """Encode a text, without the tokens before it."""
        return encode(self.backend, text)

    def row(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Put the tokenizer's tokens before the ids of a text."""
        return np.concatenate([self.before, ids])

    def chat(self, message: str) -> NDArray[np.int64]:
        """Return ids [tokens] of a user's message in the chat template, including what begins the answer.

        Special tokens in the message stay text, unlike in transformers' own pipeline.

        Raises:
            DataError: the template raises an error, or the tokenizer has none.
        """
        messages = self.contents.hide([{"role": "user", "content": message}])
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template may raise anything
            raise DataError(f"{self.path}: the chat template raises: {one_line(error)}; give chat=false") from None
        return np.array(self.contents.encode(self.contents.named(text)).ids, np.int64)

    def answered(self, message: str, answer: str) -> tuple[NDArray[np.int64], int]:
        """Return ids of a user's message and the answer in the chat template, and the number of the answer's tokens.

        The row ends with the answer's end of turn. The counted tokens are those that the objective `instruction`
        predicts.

        Raises:
            DataError: the template changes the answer.
        """
        template = ChatTemplate(self.tokenizer.get_chat_template(), self.tokenizer.special_tokens_map, str(self.path))
        turns = [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
        try:
            rendered = template.render(self.contents.hide(turns))
        except Unusable as error:
            raise DataError(f"{self.path}: {error}; give chat=false") from None
        ((start, end),) = rendered.turns
        encoding = self.contents.encode(self.contents.named(rendered.text[:end]))
        begins = len(self.contents.named(rendered.text[:start]))
        return np.array(encoding.ids, np.int64), sum(last > begins for _, last in encoding.offsets)

    def check_length(self, key: str, length: int) -> None:
        """Refuse rows that are longer than the model's table of positions.

        Raises:
            ConfigurationError: names the key and the most tokens.
        """
        if self.limit is not None and length > self.limit:
            raise ConfigurationError(
                f"{key}: {length:,} tokens, but {self.path} has a table of {self.limit:,} positions; give at most that"
            )

    def beyond(self, longest: int) -> list[str]:
        """Return a note if rows are longer than the model's training length."""
        trained = self.facts.get("trained_length")
        return [f"beyond {trained:,} tokens: longer than it was made for"] if trained and longest > trained else []

    @torch.inference_mode()
    def score(self, ids: NDArray[np.int64], last: int | None = None) -> Scores:
        """Score the tokens of a row, each given all before it.

        Args:
            ids: [tokens].
            last: the number of tokens at the end to score; None: all but the first, which has nothing before it.

        Raises:
            DataError: a loss is not a number.
        """
        row = torch.from_numpy(ids).to(self.model.device)
        inputs, labels = row[:-1], row[1:]
        first = 0 if last is None else len(labels) - last  # label
        cache, losses, found = None, [], []
        for start in range(0, len(inputs), CHUNK):
            end = min(start + CHUNK, len(inputs))
            scored = max(0, end - max(start, first))  # at the chunk's end
            output = self.model(
                input_ids=inputs[None, start:end],
                cache=cache,
                use_cache=len(inputs) > CHUNK,
                logits_to_keep=max(1, scored),
            )
            cache = output.cache
            if scored:
                logits = output.logits[0].float()
                losses.append(F.cross_entropy(logits, labels[end - scored : end], reduction="none").double().cpu())
                found.append((logits.argmax(dim=1) == labels[end - scored : end]).cpu())
        loss = torch.cat(losses).numpy()
        if not np.isfinite(loss).all():
            raise DataError(
                f"{self.path}: the loss is not a number, so nothing can be measured; its weights are damaged"
            )
        return Scores(loss, torch.cat(found).numpy())

    @torch.inference_mode()
    def generate(self, ids: NDArray[np.int64], tokens: int) -> str:
        """Continue a prompt, ids [tokens], greedily by at most `tokens` tokens."""
        prompt = torch.from_numpy(ids)[None].to(self.model.device)
        made = self.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens)
        return self.tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class _Positions:
    """A model of one of our families with the positions that the configuration asks for."""

    source: Source
    shape: Shape
    knobs: dict[str, float]
    variant: str | None  # None: as it was trained


def open_causal_model(path: Path, config: DecoderConfig) -> CausalModel:
    """Open a decoder for evaluation, on a GPU if there is one.

    Args:
        path: a run, a checkpoint, an export, or any Hugging Face directory of a causal language model.
        config: names a tokenizer, if it is not in `path`, and positions other than the model's own.

    Raises:
        FoundryError: the model does not exist or is not a decoder, its tokenizer does not belong to it, or its
            positions cannot be changed in this way.
    """
    transformers.utils.logging.set_verbosity_error()  # missing tensors are refused below, in one line
    transformers.utils.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    directory = (path / CONFIG).is_file()
    changed = {
        key: value
        for key in ("rope_theta", "rope_scaling", "rope_factor")
        if (value := getattr(config, key)) is not None
    }
    if changed and directory and find_family_of(path) is None:
        raise ConfigurationError(
            f"{next(iter(changed))}: cannot be changed for {path}, which is not a model of our families; leave it out"
        )
    positions = _positions(path, changed) if changed or not directory else None
    tokenizer = open_tokenizer(path if directory else positions.source.tokenizer, config.tokenizer)
    if directory:
        model = _from_directory(path, positions, tokenizer)
        trained_length = most_tokens(model.config)
    else:
        model = _from_checkpoint(path, positions, tokenizer)
        trained_length = positions.source.longest_row
    facts = {"kind": model.config.model_type, "trained_length": trained_length, **counted(model)}
    if positions is not None:
        facts |= positions.knobs | ({} if positions.variant is None else {"variant": positions.variant})
    opened = CausalModel(path, tokenizer, model.eval().to(device), facts | {"tokenizer": told(tokenizer)})
    with check_runs(path, model):
        opened.score(np.zeros(2, np.int64))
    return opened


def _positions(path: Path, changed: dict) -> _Positions:
    """Return a model's shape and knobs with some changed.

    Raises:
        ConfigurationError: the family has no such key, or the value does not fit; names the key.
    """
    source = read_source(path)
    shape, knobs = source.shape, dict(source.knobs)
    for key, value in changed.items():
        if key not in source.family.knobs and not hasattr(shape, key):
            raise ConfigurationError(f"{key}: the family {source.family.name} has none; leave it out")
        if key in knobs:
            if complaint := source.family.knobs[key].complaint(value):
                raise ConfigurationError(f"{key}: {complaint}")
            knobs[key] = float(value)
    if (method := changed.get("rope_scaling")) is not None:
        trained = shape.original_max_position_embeddings or source.longest_row
        original = trained if method == "yarn" else None
        # pyrefly: ignore[unexpected-keyword]: the check above has found these fields in the shape
        shape = replace(shape, rope_scaling=method, original_max_position_embeddings=original)
        knobs["rope_factor"] = float(changed.get("rope_factor", 1.0))
    for key, complaint in [*shape.problems(), *shape.knob_problems(knobs)]:
        raise ConfigurationError(f"{key}: {complaint}")
    same = (shape, knobs) == (source.shape, source.knobs)
    return _Positions(source, shape, knobs, None if same else positions_variant(**changed))


def _config(positions: _Positions, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    """Return transformers' configuration of one of our models."""
    longest = positions.source.longest_row
    form = positions.source.family.huggingface
    return form.write_config(positions.shape, positions.knobs, tokenizer, longest)


def _from_directory(path: Path, positions: _Positions | None, tokenizer: PreTrainedTokenizerFast) -> nn.Module:
    rope = None if positions is None else _config(positions, tokenizer).rope_parameters
    return load_theirs(AutoModelForCausalLM, path, "a causal language model", "a decoder with its output", rope)


def _from_checkpoint(path: Path, positions: _Positions, tokenizer: PreTrainedTokenizerFast) -> nn.Module:
    """Put the weights of a run or a checkpoint into transformers' class."""
    source = positions.source
    config = _config(positions, tokenizer)
    state = source.family.huggingface.stored_tensors(load_model(path).state_dict(), source.shape, source.knobs)
    kind = getattr(transformers, source.family.huggingface.architecture)
    return kind.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)


def _longest_row(config: PretrainedConfig) -> int | None:
    """Return the most tokens per row; None for rotary positions, which extend beyond the training length."""
    rotary = getattr(config, "rope_parameters", None) or hasattr(config, "rope_theta")
    return None if rotary else most_tokens(config)
