"""Read the examples of a labelled task, and find those that a task holds out.

An example is dropped from training if each of its texts is in the held-out split of any task, its own included. For a
question about a passage, only the passage is compared; choices never are. The texts of masked_lm are its documents.
Whole texts are compared, by a hash that ignores white space, so a single paragraph of a held-out document is not found.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from rotary_foundry.data_prep.labelled.examples import read_split, texts_of
from rotary_foundry.data_prep.labelled.labelled_example import Example
from rotary_foundry.data_prep.labelled.labels import Labels, as_number
from rotary_foundry.data_prep.task_config import TaskConfig
from rotary_foundry.data_prep.work import SPLITS, Work, read_documents
from rotary_foundry.utils.errors import DataError


def read_task(name: str, task: TaskConfig, share: float) -> tuple[dict[str, list[Example]], Labels]:
    """Read the examples of a task by split, and number its labels.

    Args:
        name: the name of the task.
        task: the task, with the path of its data.
        share: the share of examples to hold out, by the hash of their texts, if the task names no validation split.

    Raises:
        DataError: a split is empty, the data are invalid, or a label is missing or unknown; it names the file and row.
    """
    data = task.data
    found = {"train": read_split(data, data.train), "validation": []}
    for split in data.validation:
        found["validation"] += read_split(data, split)
    if not data.validation:
        every, found = found["train"], {split: [] for split in SPLITS}
        for example in every:
            is_kept = _hash("\n".join(compared(task, example)), example) >= share * 2**64
            found["train" if is_kept else "validation"].append(example)
        for split in SPLITS:
            if not found[split]:
                raise DataError(
                    f"tasks.{name}: none of its {len(every)} examples is in the {split} split with validation={share}; "
                    "add examples, change 'validation', or name a split under data.validation"
                )
    labels = Labels.of(name, task.type, task.labels, found["train"])
    for split in SPLITS:
        for example in found[split]:
            if task.kind == "classification":
                labels.number(example.label, example.where)
            elif task.kind == "regression":
                as_number(example.label, example.where)
    return found, labels


def compared(task: TaskConfig, example: Example) -> tuple[str, ...]:
    """Return the texts of an example that must all be held out for it to be dropped from training."""
    if task.kind == "choice":
        return example.text.before + example.text.after
    return texts_of(task.data, example)[-1:] if task.kind == "answer" else texts_of(task.data, example)


def text_hashes(task: TaskConfig, examples: Iterable[Example]) -> np.ndarray:
    """Return the hashes of all compared texts, uint64, sorted."""
    return np.unique(np.array([_hash(text, one) for one in examples for text in compared(task, one)], np.uint64))


def is_held_out(task: TaskConfig, example: Example, held_out: np.ndarray) -> bool:
    """Return whether each compared text of an example is among the hashes `held_out`, which are sorted."""
    return bool(_among(np.array([_hash(text, example) for text in compared(task, example)], np.uint64), held_out).all())


def _hash(text: str, example: Example) -> int:
    try:
        return _document_hash(text)
    except UnicodeEncodeError:
        raise DataError(f"{example.where}: a text has half of a surrogate pair; correct it, or leave it out") from None


def _document_hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(" ".join(text.split()).encode()).digest()[:8])


def _among(hashes: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    if not len(held_out):
        return np.zeros(len(hashes), bool)
    return held_out[np.minimum(np.searchsorted(held_out, hashes), len(held_out) - 1)] == hashes


def document_hashes(work: Work, file: int) -> np.ndarray:
    """Return the hashes of the texts in a document file of the work folder, uint64 `[documents]`, in their order."""
    texts = (text for batch in read_documents(work.file(file)) for _, text, _ in batch)
    return np.array([_document_hash(text) for text in texts], np.uint64)


def held_out_documents(work: Work, file: int, held_out: np.ndarray) -> np.ndarray:
    """Return the sorted rows of a training document file that a task holds out and that are not duplicates."""
    found = np.flatnonzero(_among(document_hashes(work, file), held_out))
    return np.setdiff1d(found, np.concatenate([work.dropped(file, kind) for kind in ("exact", "near")]))


def keep_held_out(work: Work, number: int, hashes: np.ndarray) -> None:
    """Write the hashes of held-out texts to the work folder."""
    path = work.folder / "held_out" / f"{number:05d}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, hashes)


def read_held_out(work: Work) -> np.ndarray:
    """Read the hashes of all held-out texts, uint64, sorted."""
    files = sorted((work.folder / "held_out").glob("*.npy"))
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *map(np.load, files)]))
