"""One interface to any masked language model: it encodes text and scores masked positions.

- A model of one of our families (a run, a checkpoint, an export, a directory) runs in our own network; any other runs
  in transformers' AutoModelForMaskedLM.
- Logits are computed only at the masked positions. For a document of 8,192 tokens and a vocabulary of 50,000 words, all
  logits would take 1.6 GB. In transformers' models a hook on the encoder selects the hidden states before the head;
  this works for any head that treats positions independently.
- Special tokens that occur in a text are encoded as text, as in preparation.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import ModelOutput

from rotary_foundry.data.fast_tokenizer import open_fast
from rotary_foundry.data.rows import Frame, fingerprint
from rotary_foundry.data.same_tokenizer import check_ids, check_same_tokenizer
from rotary_foundry.data.special_tokens import as_text
from rotary_foundry.evaluation.results import positions_variant
from rotary_foundry.interop import load_model
from rotary_foundry.interop.positions import most_tokens
from rotary_foundry.models.config_json import CONFIG, find_family_of
from rotary_foundry.models.in_transformers import NO_MASK, check_runs, differ, load_theirs
from rotary_foundry.objectives.masked_lm import Masking
from rotary_foundry.runs.trained_state import read_source
from rotary_foundry.utils.errors import ConfigurationError, DataError

BATCH_TOKENS = 8192  # of the documents in a batch; a longer document is its own batch


class Masked(NamedTuple):
    """A document, or a part of one, with some tokens masked for prediction."""

    input_ids: NDArray[np.int64]  # [tokens], with [CLS] and [SEP]
    places: NDArray[np.int64]  # [targets]
    labels: NDArray[np.int64]  # [targets]

    def tobytes(self) -> bytes:
        """Return the question as bytes, for a digest."""
        return b"".join(array.tobytes() for array in self)


class Scores(NamedTuple):
    """A model's scores at the targets of a document."""

    loss: NDArray[np.float64]  # [targets], nats
    found: NDArray[np.bool_]  # [targets], whether the likeliest word is right


class Encoded(NamedTuple):
    """A text as ids."""

    ids: NDArray[np.int64]  # [tokens], without special tokens
    ends: NDArray[np.int64]  # [tokens], the byte offset of each token's end in the text
    spans: NDArray[np.int64]  # [tokens, 2], each token's first character in the text, and the one after its last

    @property
    def bytes(self) -> NDArray[np.int64]:
        """The number of bytes of each token, including blanks before it, so that they add up to the whole text."""
        return np.diff(self.ends, prepend=0)


