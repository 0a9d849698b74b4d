"""The tasks of the suite `retrieval`: mteb's tasks and benchmarks by name, and code search in the standard library.

Importing this module takes seconds, because it imports mteb.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mteb
from datasets import Dataset
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.task_metadata import TaskMetadata

from rotary_foundry.evaluation.code_search import code_search_pairs
from rotary_foundry.utils.errors import ConfigurationError

METRIC = "ndcg_cut_10"  # pytrec_eval's name
KNOWN_AS = {  # common names, mteb's names for them, and the subset to use
    "BEIR": ("BEIR", {}),
    "MLDR": ("MultiLongDocRetrieval", {"languages": ["eng"], "eval_splits": ["test"]}),  # as in arXiv 2412.13663
    "CodeSearchNet": ("COIRCodeSearchNetRetrieval", {}),  # as in CoIR and arXiv 2412.13663: six languages
}


class StandardLibrary(AbsTaskRetrieval):
    """Code search in the held-out modules of code_search.py: find the function of each docstring among all functions.

    Args:
        max_pairs: use only the first `max_pairs` functions, as queries and as documents; None: all.
    """

    metadata = TaskMetadata(
        name="code_search",
        description="From the first paragraph of a docstring to its function, in Python's standard library.",
        dataset={"path": "rotary-foundry/none", "revision": "none"},  # never used: load_data is ours
        reference=None,
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn", "python-Code"],
        main_score="ndcg_at_10",
        date=None,
        domains=["Programming", "Written"],
        task_subtypes=["Code retrieval"],
        license=None,
        annotations_creators="derived",
        dialect=[],
        sample_creation="found",
        bibtex_citation=None,
    )

    def __init__(self, max_pairs: int | None):
        super().__init__()
        self.max_pairs = max_pairs

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        pairs = code_search_pairs("test")[: self.max_pairs]
        content = {
            "queries": Dataset.from_list([{"id": pair.name, "text": pair.query} for pair in pairs]),
            "corpus": Dataset.from_list([{"id": pair.name, "text": pair.document, "title": ""} for pair in pairs]),
            "relevant_docs": {pair.name: {pair.name: 1} for pair in pairs},
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": content}}
        self.data_loaded = True


@dataclass(frozen=True)
class Part:
    """A subset of a task, such as one of its languages, and how its queries were answered.

    Attributes:
        documents: the number of documents in the corpus.
        scores: nDCG@10 by query.
    """

    name: str
    documents: int
    scores: dict[str, float]


def find_tasks(name: str) -> list[AbsTask]:
    """Return the mteb task of a name, or all tasks of a benchmark.

    Raises:
        ConfigurationError: mteb has no task of this name, or it is not a retrieval task.
    """
    known, part = KNOWN_AS.get(name, (name, {}))
    try:
        tasks = list(mteb.get_benchmark(known).tasks)
    except KeyError:
        try:
            tasks = [mteb.get_task(known, **part)]
        except (KeyError, ValueError):
            raise ConfigurationError(
                f"tasks: mteb has no benchmark or task '{name}'; try code_search, {', '.join(KNOWN_AS)} or NanoBEIR"
            ) from None
    for task in tasks:
        for leaf in leaves(task):
            if not isinstance(leaf, AbsTaskRetrieval):
                raise ConfigurationError(
                    f"tasks: {name}: expected retrieval tasks, but {leaf.metadata.name} is of type {leaf.metadata.type}"
                )
    return tasks


def leaves(task: AbsTask) -> list[AbsTask]:
    """Return the tasks that a task consists of, such as the twelve forums of CQADupstack; usually only itself."""
    return [*task.metadata.tasks] if isinstance(task, AbsTaskAggregate) else [task]


class Watched:
    """A loaded task that records its scores by query; mteb itself keeps only their mean."""

    def __init__(self, task: AbsTaskRetrieval):
        self.task = task
        self._scores: dict[tuple[str, str], dict[str, float]] = {}  # by subset and split
        original = task.task_specific_scores

        def watch(scores: dict, qrels: dict, results: dict, hf_split: str, hf_subset: str) -> dict:
            self._scores[hf_subset, hf_split] = {query: of_query[METRIC] for query, of_query in scores.items()}
            return original(scores, qrels, results, hf_split, hf_subset)

        task.task_specific_scores = watch
        task.load_data()
        task.convert_v1_dataset_format_to_v2(None)

    def found(self) -> Iterator[Part]:
        """Yield the parts with their scores, after mteb has evaluated the task."""
        several = len({split for _, split in self._scores}) > 1
        for (subset, split), scores in self._scores.items():
            parts = self.task.metadata.name, subset if subset != "default" else "", split if several else ""
            documents = len(self.task.dataset[subset][split]["corpus"])
            yield Part(" ".join(part for part in parts if part), documents, scores)

    def texts(self, queries: bool) -> Iterator[str]:
        """Yield all queries, or all documents, in the form that mteb gives to a model."""
        for subset in self.task.dataset.values():
            for split in subset.values():
                rows = split["queries" if queries else "corpus"]
                titled = not queries and "title" in rows.column_names
                for row in rows:
                    yield f"{row['title']} {row['text']}".strip() if titled and row["title"] else row["text"]
