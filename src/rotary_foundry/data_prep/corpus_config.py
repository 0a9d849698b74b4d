"""The keys of a `yamls/data/*.yaml`, and the checks that need no data.

A wrong file is refused in a fraction of a second, before a document is read and before torch is imported.
"""

import codecs
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

from rotary_foundry.data.rows import FRAME, LONGEST, SHORTEST
from rotary_foundry.data_prep.length_bands import band_names, bounds_complaint
from rotary_foundry.data_prep.readers import CONVERSATIONS, READERS, Reader, SourceConfig, matches
from rotary_foundry.data_prep.task_config import TEXT, TaskConfig, located, sources_of, task_problems
from rotary_foundry.data_prep.tokenizer import SMALLEST_VOCABULARY, SMALLEST_WORDPIECE
from rotary_foundry.data_prep.word_starts import check_word_starts
from rotary_foundry.recipe.loading import load_config, refuse
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.installing import install_command
from rotary_foundry.utils.wording import nearest

SMALLEST = {
    "bpe": (SMALLEST_VOCABULARY, "the special tokens, the bytes and the runs of spaces"),
    "wordpiece": (SMALLEST_WORDPIECE, "the special tokens and some characters"),
}  # the smallest vocabulary of each kind of tokenizer, and what it must contain
TOO_LONG = "leave_out", "cut_left"


@dataclass
class TrainTokenizer:
    """Options of a tokenizer that is trained on the training split."""

    vocab_size: int  # rounded up to a multiple of 64
    kind: str = "bpe"  # byte-level; or "wordpiece": BERT's, lower-cased, where each Chinese character is a token


@dataclass
class TokenizerConfig:
    """Where the tokenizer comes from: exactly one of `train` and `path`."""

    train: TrainTokenizer | None = None
    path: str | None = None  # a directory with a Hugging Face fast tokenizer
    causal: bool = False  # for a decoder: puts only its begin and end tokens around documents, and needs no others
    chat_template: str | None = None  # a file of Jinja for conversations; default: the tokenizer's own


@dataclass
class CorpusConfig:
    """A corpus and the shards to make from it. Paths are relative to the working directory."""

    sources: dict[str, SourceConfig]  # by name; the name is the folder of the source's shards
    tokenizer: TokenizerConfig
    row_lengths: list[int]  # in tokens, including [CLS] and [SEP] around each document
    out: str  # the folder for tokenizer, shards and statistics; local, or on an object store (s3://…)
    validation: float = 0.01  # held out of each source: a fraction of its documents if below 1, else a number of them
    word_starts: str | None = None  # pre_tokenizer or jieba: rows say where words begin (word_starts.py says how)
    stride: int = 0  # content tokens shared by neighbouring pieces of a document that is longer than a row
    deduplication: Any = "exact"  # or minhash, or {minhash: {language: en, n_grams: 5, …}} as datatrove names them
    max_bad_documents: int = 100  # preparation fails if one part of a source has more unreadable documents than this
    executor: dict[str, Any] = field(default_factory=dict)  # local, slurm or ray, with its options; default: local
    work: str | None = None  # the work folder; default: a hidden folder beside `out`
    tasks: dict[str, TaskConfig] = field(default_factory=dict)  # of a multi-task stage, by name (task_config.py)
    data_path: str | None = None  # the data of labelled tasks that have no path of their own

    @property
    def name(self) -> str:
        """The prefix of job names: the name of the output folder."""
        return Path(self.out).name

    @property
    def labelled(self) -> dict[str, TaskConfig]:
        """The tasks with labelled examples, with the paths of their data."""
        return {name: located(task, self.data_path) for name, task in self.tasks.items() if task.kind != TEXT}

    @property
    def has_conversations(self) -> bool:
        """True if any source holds conversations."""
        return any(source.conversations is not None for source in self.sources.values())

    def task_of(self, source: str) -> str | None:
        """Return the name of the masked-LM task that a source belongs to; None in a corpus without tasks."""
        return next((name for name, task in self.tasks.items() if source in sources_of(task, self.sources)), None)


def load_corpus_config(path: str | Path, overrides: Iterable[str] = ()) -> CorpusConfig:
    """Read and check a data YAML.

    Raises:
        ConfigurationError: a key is wrong; the message names the file and the key.
    """
    config = load_config(path, CorpusConfig, overrides)
    refuse(path, _problems(config))
    return config


