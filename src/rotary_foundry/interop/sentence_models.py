"""Open a directory as a model of sentence-transformers or PyLate: a retriever or a reranker.

These libraries run any module that modules.json names, ask for nothing, and take transformers' random values where
weights are missing. So modules and weights are checked here.
"""

import logging
from pathlib import Path
from typing import Any, TypeVar

from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers.utils import logging as transformers_logging

from rotary_foundry.data.same_tokenizer import check_ids
from rotary_foundry.models.in_transformers import check_attention_mask, check_loaded, plain_names
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import parse_json
from rotary_foundry.utils.wording import not_opened

MODULES = "modules.json"
LIBRARIES = ("sentence_transformers.", "pylate.")  # only their modules are accepted

Model = TypeVar("Model", SentenceTransformer, CrossEncoder)


def modules_of(path: Path) -> list[tuple[str, str]]:
    """Return class and folder of each module that a directory lists; none if it has no modules.json."""
    try:
        listed = parse_json((path / MODULES).read_text(encoding="utf-8"))
        return [(str(module["type"]), str(module["path"])) for module in listed]
    except (FileNotFoundError, NotADirectoryError):  # opening the path as a model refuses a file later
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path / MODULES}: expected a list of modules as sentence-transformers writes it: {error!r}"
        ) from None


def load_sentence_model(path: Path, kind: type[Model], **settings: Any) -> Model:
    """Load a directory as a SentenceTransformer, ColBERT or CrossEncoder, without network access.

    Args:
        settings: further arguments of the class.

    Raises:
        ConfigurationError: there is no such folder.
        DataError: it cannot be loaded, does not begin with a transformer, lacks tensors of the encoder, has another
            model's tokenizer, needs other inputs, has no attention mask, or has a module with its own code, which
            sentence-transformers would run without asking.
    """
    modules = modules_of(path)
    if foreign := [module for module, _ in modules if not module.startswith(LIBRARIES)]:
        raise DataError(
            f"{path / MODULES}: {foreign[0]} is code of its own, which is never run here; choose a model whose modules "
            "are those of sentence-transformers or PyLate"
        )
    transformers_logging.set_verbosity_error()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    with plain_names(path) as plain:
        # The libraries do not tell what was missing, so the encoder is loaded once more.
        encoder_at = plain / modules[0][1] if modules else plain
        try:
            # An absolute path is not looked up on the hub, where `runs/dense` could be somebody's repository.
            model = kind(str(plain.resolve()), local_files_only=True, trust_remote_code=False, **settings)
            encoder = encoder_of(model)
            if encoder is not None:
                again, loading = type(encoder).from_pretrained(
                    encoder_at, output_loading_info=True, local_files_only=True
                )
        except Exception as error:  # transformers, safetensors and tokenizers each raise their own
            raise DataError(f"{path}: cannot be loaded as an encoder: {not_opened(error)}") from error
    if encoder is None:
        raise DataError(f"{path}: expected a transformer as first module, found a {type(model[0]).__name__}")
    model.model_card_data.local_files_only = True  # ColBERT does not pass it on
    check_loaded(path, again, loading)
    check_ids(model.tokenizer, "the model", encoder.get_input_embeddings().num_embeddings)
    check_attention_mask(path, encoder, model.tokenizer)
    return model


def encoder_of(model: SentenceTransformer | CrossEncoder) -> Any:
    """Return the model of transformers in it; None if it does not begin with one."""
    return model.model if isinstance(model, CrossEncoder) else getattr(model[0], "auto_model", None)
