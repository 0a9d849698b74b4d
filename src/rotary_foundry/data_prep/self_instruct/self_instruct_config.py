"""The keys of the YAML of `rotary-foundry data self-instruct`, and the checks that need no data."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from rotary_foundry.data_prep.corpus_config import source_problems
from rotary_foundry.data_prep.readers import SourceConfig
from rotary_foundry.data_prep.self_instruct.instruct_prompts import PROMPTS, missing_fields
from rotary_foundry.recipe.loading import load_config, refuse
from rotary_foundry.utils.wording import nearest


@dataclass
class SelfInstructConfig:
    """The documents, the generator, and the lengths. Paths are relative to the working directory."""

    sources: dict[str, SourceConfig]  # as in the YAML of a corpus, without filters and length_bands
    generator: str  # a folder with a Hugging Face causal model, or the name of a model on a server
    tokenizer: str  # the folder of the tokenizer of the model to train; all lengths in documents are in its tokens
    min_tokens: int = 4096  # a shorter document is skipped
    max_tokens: int = 16384  # of an example with its chat template; longer documents are cut at their end
    chunk_tokens: int = 3072  # of the chunk that the generator reads; with the reply it fits a context of 4,096
    reply_tokens: int = 512  # the most that the generator writes at once, in its own tokens
    temperature: float = 0.7  # for writing questions; the critique takes the likeliest tokens
    seed: int = 0  # of chunks, prompts and sampling, which depend only on it and on the document's text
    documents: int | None = None  # the most documents to ask about, such as 20 to try a generator
    concurrency: int = 16  # requests at a time; a local model gets one at a time
    timeout: float = 300.0  # seconds without a byte from the server, after which a request is repeated
    retries: int = 6  # of a request, after 1, 2, 4 … seconds or when the server asks for it
    max_bad_documents: int = 100  # more unreadable documents than this in one part of a source are an error
    prompts: dict[str, str] = field(default_factory=dict)  # replaces some of PROMPTS, by name
    request: dict[str, Any] = field(default_factory=dict)  # further keys of a request to a server; null removes one

    @property
    def is_local(self) -> bool:
        """True if the generator is a folder, False if it is a model on a server."""
        return Path(self.generator).is_dir()

    def prompt(self, name: str) -> str:
        """Return the text of a prompt, with its fields in braces."""
        return self.prompts.get(name, PROMPTS[name])


def load_self_instruct_config(path: str | Path, overrides: Iterable[str] = ()) -> SelfInstructConfig:
    """Read and check the YAML.

    Raises:
        ConfigurationError: a key is wrong; the message names the file and the key.
    """
    config = load_config(path, SelfInstructConfig, overrides)
    refuse(path, _problems(config))
    return config


def _problems(config: SelfInstructConfig) -> Iterable[tuple[str, str]]:
    """Yield (key, what is wrong and what would be right). The caller reports only the first."""
    if not config.sources:
        yield "sources", "expected at least one source, got none"
    for name, source in config.sources.items():
        yield from source_problems(name, source)
        for key in ("filters", "length_bands"):
            if getattr(source, key):
                yield f"sources.{name}.{key}", "is for `python data_prep` only; remove it"
    if not (Path(config.tokenizer) / "tokenizer.json").is_file():
        yield "tokenizer", f"no Hugging Face fast tokenizer there: {config.tokenizer}/tokenizer.json is missing"
    for key in ("min_tokens", "max_tokens", "chunk_tokens", "reply_tokens", "documents", "concurrency"):
        if (value := getattr(config, key)) is not None and value < 1:
            yield key, f"expected an integer of at least 1, got {value}"
    if config.min_tokens > config.max_tokens:
        yield "min_tokens", f"expected at most max_tokens, {config.max_tokens}, got {config.min_tokens}"
    for key in ("retries", "max_bad_documents", "seed"):
        if (value := getattr(config, key)) < 0:
            yield key, f"expected an integer of at least 0, got {value}"
    if not (isfinite(config.temperature) and config.temperature >= 0):
        yield "temperature", f"expected a number of at least 0, got {config.temperature}"
    if not (isfinite(config.timeout) and config.timeout > 0):
        yield "timeout", f"expected seconds above 0, got {config.timeout}"
    for name, text in config.prompts.items():
        if name not in PROMPTS:
            yield f"prompts.{name}", f"is not known; {nearest(name, PROMPTS)}"
        elif missing := missing_fields(name, text):
            yield f"prompts.{name}", f"expected {missing[0]} in the text, found none; it is replaced when asking"
    if config.request and config.is_local:
        yield "request", f"is for servers, and {config.generator} is a folder; remove it"
