"""The base class of the steps of a preparation.

An error in a task is written to the work folder as one line before it is raised. The executors show errors in their own
ways, and those of Ray and Slurm appear far from the user's terminal.
"""

import os
from abc import abstractmethod
from collections.abc import Iterator

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from rotary_foundry.data_prep.stage_runs import Stage
from rotary_foundry.data_prep.work import Work
from rotary_foundry.utils.errors import DataError, FoundryError


class Step(PipelineStep):
    """The base class of our steps: one call of `do` for each task."""

    type = "Rotary Foundry"

    def __init__(self, work: Work, tasks: int) -> None:
        super().__init__()
        self.work = work
        self.tasks = tasks

    @abstractmethod
    def do(self, rank: int) -> None:
        """Do the work of one task.

        Raises:
            FoundryError: a problem that the user can fix.
        """

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.work.forget_error(self.name, rank)
        if int(cores := os.environ.get("DATATROVE_CPUS_PER_TASK", "-1")) > 0:  # on Slurm and on Ray
            os.environ["RAYON_NUM_THREADS"] = cores  # otherwise the tokenizer takes all cores of the node
        try:
            self.do(rank)
        except FoundryError as error:
            self.work.keep_error(self.name, rank, str(error))
            raise
        except OSError as error:
            where = error.filename or self.work.folder
            self.work.keep_error(self.name, rank, f"{where}: cannot be written: {error.strerror or error}")
            raise
        return iter(())


class After(PipelineStep):
    """Checks that all tasks of the previous stage have finished.

    Slurm splits a long stage into a chain of job arrays and waits only for the last, so an earlier one may have failed.
    """

    type, name = "Rotary Foundry", "after"

    def __init__(self, work: Work, stage: str, before: Stage) -> None:
        super().__init__()
        self.work, self.stage = work, stage
        self.before, self.tasks = before.name, before.tasks

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        self.work.forget_error(self.stage, rank)
        done = len(list((self.work.folder / "logs" / self.before / "completions").glob("*")))
        if done < self.tasks:
            error = (
                f"{self.before}: {self.tasks - done} of {self.tasks} tasks have not finished; see {self.work.folder}"
            )
            self.work.keep_error(self.stage, rank, error)
            raise DataError(error)