def _problems(config: CorpusConfig) -> Iterable[tuple[str, str]]:
    """Yield (key, what is wrong and what would be right). The caller reports only the first."""
    if not config.sources and not config.tasks:
        yield "sources", "expected at least one source, got none"
    for name, source in config.sources.items():
        yield from source_problems(name, source)
    yield from _band_problems(config.sources)
    yield from _tokenizer_problems(config.tokenizer)
    if config.has_conversations:
        yield from _beside_conversations_problems(config)
    elif config.tokenizer.chat_template is not None:
        yield "tokenizer.chat_template", "is for conversations, and no source has them; remove it"
    if config.tasks:
        yield from task_problems(config.tasks, config.sources, config.row_lengths, config.data_path)
        yield from _beside_tasks_problems(config)
    if not config.row_lengths:
        yield "row_lengths", "expected at least one row length, got none; set for example [1024, 8192]"
    if len(set(config.row_lengths)) < len(config.row_lengths):
        yield "row_lengths", f"expected different row lengths, got {config.row_lengths}; remove the duplicates"
    for row_length in config.row_lengths:
        if row_length < SHORTEST:
            yield "row_lengths", f"{row_length} is too short; expected at least {SHORTEST}: [CLS], a token and [SEP]"
        elif row_length > LONGEST:
            yield "row_lengths", f"{row_length} is too long; expected at most {LONGEST:,} tokens"
    if not isfinite(config.validation) or config.validation <= 0 or (config.validation > 1 and config.validation % 1):
        yield "validation", f"expected a fraction between 0 and 1 or a number of documents, got {config.validation}"
    if not 0 <= config.stride < min(config.row_lengths, default=SHORTEST) - FRAME.slots:
        most = min(config.row_lengths, default=SHORTEST) - FRAME.slots - 1
        yield "stride", f"expected 0 to {most}, less than the content tokens of the shortest row, got {config.stride}"
    if Path(config.out).name in ("", ".."):
        yield "out", f"expected a folder such as data/mine, got '{config.out}'"
    if config.max_bad_documents < 0:
        yield "max_bad_documents", f"expected a number of documents of at least 0, got {config.max_bad_documents}"
    if config.work is not None and "://" in config.work:
        yield "work", f"expected a folder on a disk that all workers share, got '{config.work}'"
    elif config.work is not None and "://" not in config.out:
        work, out = Path(config.work).resolve(), Path(config.out).resolve()
        if work.is_relative_to(out) or out.is_relative_to(work):
            yield (
                "work",
                f"'{config.work}' and out, '{config.out}', overlap; choose folders that do not contain each other",
            )
    if config.word_starts is not None:
        yield from _reported("word_starts", lambda: check_word_starts(config.word_starts))
    yield from _reported("deduplication", lambda: _check_minhash(config.deduplication))
    if config.executor:
        from rotary_foundry.data_prep.executors import check_executor

        yield from _reported("executor", lambda: check_executor(config.executor))


def minhash_options(deduplication: Any) -> dict | None:
    """Return the options of MinHash deduplication, or None if only exact duplicates are dropped.

    Raises:
        ConfigurationError: `deduplication` is neither exact nor minhash, or has a wrong option.
    """
    known = ("language", "n_grams", "num_buckets", "hashes_per_bucket", "seed")
    if deduplication == "exact":
        return None
    if deduplication == "minhash":
        return {}
    if not isinstance(deduplication, dict) or list(deduplication) != ["minhash"]:
        raise ConfigurationError(f"expected exact or minhash, got '{deduplication}'")
    options = deduplication["minhash"] or {}
    if not isinstance(options, dict):
        raise ConfigurationError("minhash: expected options by name, as in {minhash: {language: en}}")
    if unknown := sorted(options.keys() - set(known)):
        raise ConfigurationError(f"minhash: unknown option '{unknown[0]}'; there are {', '.join(known)}")
    for name, value in options.items():
        if name != "language" and (type(value) is not int or value < 1):
            raise ConfigurationError(f"minhash: {name}: expected an integer of at least 1, got {value}")
    return dict(options)


