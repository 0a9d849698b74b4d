"""StageProgress: Composer's progress bar, told which stage it is in.

Composer writes the loader's label into the bar when it makes it, once a run; ours changes with the stage. Uses
EPOCH_START, which every segment begins with.
"""

from composer.core import Callback, State
from composer.loggers import Logger, ProgressBarLogger


class StageProgress(Callback):
    """Keeps the stage's name at the head of the bar, and the bar short enough for the loss to fit behind it."""

    def epoch_start(self, state: State, logger: Logger) -> None:
        for destination in logger.destinations:
            if isinstance(destination, ProgressBarLogger) and destination.train_pbar is not None:
                bar = destination.train_pbar.pbar
                bar.bar_format = f"{state.dataloader_label:8} {{percentage:3.0f}}%|{{bar:10}}{{r_bar}}{{bar:-1b}}"
