"""The suite `retrieval`: nDCG@10 by mteb, for models with one vector per text or one per token.

`code_search` needs only Python: find a function from its docstring's first paragraph, in standard-library modules from
which code_search.py takes no training pair; the scripts in examples/ train on those pairs. Any other name is a
benchmark or a task of mteb, whose data comes from the Hugging Face hub: BEIR, MLDR, CodeSearchNet.
Intervals are bootstrapped over single queries. The texts to search stay the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rotary_foundry.data.rows import SHORTEST
from rotary_foundry.evaluation import bootstrap
from rotary_foundry.evaluation.results import Headline, Measure, Result, Row, digest
from rotary_foundry.evaluation.suites import ResampledConfig
from rotary_foundry.finetuning.finetune_config import LONG_DOCUMENTS
from rotary_foundry.utils.errors import ConfigurationError, DataError, NeedsNetwork
from rotary_foundry.utils.hub import check_hub
from rotary_foundry.utils.installing import install_command
from rotary_foundry.utils.wording import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rotary_foundry.evaluation.retrieval_models import Retriever
    from rotary_foundry.evaluation.retrieval_tasks import Part, Watched

METRIC = "nDCG@10"
WITHIN = 0.0, 1.0
OFFLINE = "code_search"
SHORTEST_MARKED = SHORTEST + 1  # PyLate adds one token that marks a text as a query or a document
CHUNK = 1000  # texts that are tokenised at a time


@dataclass(kw_only=True)
class Config(ResampledConfig):
    """The keys of `yamls/eval/retrieval.yaml`."""

    tasks: list[str]  # code_search, and benchmarks or tasks of mteb
    max_pairs: int | None  # code_search only: use the first `max_pairs` functions; null: all
    max_seq_len: int | None  # documents are cut to this many tokens; null: the limit saved with the model
    long_documents: str  # what to do with longer texts: truncate (and count them) or refuse
    batch_size: int

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if not self.tasks:
            yield "tasks", f"expected at least one task, such as {OFFLINE}; got none"
        if self.max_seq_len is not None and self.max_seq_len < SHORTEST_MARKED:
            yield "max_seq_len", f"expected at least {SHORTEST_MARKED} tokens, got {self.max_seq_len}"
        if self.long_documents not in LONG_DOCUMENTS:
            yield "long_documents", f"expected {' or '.join(LONG_DOCUMENTS)}, got '{self.long_documents}'"


def check(_: Path, config: Config) -> None:
    """Check that tasks of these names exist and that their data can be downloaded.

    Raises:
        NeedsNetwork: a task's data has to be downloaded, and the hub cannot be reached.
        ConfigurationError: no such task, or a package is missing.
    """
    online = [name for name in config.tasks if name != OFFLINE]
    if online:
        check_hub(f"{', '.join(online)}: the data has to be downloaded ({OFFLINE} needs no network)")
    for package in ("mteb", "sentence_transformers", "pylate"):
        if find_spec(package) is None:
            raise ConfigurationError(f"{package} is not installed; all that retrieval needs: {install_command('eval')}")
    if online:
        from rotary_foundry.evaluation.retrieval_tasks import find_tasks  # imports mteb, which takes seconds

        for name in online:
            find_tasks(name)


def run(model: Path, config: Config) -> Result:
    """Evaluate a directory, a run or a checkpoint.

    Raises:
        NeedsNetwork: a task's data is not in the cache and cannot be downloaded.
        ConfigurationError: no such task, or the model takes fewer tokens than max_seq_len.
        DataError: the model does not exist, or texts are too long and long_documents is refuse.
    """
    from datasets.utils.logging import disable_progress_bar

    from rotary_foundry.evaluation.retrieval_models import open_retriever
    from rotary_foundry.evaluation.retrieval_tasks import StandardLibrary, find_tasks

    disable_progress_bar()
    tasks = {
        name: [StandardLibrary(config.max_pairs)] if name == OFFLINE else find_tasks(name) for name in config.tasks
    }
    retriever = open_retriever(model, config.max_seq_len)
    rows, headlines, notes, data, digests = [], [], [retriever.kind], {}, []
    for name, of_name in tasks.items():
        found, of_tasks = zip(*(_evaluated(task, retriever, config, notes) for task in of_name), strict=True)
        digests += of_tasks
        parts = [part for of_task in found for part in of_task]
        data[name] = {part.name: {"queries": len(part.scores), "documents": part.documents} for part in parts}
        for part in parts:
            label = name if len(parts) == 1 else part.name
            measure = _measure([[part]], config)
            rows.append(_row(label, len(part.scores), part.documents, measure))
        measure = _measure(found, config)
        if len(parts) > 1:
            queries, documents = (
                sum(counts[key] for counts in data[name].values()) for key in ("queries", "documents")
            )
            rows.append(_row(f"{name}, mean", queries, documents, measure))
        units = {query: (score, 1.0) for query, score in parts[0].scores.items()} if len(parts) == 1 else {}
        headlines.append(Headline(f"{name} {METRIC}", measure, lower_is_better=False, units=units, within=WITHIN))
    parameters = sum(parameter.numel() for parameter in retriever.library.parameters())
    known = {"kind": retriever.kind, "parameters": parameters, "document_length": retriever.document_length}
    asked = digest(of_task.encode() for of_task in digests)
    return Result("retrieval", "retrieval", known, {}, data, rows, headlines, notes, asked=asked)


def _evaluated(task: object, retriever: "Retriever", config: Config, notes: list[str]) -> "tuple[list[Part], str]":
    """Evaluate a task of mteb; return its parts with scores, and a digest of its texts."""
    import mteb

    from rotary_foundry.evaluation.retrieval_tasks import Watched, leaves

    watched = [_loaded(Watched, leaf) for leaf in leaves(task)]
    asked = digest(text.encode() for one in watched for queries in (True, False) for text in one.texts(queries))
    for one in watched:
        notes.extend(_too_long(one, retriever, config))
    arguments = {"batch_size": config.batch_size, "show_progress_bar": False}
    mteb.evaluate(
        retriever.model, task, cache=None, co2_tracker=False, encode_kwargs=arguments, show_progress_bar=False
    )
    parts = [part for one in watched for part in one.found()]
    for one in watched:
        one.task.unload_data()
    return parts, asked


def _loaded(watch: "type[Watched]", task: object) -> "Watched":
    try:
        return watch(task)
    except (OSError, ValueError) as error:  # datasets and the hub's client raise these without a network or a cache
        raise NeedsNetwork(f"{task.metadata.name}: its data cannot be downloaded: {one_line(error)}") from error


def _too_long(watched: "Watched", retriever: "Retriever", config: Config) -> list[str]:
    notes = []
    for what, queries, length in (
        ("queries", True, retriever.query_length),
        ("documents", False, retriever.document_length),
    ):
        if length is None:
            continue
        over, all_texts = _count_too_long(retriever.library.tokenizer, watched.texts(queries), length - retriever.marks)
        if over:
            name = watched.task.metadata.name
            message = f"{name}: {over:,} of {all_texts:,} {what} are longer than {length:,} tokens"
            if config.long_documents == "refuse":
                raise DataError(f"{message}; raise max_seq_len if the model allows, or set long_documents=truncate")
            notes.append(f"{message}, and cut there")
    return notes


def _count_too_long(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str], length: int) -> tuple[int, int]:
    """Return the number of texts with more than `length` tokens, special ones included, and that of all texts."""
    over = count = 0
    texts = iter(texts)
    while chunk := list(islice(texts, CHUNK)):
        encoded = tokenizer(chunk, truncation=False, verbose=False, return_attention_mask=False)
        over += sum(len(tokens) > length for tokens in encoded["input_ids"])
        count += len(chunk)
    return over, count


def _row(name: str, queries: int, documents: int, measure: Measure) -> Row:
    return Row({"task": name, "queries": queries, "documents": documents}, {METRIC: measure})


def _measure(tasks: "Sequence[Sequence[Part]]", config: Config) -> Measure:
    """Average over queries, then over the parts of a task, then over tasks."""
    values, resampled, fewest = [], [], min(len(part.scores) for parts in tasks for part in parts)
    for parts in tasks:
        scores = [np.array(list(part.scores.values())) for part in parts]
        values.append(np.mean([of_part.mean() for of_part in scores]))
        drawn = [_resampled(of_part, config, (len(resampled), part)) for part, of_part in enumerate(scores)]
        resampled.append(np.mean(drawn, axis=0))
    value = float(np.mean(values))
    if value in WITHIN:  # all queries have the same score
        return bootstrap.unanimous(value, fewest, WITHIN)
    return bootstrap.interval(value, np.mean(resampled, axis=0))


def _resampled(scores: NDArray[np.float64], config: Config, place: tuple[int, int]) -> NDArray[np.float64]:
    """Resample scores [queries], independently for each part, and return the mean of each resample, [resamples]."""
    return bootstrap.draws(len(scores), config.resamples, (config.seed, *place)) @ scores / len(scores)