def _check_minhash(deduplication: Any) -> None:
    options = minhash_options(deduplication)
    if options is None:
        return
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    try:
        load_word_tokenizer(options.get("language", "en"))
    except ImportError as error:
        raise ConfigurationError(
            f"minhash: {error} To install everything it needs: {install_command('filters')}"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"minhash: {error}") from error


def _reported(key: str, check: Callable[[], Any]) -> Iterable[tuple[str, str]]:
    try:
        check()
    except ConfigurationError as error:
        yield key, str(error)


def source_problems(name: str, source: SourceConfig) -> Iterable[tuple[str, str]]:
    """Yield (key, what is wrong and what would be right) for the source `name` of a YAML."""
    key = f"sources.{name}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        yield key, "the name becomes a folder; use only letters, digits, '_', '-' and '.'"
    if name == "tokenizer":
        yield key, "the name is reserved: out/tokenizer holds the tokenizer; choose another name"
    reader = READERS.get(source.reader)
    if reader is None:
        near = get_close_matches(source.reader, READERS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(READERS))}"
        yield f"{key}.reader", f"no reader '{source.reader}'; {hint}"
        return
    if source.path is None and reader.path == "required":
        yield f"{key}.path", f"the reader {source.reader} needs a path"
    if source.path is not None and reader.path == "none":
        yield f"{key}.path", f"the reader {source.reader} takes no path"
    if source.path is not None and not reader.hugging_face and not matches(source.path):
        remedy = f"; install it: {source.install}" if source.install else ""
        yield f"{key}.path", f"nothing is there: {source.path}{remedy}"
    if source.text_column is not None and not reader.text_column:
        yield f"{key}.text_column", f"the reader {source.reader} reads no columns"
    yield from _form_problems(key, source, reader)
    for only in ("name", "split"):
        if getattr(source, only) is not None and not reader.hugging_face:
            yield f"{key}.{only}", f"the reader {source.reader} takes none; it is for Hugging Face data sets"
    for only in ("depth", "endings"):
        if getattr(source, only) is not None and not reader.repositories:
            yield f"{key}.{only}", f"the reader {source.reader} takes none; it is for repositories"
    if source.depth is not None and (source.depth < 1 or source.path is None):
        yield f"{key}.depth", f"expected a number of folders of at least 1 below 'path', got {source.depth}"
    if source.endings is not None and not (source.endings and all(source.endings)):
        yield f"{key}.endings", f"expected endings of file names such as [.py, .md], got {source.endings}"
    for only in ("separator", "remove"):
        if (pattern := getattr(source, only)) is not None:
            yield from _reported(f"{key}.{only}", lambda pattern=pattern: _check_pattern(pattern))
    yield from _conversation_problems(key, source, reader)
    if source.filters:
        from rotary_foundry.data_prep.filters import make_filter

        for entry in source.filters:
            yield from _reported(f"{key}.filters", lambda entry=entry: make_filter(entry))


def _form_problems(key: str, source: SourceConfig, reader: Reader) -> Iterable[tuple[str, str]]:
    """Check how files are written."""
    if source.delimiter is not None and source.reader != "csv":
        yield f"{key}.delimiter", f"the reader {source.reader} takes none; it is for csv"
    elif source.delimiter is not None and (len(source.delimiter) != 1 or source.delimiter in '"\r\n\0'):
        yield f"{key}.delimiter", f"expected one character such as ';', got {source.delimiter!r}; a tab is \"\\t\""
    if source.encoding is not None and not reader.encoding:
        takers = ", ".join(name for name, each in READERS.items() if each.encoding)
        yield f"{key}.encoding", f"the reader {source.reader} takes none; it is for {takers}"
    elif source.encoding is not None:
        try:
            "".encode(source.encoding)  # other codecs of Python's are of no text
            codecs.getincrementaldecoder(source.encoding)("surrogateescape").decode(b"a")  # as the readers do
        except (LookupError, ValueError):
            yield f"{key}.encoding", f"expected an encoding of Python's such as latin-1, got '{source.encoding}'"


