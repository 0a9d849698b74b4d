"""Training and held-out pairs for the retrieval examples: code search in the standard library, or the user's JSONL."""

import argparse
import sys
from collections.abc import Callable

from datasets import Dataset

from rotary_foundry.evaluation.code_search import code_search_pairs
from rotary_foundry.utils.errors import REFUSED, FoundryError, print_error

HELD_OUT = 200  # pairs at most


def read_arguments(description: str, **defaults: float) -> argparse.Namespace:
    """Parse the arguments that the examples share: MODEL OUT [--data] [--epochs] [--batch-size] [--lr] …

    Args:
        defaults: the default of every option except `data`, by name; a given value is converted to its type.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory that `rotary-foundry export` wrote, or any encoder's")
    parser.add_argument("out", help="the folder for the trained model")
    parser.add_argument("--data", help="JSONL with query, positive and, if you have them, negatives; else code search")
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"({default})")
    return parser.parse_args()


def run(example: Callable[[], None]) -> None:
    """Run an example; print an error that the user can fix in one line and exit with status 2, as the commands do."""
    try:
        example()
    except FoundryError as error:
        print_error(str(error))
        sys.exit(REFUSED)


def read_pairs(data: str | None) -> tuple[Dataset, Dataset]:
    """Read the pairs to train on, and the pairs to measure with.

    Args:
        data: a JSONL file, whose last tenth is held out; None: code search, with whole modules held out.

    Returns:
        Two sets with the columns `query` and `positive`, and the file's further columns, such as `negative`.
    """
    if data is not None:
        pairs = Dataset.from_json(data)
        negatives = [name for name in pairs.column_names if name.startswith("negative")]
        pairs = pairs.select_columns(["query", "positive", *negatives])
        held_out = min(HELD_OUT, max(1, len(pairs) // 10))
        return pairs.select(range(len(pairs) - held_out)), pairs.select(range(len(pairs) - held_out, len(pairs)))
    train, test = (
        Dataset.from_list([{"query": pair.query, "positive": pair.document} for pair in code_search_pairs(split)])
        for split in ("train", "test")
    )
    return train, test.select(range(HELD_OUT))


def as_retrieval(pairs: Dataset) -> tuple[dict[str, str], dict[str, str], dict[str, set[str]]]:
    """Return queries, documents and each query's right documents, by their numbers, as the evaluators take them."""
    numbers = [str(number) for number in range(len(pairs))]
    queries, documents = (dict(zip(numbers, pairs[column], strict=True)) for column in ("query", "positive"))
    return queries, documents, {number: {number} for number in numbers}
