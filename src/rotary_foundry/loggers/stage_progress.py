"""StageProgress: print a line every `console_log_interval`, and two bars below: one for the recipe, one for the stage.

- Composer's ProgressBarLogger and ConsoleLogger are not used. The first also writes bars to files, and the second
  prints a line for every key. Neither shows stages or the remaining time.
- It is a logger, so it shows the values that RunRecords logs. Loss and learning rate are those of the update in the
  same line of `metrics.jsonl`. Tokens per second and MFU are over all updates since the previous line, with the update
  times of the records (throughput.py).
- The remaining time is computed from the plan's remaining tokens and the rate of the last updates of this stage,
  including evaluations and checkpoints. Later stages have longer rows and another rate, so it says "at this rate".
- The bars are rich's. They are drawn after an update and not by a thread, and are removed when training ends. Other
  output appears above them. Without a terminal there are no bars, no colours and no control characters.

Prints on rank 0 only. Uses FIT_START, BATCH_START, BATCH_END, EVAL_END and CLOSE.
"""

import sys
import time
from collections import deque
from typing import Any, ClassVar

from composer.core import Event, State
from composer.loggers import Logger, LoggerDestination
from composer.utils import create_interval_scheduler, dist
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from rotary_foundry.recipe import Plan
from rotary_foundry.utils.wording import number

RECENT_UPDATES = 50  # the remaining time is computed from their rate
AT_THIS_RATE = " at this rate"
REDRAWN = 0.2  # seconds between two drawings of the bars
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


class StageProgress(LoggerDestination):
    """Shows the progress through the plan, on rank 0.

    Args:
        plan: the current plan.
        console_log_interval: such as 10ba or 1_000_000tok; the first and the last update also print a line.
        progress_bar: whether to draw bars on a terminal.
    """

    def __init__(self, plan: Plan, console_log_interval: str, progress_bar: bool):
        self.plan = plan
        self.due = create_interval_scheduler(
            console_log_interval, checkpoint_events=False, final_events={Event.BATCH_END}
        )
        self.progress_bar = progress_bar
        self.latest: dict[str, Any] = {}
        self.since: list[dict[str, Any]] = []  # values of each update since the last line
        self.recent: deque[tuple[float, int]] = deque(maxlen=RECENT_UPDATES)  # times, and the token clock at each
        self.stage = ""
        self.first = True

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.latest.update(metrics)

    def fit_start(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() == 0 and self.progress_bar and sys.stdout.isatty():
            Bars.show(self.plan, state.timestamp.token.value)

    def batch_start(self, state: State, logger: Logger) -> None:
        if state.dataloader_label != self.stage:
            self.stage = state.dataloader_label
            self.recent.clear()
            self.recent.append((time.monotonic(), state.timestamp.token.value))

    def batch_end(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() != 0:
            return
        token = state.timestamp.token.value
        self.recent.append((time.monotonic(), token))
        self.since.append(self.latest)
        self.latest = {}
        if self.due(state, Event.BATCH_END) or self.first:
            print(self._line(token), flush=True)
            self.since = []
        self.first = False
        if Bars.shown is not None:
            Bars.shown.draw(token, self._left(token))

    def eval_end(self, state: State, logger: Logger) -> None:
        label = state.dataloader_label
        if dist.get_global_rank() == 0:
            loss, *others = state.model.objectives[label].metrics
            said = [f"held-out loss {self.latest[f'eval/{label}/{loss.name}']:.3f}"]
            said += [f"{metric.title.lower()} {self.latest[f'eval/{label}/{metric.name}']:.1%}" for metric in others]
            print(f"{label:8}  {', '.join(said)}", flush=True)

    def close(self, state: State, logger: Logger) -> None:
        Bars.take_off()

    def _line(self, token: int) -> str:
        last = self.since[-1]
        tokens = [update["data/real_tokens"] for update in self.since]
        seconds = [of / update["throughput/tokens_per_sec"] for of, update in zip(tokens, self.since, strict=True)]
        shares = [update.get("throughput/device/mfu") for update in self.since]
        mfu = "MFU n/a"
        if None not in shares:
            weighted = sum(share * its for share, its in zip(shares, seconds, strict=True))
            mfu = f"MFU {weighted / sum(seconds):.1%}"
        line = (
            f"{self.stage:8}  {short(token)}/{short(self.plan.total_tokens)} tok  loss {last['loss/train']:.3f}  "
            f"lr {number(last['recipe/lr'])}  {short(sum(tokens) / sum(seconds))} tok/s  {mfu}  ETA {self._left(token)}"
        )
        if Bars.shown is not None and len(line) > Bars.shown.progress.console.width:
            line = line.removesuffix(AT_THIS_RATE)  # the bar shows it
        return line

    def _left(self, token: int) -> str:
        """Format the remaining time at the recent rate."""
        (began, from_token), (ended, _) = self.recent[0], self.recent[-1]
        return f"{duration((self.plan.total_tokens - token) * (ended - began) / (token - from_token))}" + AT_THIS_RATE


class Bars:
    """One bar for the recipe and one for the stage, at the end of the terminal."""

    shown: ClassVar["Bars | None"] = None

    def __init__(self, plan: Plan, token: int):
        self.plan = plan
        self.drawn = 0.0
        self.progress = Progress(
            TextColumn("{task.description:8}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:5.1f}%"),
            TextColumn("{task.fields[says]}"),
            console=Console(file=sys.stdout, force_terminal=True, highlight=False),
            auto_refresh=False,
            transient=True,
            expand=True,
        )
        self.recipe = self.progress.add_task("recipe", total=plan.total_tokens, completed=token, says="")
        self.stage = self.progress.add_task(plan.segment_at(token).stage, says="")
        self.progress.start()
        self.progress.console.show_cursor(True)  # rich hides it, and a killed process could not bring it back

    @classmethod
    def show(cls, plan: Plan, token: int) -> None:
        cls.take_off()
        cls.shown = cls(plan, token)

    @classmethod
    def take_off(cls) -> None:
        """Remove the bars, if they are shown, from any thread, so that an error is the last output on the terminal."""
        if cls.shown is not None:
            cls.shown.progress.stop()
            cls.shown = None

    def draw(self, token: int, left: str) -> None:
        """Draw the progress of recipe and stage, unless it was drawn a moment ago."""
        if time.monotonic() - self.drawn < REDRAWN:
            return
        segment = self.plan.segment_at(token)
        start = next(other.start_token for other in self.plan.segments if other.stage == segment.stage)
        self.progress.update(self.recipe, completed=token, says=left)
        self.progress.update(
            self.stage,
            description=segment.stage,
            total=self.plan.stage_ends[segment.stage] - start,
            completed=token - start,
            says=f"{segment.rows:,} rows of {segment.row_length:,}",
        )
        self.progress.refresh()
        self.drawn = time.monotonic()


def short(count: float) -> str:
    """Format a number of tokens in four digits: 950.3K, 2.019T."""
    for size, unit in UNITS:
        if count >= 0.99995 * size:
            return f"{count / size:#.4g}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """Format seconds as 3d04h, 4h05m, 5m06s or 7s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
