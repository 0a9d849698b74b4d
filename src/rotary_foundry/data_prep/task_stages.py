"""The stages of a preparation that a corpus with tasks has in addition to those of its texts.

    examples  read and check every labelled task; collect the hashes of all held-out texts
    held-out  leave out of training the documents that a task holds out
    labelled  encode and write the labelled tasks, without the examples that a task holds out

One process reads a labelled task, twice, and holds its examples in memory. As many tasks are prepared at the same time
as there are workers.
"""

import numpy as np

from rotary_foundry.data_prep.duplicates import tasks_for
from rotary_foundry.data_prep.step import Step
from rotary_foundry.data_prep.task_examples import (
    document_hashes,
    held_out_documents,
    keep_held_out,
    read_held_out,
    read_task,
    text_hashes,
)
from rotary_foundry.data_prep.task_rows import LABELLED, write_task
from rotary_foundry.data_prep.work import HELD_OUT, Work


class CollectHeldOut(Step):
    """Collect the hashes of held-out texts: one task for each labelled task and for each source."""

    name = "examples"

    def __init__(self, work: Work) -> None:
        super().__init__(work, len(work.config.labelled) + len(work.config.sources))

    def do(self, rank: int) -> None:
        labelled, sources = self.work.config.labelled, list(self.work.config.sources)
        if rank < len(labelled):
            name, task = list(labelled.items())[rank]
            examples, _ = read_task(name, task, self.work.config.validation)
            keep_held_out(self.work, rank, text_hashes(task, examples["validation"]))
        else:
            files = self.work.files_of(sources[rank - len(labelled)], "validation")
            keep_held_out(self.work, rank, np.concatenate([document_hashes(self.work, file) for file in files]))


class DropHeldOut(Step):
    """Find the training documents that a task holds out."""

    name = "held-out"

    def __init__(self, work: Work) -> None:
        super().__init__(work, tasks_for(len(work.tasks)))

    def do(self, rank: int) -> None:
        held_out = read_held_out(self.work)
        pairs = [np.zeros((0, 2), np.uint32)]
        for file in range(rank, len(self.work.tasks), self.tasks):
            rows = held_out_documents(self.work, file, held_out)
            pairs.append(np.stack([np.full(len(rows), file), rows], axis=1).astype(np.uint32))
        folder = self.work.folder / "duplicates"
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{HELD_OUT}-{rank:05d}.npy", np.concatenate(pairs))


class WriteLabelled(Step):
    """Encode, pack and write the labelled tasks."""

    name = LABELLED

    def __init__(self, work: Work) -> None:
        super().__init__(work, len(work.config.labelled))

    def do(self, rank: int) -> None:
        write_task(self.work, rank)