def encode(tokenizer: Tokenizer, text: str) -> Encoded:
    """Encode a text, without special tokens around it."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    bytes_before = np.concatenate([[0], np.cumsum(sizes)])
    ends = np.maximum.accumulate(bytes_before[offsets[:, 1]])
    return Encoded(np.array(encoding.ids, np.int64), ends, offsets)


class MaskedModel(ABC):
    """A model and its tokenizer.

    Args:
        path: the location of the model, for errors.
        tokenizer: the model's tokenizer.
        vocab_size: number of ids with an embedding.
        limit: the most tokens that the model takes at once, special tokens included; None if there is no limit.
        facts: further facts about the model, for the result.

    Raises:
        DataError: the tokenizer does not belong to the model.
    """

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerFast, vocab_size: int, limit: int | None, facts: dict):
        self.path, self.tokenizer, self.vocab_size, self.limit, self.facts = path, tokenizer, vocab_size, limit, facts
        if tokenizer.mask_token_id is None:
            raise DataError(f"{tokenizer.name_or_path}: the tokenizer has no mask token, which evaluation needs")
        check_ids(tokenizer, path, vocab_size)
        self.backend = as_text(tokenizer.backend_tokenizer, tokenizer.all_special_tokens)
        self.frame = Frame.of(self.backend)

    def longest(self, wanted: int) -> int:
        """Return the most content tokens of a document that fits into `wanted` tokens and into the model.

        Raises:
            ConfigurationError: `wanted` leaves no room for a content token.
        """
        if wanted <= self.frame.slots:
            raise ConfigurationError(
                f"longest: expected more than the {self.frame.slots} special tokens around a text, got {wanted}"
            )
        return min(wanted, wanted if self.limit is None else self.limit) - self.frame.slots

    def encode(self, text: str) -> Encoded:
        """Encode a text."""
        return encode(self.backend, text)

    def masking(self, probability: float, mask_share: float, random_share: float) -> Masking:
        """Return a masking that never masks special tokens."""
        special = tuple(sorted(set(self.tokenizer.all_special_ids)))
        return Masking(
            probability, mask_share, random_share, self.tokenizer.mask_token_id, special, len(self.tokenizer)
        )

    def framed(self, ids: NDArray[np.int64], places: NDArray[np.int64], labels: NDArray[np.int64]) -> Masked:
        """Add the special tokens around content ids, and shift the places accordingly."""
        framed = np.concatenate([self.frame.before, ids, self.frame.after]).astype(np.int64)
        return Masked(framed, places + len(self.frame.before), labels)

    @torch.inference_mode()
    def score(self, documents: Sequence[Masked]) -> list[Scores]:
        """Score the targets of each document, in the documents' order.

        Raises:
            DataError: a loss is NaN.
        """
        scores: list[Scores | None] = [None] * len(documents)
        for batch in _batches([len(document.input_ids) for document in documents]):
            chosen = [documents[index] for index in batch]
            targets = [len(document.places) for document in chosen]
            logits = self.logits(chosen) if sum(targets) else torch.zeros(0, self.vocab_size)
            labels = torch.from_numpy(np.concatenate([document.labels for document in chosen])).to(logits.device)
            loss = F.cross_entropy(logits.float(), labels, reduction="none").double().cpu().numpy()
            found = (logits.argmax(dim=1) == labels).cpu().numpy() if len(labels) else np.zeros(0, bool)
            if not np.isfinite(loss).all():
                raise DataError(
                    f"{self.path}: the loss is not a number, so nothing can be measured; its weights are damaged"
                )
            ends = np.cumsum(targets)[:-1]
            for index, *score in zip(batch, np.split(loss, ends), np.split(found, ends), strict=True):
                scores[index] = Scores(*score)
        return scores

    @abstractmethod
    def logits(self, documents: Sequence[Masked]) -> Tensor:
        """Compute the logits at the targets of some documents, one document after another, [targets, vocabulary]."""


class Ours(MaskedModel):
    """A model of one of our families, run in our network."""

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerFast, network: nn.Module, facts: dict):
        super().__init__(path, tokenizer, network.shape.vocab_size, None, facts)
        self.network = network

    def logits(self, documents: Sequence[Masked]) -> Tensor:
        device = next(self.network.parameters()).device
        lengths = [len(document.input_ids) for document in documents]
        ends = np.cumsum([0, *lengths])
        ids = torch.from_numpy(np.concatenate([document.input_ids for document in documents])).to(device)
        cu_seqlens = torch.from_numpy(ends.astype(np.int32)).to(device)
        places = np.concatenate([one.places + start for one, start in zip(documents, ends, strict=False)])
        hidden = self.network.hidden_states(ids, cu_seqlens, max(lengths))
        return self.network.unembed(hidden[torch.from_numpy(places).to(device)])


class Theirs(MaskedModel):
    """Any other model, run in transformers.

    Raises:
        DataError: as for `MaskedModel` or `check_runs`.
    """

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerFast, model: nn.Module, facts: dict):
        embeddings = model.get_input_embeddings()
        super().__init__(path, tokenizer, embeddings.num_embeddings, most_tokens(model.config), facts)
        self.model = model
        self.padding = tokenizer.pad_token_id or 0
        self._at: tuple[Tensor, Tensor] | None = None  # rows and places of a batch's targets
        model.base_model.register_forward_hook(self._pick)
        short, long = (self.framed(np.zeros(size, np.int64), *np.zeros((2, 1), np.int64)) for size in (1, 9))
        with check_runs(path, model):
            if differ(self.logits([short])[0], self.logits([short, long])[0]):
                raise ValueError(NO_MASK)

    def _pick(self, _: nn.Module, __: tuple, output: ModelOutput | tuple) -> ModelOutput | tuple:
        """Select the encoder's hidden states at the targets, as one document: [1, targets, hidden]."""
        picked = output[0][self._at][None]
        if isinstance(output, tuple):
            return (picked, *output[1:])
        output.last_hidden_state = picked
        return output

    def logits(self, documents: Sequence[Masked]) -> Tensor:
        device = self.model.device
        longest = max(len(document.input_ids) for document in documents)
        ids = np.full((len(documents), longest), self.padding, np.int64)
        for row, document in enumerate(documents):
            ids[row, : len(document.input_ids)] = document.input_ids
        lengths = np.array([len(document.input_ids) for document in documents])
        rows = np.repeat(np.arange(len(documents)), [len(document.places) for document in documents])
        places = np.concatenate([document.places for document in documents])
        self._at = torch.from_numpy(rows).to(device), torch.from_numpy(places).to(device)
        attention_mask = torch.from_numpy((np.arange(longest) < lengths[:, None]).astype(np.int64)).to(device)
        return self.model(input_ids=torch.from_numpy(ids).to(device), attention_mask=attention_mask).logits[0]


