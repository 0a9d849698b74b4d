"""Open any model directory as a retriever for mteb.

A directory from sentence-transformers, or a plain encoder with averaged tokens, gives one vector per text. A directory
from PyLate gives one vector per token and is scored by MaxSim against every document of the corpus. mteb's own wrapper
for PyLate uses an index (PLAID), which is approximate and random. Instead, this module searches the corpus exhaustively
in chunks, by mteb's search for the late-interaction models of newer sentence-transformers. So only the model determines
the score.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.models.sentence_transformer_wrapper import MultiVectorSearchEncoderWrapper
from mteb.similarity_functions import max_sim
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from rotary_foundry.data.fast_tokenizer import special_tokens_as_text
from rotary_foundry.interop.positions import most_tokens
from rotary_foundry.interop.sentence_models import MODULES, load_sentence_model, modules_of
from rotary_foundry.models.in_transformers import check_runs
from rotary_foundry.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from pylate.models import ColBERT
    from torch import Tensor
    from torch.utils.data import DataLoader


MARKS = 1  # tokens that PyLate puts into a text, to mark it as a query or a document


@dataclass(frozen=True)
class Retriever:
    """A model in the form that mteb expects.

    Attributes:
        model: the argument for `mteb.evaluate`.
        library: the SentenceTransformer or ColBERT itself.
        kind: a description of how it makes vectors.
        query_length, document_length: the length in tokens at which texts are cut, special tokens included; None: no
            cut.
        marks: the number of special tokens that the tokenizer itself does not add.
    """

    model: Any
    library: SentenceTransformer
    kind: str
    query_length: int | None
    document_length: int | None
    marks: int = 0


def open_retriever(path: Path, max_seq_len: int | None) -> Retriever:
    """Open a model directory, a run or a checkpoint.

    Args:
        max_seq_len: the length at which documents, and queries of single-vector models, are cut; None: the model's.

    Raises:
        DataError: `path` has no model.
        ConfigurationError: the model takes fewer tokens than max_seq_len.
    """
    if is_multi_vector(path):
        return _multi_vector(path, max_seq_len)
    plain = not (path / MODULES).is_file()
    model = _single_vector(path)
    if max_seq_len is not None:
        _check_length(max_seq_len, model)
    model.max_seq_length = max_seq_len or _longest_text(model)
    kind = "one vector per text" + (
        ", the mean of its tokens: a plain encoder, not trained for retrieval" if plain else ""
    )
    return Retriever(model, model, kind, model.max_seq_length, model.max_seq_length)


def is_multi_vector(path: Path) -> bool:
    """Return whether PyLate saved a directory, according to its modules."""
    return any(module.startswith("pylate.") for module, _ in modules_of(path))


def _single_vector(path: Path) -> SentenceTransformer:
    if (path / "config.json").is_file() or (path / MODULES).is_file():
        return _load(path, SentenceTransformer)
    from rotary_foundry.interop.export import export_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        export_checkpoint(path, Path(folder, "export"))
        return _load(Path(folder, "export"), SentenceTransformer)


def _multi_vector(path: Path, max_seq_len: int | None) -> Retriever:
    from pylate.models import ColBERT

    model = _load(path, ColBERT)
    if max_seq_len is not None:
        _check_length(max_seq_len, model)
        model.document_length = max_seq_len
    kind = "one vector per token, MaxSim over all documents"
    return Retriever(LateInteraction(model), model, kind, model.query_length, model.document_length, marks=MARKS)


def _load(path: Path, kind: type[SentenceTransformer]) -> SentenceTransformer:
    """Load a directory as a SentenceTransformer or ColBERT; special tokens that a text spells stay text.

    Raises:
        FoundryError: as `load_sentence_model`.
    """
    model = load_sentence_model(path, kind)
    special_tokens_as_text(model.tokenizer)
    with check_runs(path, model[0].auto_model):
        model.encode(["a", "a b"], show_progress_bar=False)
    return model


def _longest_text(model: SentenceTransformer) -> int | None:
    """Return the most tokens per text that a retriever takes, special ones included; None if there is no limit.

    PyLate sets ColBERT's `max_seq_length` for the current texts and saves that, so it is not a limit of the model.
    """
    saved = None if hasattr(model, "document_length") else model.max_seq_length
    limits = (saved, most_tokens(model[0].auto_model.config))
    return min((limit for limit in limits if limit is not None and limit > 0), default=None)  # XLNet's is -1


def _check_length(length: int, model: SentenceTransformer) -> None:
    most = _longest_text(model)
    if most is not None and length > most:
        raise ConfigurationError(f"max_seq_len: this model takes texts of {most} tokens at most, not {length}")


class LateInteraction(MultiVectorSearchEncoderWrapper):
    """PyLate's ColBERT for mteb's exhaustive search."""

    corpus_chunk_size = 2000  # documents whose vectors are in memory at a time

    def __init__(self, model: "ColBERT"):
        self.model = model
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={"model_type": ["late-interaction"], "similarity_fn_name": ScoringFunction.MAX_SIM}
        )

    def similarity(self, queries: "list[Tensor]", documents: "list[Tensor]") -> "Tensor":
        """Return MaxSim scores [queries, documents] for lists of [tokens, width] with vectors of length 1.

        max_sim pads documents with zeros, and 0 exceeds negative similarities. So 1 is added to all similarities first.
        """
        raised = max_sim([_with_one(query) for query in queries], [_with_one(document) for document in documents])
        return raised - raised.new_tensor([len(query) for query in queries])[:, None]

    def _encode(
        self, inputs: "DataLoader", *, prompt_type: PromptType | None = None, batch_size: int = 32, **_: Any
    ) -> "list[Tensor]":
        texts = [text for batch in inputs for text in batch["text"]]
        return self.model.encode(
            texts,
            batch_size=batch_size,
            is_query=prompt_type == PromptType.query,
            convert_to_tensor=True,
            show_progress_bar=False,
        )


def _with_one(vectors: "Tensor") -> "Tensor":
    """Append a component of 1 to each vector: [tokens, width] → [tokens, width + 1]."""
    return torch.nn.functional.pad(vectors, (0, 1), value=1.0)
