"""StageProgress: Composer's progress bar, told which stage it is in.

Composer writes the loader's label into the bar when it makes it, once a run; ours changes with the stage. Uses
EPOCH_START, which every segment begins with.
"""

from composer.core import Callback, State
from composer.loggers import Logger, ProgressBarLogger


class StageProgress(Callback):
    """Keeps the stage's name at the head of the progress bar."""

    def __init__(self) -> None:
        self.shown: str | None = None

    def epoch_start(self, state: State, logger: Logger) -> None:
        bars = [found for found in logger.destinations if isinstance(found, ProgressBarLogger) and found.train_pbar]
        for bar in bars:
            label = f"{state.dataloader_label:15}"
            if self.shown is not None:
                bar.train_pbar.pbar.bar_format = bar.train_pbar.pbar.bar_format.replace(self.shown, label, 1)
            self.shown = label