def _conversation_problems(key: str, source: SourceConfig, reader: Reader) -> Iterable[tuple[str, str]]:
    """Check the keys of conversations."""
    if source.conversations is None:
        for only in ("alone_from", "too_long"):
            if getattr(source, only) is not None:
                yield f"{key}.{only}", "is for sources with `conversations`; remove it"
        return
    if not reader.conversations:
        there = ", ".join(name for name, each in READERS.items() if each.conversations)
        yield f"{key}.conversations", f"the reader {source.reader} reads none; readers that do are {there}"
    if source.conversations not in CONVERSATIONS:
        yield (
            f"{key}.conversations",
            f"'{source.conversations}' is not known; {nearest(source.conversations, CONVERSATIONS)}",
        )
    for only in ("text_column", "separator", "remove", "filters"):
        if getattr(source, only):
            yield f"{key}.{only}", "is for texts, and the source holds conversations; remove it"
    if source.alone_from is not None and source.alone_from < 1:
        yield f"{key}.alone_from", f"expected a number of tokens of at least 1, got {source.alone_from}"
    if source.too_long is not None and source.too_long not in TOO_LONG:
        yield f"{key}.too_long", f"expected {' or '.join(TOO_LONG)}, got '{source.too_long}'"


def _beside_conversations_problems(config: CorpusConfig) -> Iterable[tuple[str, str]]:
    """Check what a corpus with conversations cannot have."""
    if not config.tokenizer.causal:
        yield "tokenizer.causal", "conversations are for decoders; set it to true"
    if config.word_starts is not None:
        yield "word_starts", "is for masked LM, and a source holds conversations; remove it"
    if config.tasks:
        yield "tasks", "heads of tasks are for encoders, and a source holds conversations; make two corpora"


def _band_problems(sources: dict[str, SourceConfig]) -> Iterable[tuple[str, str]]:
    """Check the lengths at which sources are split, and that the names of their bands are free."""
    taken = set(sources)
    for name, source in sources.items():
        if source.length_bands is None:
            continue
        key = f"sources.{name}.length_bands"
        if complaint := bounds_complaint(source.length_bands):
            yield key, complaint
        elif twice := taken.intersection(band_names(name, source.length_bands)):
            yield key, f"makes a source named '{min(twice)}', and there is one already; rename one of them"
        taken.update(band_names(name, source.length_bands))


def _beside_tasks_problems(config: CorpusConfig) -> Iterable[tuple[str, str]]:
    """Check what a corpus with tasks cannot have."""
    for name, source in config.sources.items():
        if source.length_bands is not None:
            yield f"sources.{name}.length_bands", "the rows of a task have no bands; remove it"
    for name, task in config.labelled.items():
        if not task.data.validation and config.validation >= 1:
            yield (
                f"tasks.{name}.data.validation",
                "expected at least one split, got none, and `validation` is not a share to hold out; set it below 1",
            )
    if config.tokenizer.causal:
        yield "tokenizer.causal", "heads of tasks are for encoders; remove it"
    if config.tokenizer.train is not None and not config.sources:
        yield "tokenizer.train", "there are no `sources` to train it on; give `path`, the model's tokenizer folder"


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigurationError(f"expected a regular expression, got '{pattern:.60}': {error}") from error
    if groups:
        raise ConfigurationError(f"expected a regular expression without groups, got '{pattern}'; write (?:…) for (…)")


def _tokenizer_problems(tokenizer: TokenizerConfig) -> Iterable[tuple[str, str]]:
    if (tokenizer.train is None) == (tokenizer.path is None):
        yield "tokenizer", "expected either {train: {vocab_size: …}} or {path: …}, got both or neither"
    if tokenizer.train is not None and tokenizer.causal and tokenizer.train.kind == "wordpiece":
        yield "tokenizer.causal", "a wordpiece is for encoders; train a bpe for a decoder"
    if tokenizer.train is not None and tokenizer.train.kind not in SMALLEST:
        yield "tokenizer.train.kind", f"expected {' or '.join(SMALLEST)}, got '{tokenizer.train.kind}'"
    elif tokenizer.train is not None and tokenizer.train.vocab_size < SMALLEST[tokenizer.train.kind][0]:
        smallest, needed = SMALLEST[tokenizer.train.kind]
        yield (
            "tokenizer.train.vocab_size",
            f"{tokenizer.train.vocab_size} is too small; expected at least {smallest}: {needed}",
        )
    if tokenizer.path is not None and not (Path(tokenizer.path) / "tokenizer.json").is_file():
        yield "tokenizer.path", f"no Hugging Face fast tokenizer there: {tokenizer.path}/tokenizer.json is missing"