def open_model(path: Path, tokenizer: str | None = None, rope_theta: float | None = None) -> MaskedModel:
    """Open a model for evaluation, on a GPU if there is one.

    Args:
        path: a run, a checkpoint, an export, or any Hugging Face directory of a masked language model.
        tokenizer: the folder of the model's tokenizer, if it is not in `path`.
        rope_theta: replaces the value of the model's training; only for our families with rotary positions.

    Raises:
        FoundryError: the model does not exist or has no masked-LM head, or the tokenizer does not belong to it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not path.exists():
        raise ConfigurationError(f"{path}: no such file or folder")
    if (path / CONFIG).is_file() and find_family_of(path) is None:
        if rope_theta is not None:
            raise ConfigurationError(
                f"rope_theta: cannot be changed for {path}, which is not a model of our families; leave it out"
            )
        return _open_theirs(path, tokenizer, device)
    source, network = read_source(path), load_model(path)
    facts = {"kind": source.family.name, "trained_length": source.longest_row}
    if rope_theta is not None:
        if "rope_theta" not in source.family.knobs:
            raise ConfigurationError(f"rope_theta: the family {source.family.name} has none; leave it out")
        if rope_theta != source.knobs["rope_theta"]:
            facts["variant"] = positions_variant(rope_theta)
            network.set_knob("rope_theta", rope_theta)
    facts |= {name: network.knobs[name] for name in source.knobs} | counted(network)
    opened = open_tokenizer(source.tokenizer, tokenizer)
    return Ours(path, opened, network.to(device), facts | {"tokenizer": told(opened)})


def _open_theirs(path: Path, tokenizer: str | None, device: str) -> Theirs:
    model = load_theirs(AutoModelForMaskedLM, path, "a masked language model", "a masked-LM head")
    opened = open_tokenizer(path, tokenizer)
    facts = {"kind": model.config.model_type, **counted(model), "tokenizer": told(opened)}
    return Theirs(path, opened, model.eval().to(device), facts)


def open_tokenizer(own: Path, given: str | None) -> PreTrainedTokenizerFast:
    """Open the tokenizer that the user gave, or else the model's own.

    Raises:
        DataError: it cannot be read, is not a fast one, or is another model's.
    """
    folder = own if given is None else Path(given)
    try:
        tokenizer = open_fast(folder)
    except DataError as error:
        raise DataError(f"{error}; name the model's tokenizer with tokenizer=FOLDER") from None
    check_same_tokenizer(folder, own, f"leave out tokenizer=…; the model's own is in {own}")
    return tokenizer


def told(tokenizer: PreTrainedTokenizerFast) -> str:
    """Identify a tokenizer; models with the same tokenizer have the same targets."""
    folder = Path(tokenizer.name_or_path)
    return fingerprint(folder) if (folder / "tokenizer.json").is_file() else f"{folder.name}, {len(tokenizer)} ids"


def counted(model: nn.Module) -> dict:
    """Return the number of parameters, as a fact for a result."""
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group documents of similar length, longest first, so that batches have little padding."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
