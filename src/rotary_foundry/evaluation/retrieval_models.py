"""Open any model directory as a retriever for mteb.

A directory from sentence-transformers, or a plain encoder with averaged tokens, gives one vector a text. A directory
from PyLate gives one vector a token and is scored by MaxSim against every document of the corpus. mteb's own wrapper
for PyLate uses an index (PLAID), which is approximate and random. This module searches the corpus exhaustively in
chunks instead, by mteb's search for the late-interaction models of newer sentence-transformers, so that only the model
determines the score.
"""

import logging
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
from transformers.utils import logging as transformers_logging

from rotary_foundry.data.same_tokenizer import check_ids
from rotary_foundry.evaluation.models import check_runs
from rotary_foundry.interop.huggingface import check_stored
from rotary_foundry.interop.positions import most_tokens
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.json_text import parse_json
from rotary_foundry.utils.wording import not_opened

if TYPE_CHECKING:
    from pylate.models import ColBERT
    from torch import Tensor
    from torch.utils.data import DataLoader


MODULES = "modules.json"  # of sentence-transformers
LIBRARIES = ("sentence_transformers.", "pylate.")  # whose modules are taken
MARKS = 1  # tokens that PyLate puts into a text, to mark it as a query or a document


@dataclass(frozen=True)
class Retriever:
    """A model in the form that mteb takes.

    Attributes:
        model: the argument for `mteb.evaluate`.
        library: the SentenceTransformer or ColBERT itself.
        kind: a description of how it makes vectors.
        query_length, document_length: the length in tokens at which texts are cut, special tokens included; None: no
            cut.
        marks: how many of these tokens the tokenizer does not add itself.
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
        max_seq_len: the length at which documents are cut, and queries of single-vector models; None: the model's.

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
    kind = "one vector a text" + (
        ", the mean of its tokens: a plain encoder, not trained for retrieval" if plain else ""
    )
    return Retriever(model, model, kind, model.max_seq_length, model.max_seq_length)


def is_multi_vector(path: Path) -> bool:
    """Return whether PyLate saved a directory, judged by its modules."""
    return any(module.startswith("pylate.") for module in _modules(path))


def _modules(path: Path) -> list[str]:
    """Return the class of each module that a directory lists; none if it has no modules.json."""
    try:
        return [str(module["type"]) for module in parse_json((path / MODULES).read_text(encoding="utf-8"))]
    except (FileNotFoundError, NotADirectoryError):  # if the path is a file, opening it as a model is refused later
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path / MODULES}: expected a list of modules as sentence-transformers writes it: {error!r}"
        ) from None


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
    kind = "a vector a token, MaxSim over all documents"
    return Retriever(LateInteraction(model), model, kind, model.query_length, model.document_length, marks=MARKS)


def _load(path: Path, kind: type[SentenceTransformer]) -> SentenceTransformer:
    """A directory as a SentenceTransformer or ColBERT, without a look at the network.

    Raises:
        DataError: it cannot be loaded, or does not begin with a transformer, or its tokenizer is another model's, or a
            module is code of its own, which sentence-transformers would run without asking.
    """
    if foreign := [module for module in _modules(path) if not module.startswith(LIBRARIES)]:
        raise DataError(
            f"{path / MODULES}: {foreign[0]} is code of its own, which is never run here; choose a model whose modules "
            "are those of sentence-transformers or PyLate"
        )
    transformers_logging.set_verbosity_error()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    check_stored(path)
    try:
        # With an absolute path, nothing is looked for on the hub, where `runs/dense` could be somebody's repository.
        model = kind(str(path.resolve()), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers, safetensors and tokenizers each raise their own
        raise DataError(f"{path}: cannot be loaded as an encoder: {not_opened(error)}") from error
    model.model_card_data.local_files_only = True  # which ColBERT does not pass on
    if not hasattr(model[0], "auto_model"):
        raise DataError(f"{path}: begins with a {type(model[0]).__name__}, where a transformer is wanted")
    check_ids(model.tokenizer, "the model", model[0].auto_model.get_input_embeddings().num_embeddings)
    with check_runs(path, model[0].auto_model):
        model.encode(["a", "a b"], show_progress_bar=False)
    return model


def _longest_text(model: SentenceTransformer) -> int | None:
    """The most tokens of a text that a retriever takes, special ones included; None if there is no limit.

    PyLate sets ColBERT's `max_seq_length` to suit the texts at hand, and saves that, so it is no limit.
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
        """Lists of [tokens, width], each of length 1 → [queries, documents]

        max_sim pads documents with zeros, and a zero is more than a negative similarity. Raised by 1, none is negative.
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
    """[tokens, width] → [tokens, width + 1]"""
    return torch.nn.functional.pad(vectors, (0, 1), value=1.0)
