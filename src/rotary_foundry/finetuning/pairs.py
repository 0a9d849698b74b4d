"""What retrieval is trained on: a query, the document that answers it, and, if there are any, documents that do not.

The columns are sentence-transformers' own: `query`, `positive`, then `negative`, or `negative_1`, `negative_2`, … For
distillation they are PyLate's: `query`, `documents` (a list of texts) and `scores` (a teacher's from 0 to 1, one for
each; the loss scales the student's so). Other columns are dropped. Without data, the pairs are those of code_search.py.
"""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.wording import one_line

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PAIR, DISTILLATION = ("query", "positive"), ("query", "documents", "scores")
CHUNK = 1000  # texts that are tokenised at a time
FORMATS = (".jsonl", ".json", ".csv", ".parquet")


def read_pairs(data: str | None, max_pairs: int | None, distillation: bool = False) -> "Dataset":
    """The training rows, with the columns that are trained on and no other.

    Args:
        data: a JSONL, CSV or Parquet file, or a directory saved by `datasets`; none: the code search set.
        max_pairs: take no more than the first so many; none: all.
        distillation: whether `documents` and `scores` will do in the place of `positive`.

    Raises:
        DataError: nothing there that can be read, a column is missing (those there are named), no row, or a row without
            a text.
        ConfigurationError: max_pairs is not from 1 on.
    """
    from datasets import Dataset

    if max_pairs is not None and max_pairs < 1:
        raise ConfigurationError(f"max_pairs: a number from 1 on is wanted, not {max_pairs}")
    if data is None:
        from rotary_foundry.finetuning.code_search import code_search_pairs

        pairs = code_search_pairs("train")
        rows = Dataset.from_list([{"query": pair.query, "positive": pair.document} for pair in pairs])
    else:
        rows = _with_columns(_read(Path(data)), data, distillation)
    if not len(rows):
        raise DataError(f"{data}: there is not one row in it")
    rows = rows.select(range(min(max_pairs or len(rows), len(rows))))
    for column in rows.column_names:
        for number, value in enumerate(rows[column], 1):
            if problem := _problem(column, value):
                raise DataError(f"{data}: row {number}: column '{column}' {problem}")
        if column == "scores":
            _check_scores(rows, data)
    return rows


def is_distillation(rows: "Dataset") -> bool:
    return "scores" in rows.column_names


def texts(rows: "Dataset", queries: bool) -> list[str]:
    """All queries of the rows, or all their documents."""
    if queries:
        return rows["query"][:]
    if is_distillation(rows):
        return [text for documents in rows["documents"] for text in documents]
    return [text for column in rows.column_names[1:] for text in rows[column]]


def count_too_long(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str], length: int) -> tuple[int, int]:
    """How many texts have more tokens than `length`, special tokens included; and how many texts there are."""
    over = count = 0
    texts = iter(texts)
    while chunk := list(islice(texts, CHUNK)):
        encoded = tokenizer(chunk, truncation=False, verbose=False, return_attention_mask=False)
        over += sum(len(tokens) > length for tokens in encoded["input_ids"])
        count += len(chunk)
    return over, count


def _read(path: Path) -> "Dataset":
    import pandas
    from datasets import Dataset, DatasetDict, load_from_disk
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    try:
        if path.is_dir():
            loaded = load_from_disk(str(path))
            if isinstance(loaded, DatasetDict):
                if "train" not in loaded:
                    raise DataError(f"{path}: there is no split 'train' in it; there are {', '.join(loaded)}")
                loaded = loaded["train"]
            return loaded
        if path.suffix not in FORMATS:
            raise DataError(f"{path}: a file ending in {', '.join(FORMATS)} or a directory of `datasets` is wanted")
        if not path.stat().st_size:
            raise DataError(f"{path}: the file is empty")
        if path.suffix == ".csv":
            return Dataset.from_pandas(pandas.read_csv(path, dtype=str, keep_default_na=False))  # NA and 007 are texts
        return (Dataset.from_parquet if path.suffix == ".parquet" else Dataset.from_json)(str(path))
    except DataError:
        raise
    except Exception as error:  # each format's library has exceptions of its own
        cause = error.__cause__ or error
        raise DataError(f"{path}: cannot be read: {one_line(cause)}") from error


def _with_columns(rows: "Dataset", path: str, distillation: bool) -> "Dataset":
    there = rows.column_names
    if distillation and set(DISTILLATION) <= set(there):
        return rows.select_columns(list(DISTILLATION))
    if missing := [column for column in PAIR if column not in there]:
        other = f", or {', '.join(DISTILLATION)} for distillation" if distillation else ""
        raise DataError(
            f"{path}: no column '{missing[0]}'; there are {', '.join(there)}. Wanted are query, positive and, if there "
            f"are any, negative (or negative_1, negative_2, …){other}"
        )
    negatives = [column for column in there if column == "negative" or column.startswith("negative_")]
    return rows.select_columns([*PAIR, *negatives])


def _problem(column: str, value: Any) -> str | None:
    if column == "scores":
        return None if isinstance(value, list) and value else "is not a list of numbers"
    if column == "documents":
        whole = isinstance(value, list) and value and not any(_problem("", text) for text in value)
        return None if whole else "is not a list of texts"
    if not isinstance(value, str):
        return "has no text" if value is None else f"is not text: {value!r}"
    return None if value.strip() else "is empty"


def _check_scores(rows: "Dataset", path: str | None) -> None:
    """Batches of distillation are rectangles: every row has the same number of documents, and a score for each."""
    wanted = len(rows[0]["documents"])
    for number, (documents, scores) in enumerate(zip(rows["documents"], rows["scores"], strict=True), 1):
        if not len(documents) == len(scores) == wanted:
            raise DataError(
                f"{path}: row {number} has {len(documents)} documents and {len(scores)} scores; each row is to have as "
                f"many as the first, {wanted}"
            )
