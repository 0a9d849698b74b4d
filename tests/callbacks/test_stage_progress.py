"""The lines and bars of a run in progress: what they say is so, and how they look where."""

import io
import re
import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest
from composer.core import Time, Timestamp

from rotary_foundry import load_recipe
from rotary_foundry.loggers import stage_progress
from rotary_foundry.loggers.stage_progress import Bars, StageProgress, duration, short
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.utils.wording import number

STEP = 2.0  # seconds an update


@pytest.fixture
def plan():
    return compile_stages(load_recipe("yamls/main/nano.yaml"))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told to go on."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(stage_progress.time, "monotonic", lambda: now.seconds)
    yield now
    Bars.take_off()


def train(plan, clock, updates, interval="10ba", mfu=None, progress_bar=False):
    """Let a StageProgress see so many updates of a plan, as Composer and RunRecords let it."""
    progress = StageProgress(plan, interval, progress_bar)
    token = batch = 0
    before = Timestamp()
    progress.fit_start(SimpleNamespace(timestamp=before), None)
    while batch < updates:
        segment = plan.segment_at(token)
        spent = timedelta(seconds=STEP * (batch + 1))
        after = Timestamp(batch=batch + 1, token=token + segment.tokens_per_update, total_wct=spent)
        elapsed = Time(after.token.value / plan.total_tokens, "dur")
        state = SimpleNamespace(
            timestamp=before,
            previous_timestamp=before,
            dataloader_label=segment.stage,
            get_elapsed_duration=lambda elapsed=elapsed: elapsed,
        )
        progress.batch_start(state, None)
        clock.seconds += STEP
        tokens, slower = segment.tokens_per_update - 8, 1 + batch % 2
        progress.log_metrics(
            {
                "loss/train": 9.0 - after.batch.value / 1000,
                "recipe/lr": segment.learning_rate.at(token),
                "time/step": STEP / 4,  # the rest is Composer's, the loggers' and checkpoints
                "data/real_tokens": tokens,
                "throughput/tokens_per_sec": tokens / (STEP / 2 * slower),  # without evaluations
            }
            | ({} if mfu is None else {"throughput/device/mfu": mfu / slower})
        )
        before = state.timestamp = after
        token, batch = after.token.value, after.batch.value
        progress.batch_end(state, None)
    return progress


def test_a_line_comes_with_the_first_update_with_every_interval_and_with_the_last(plan, clock, capsys):
    train(plan, clock, plan.total_updates, interval="100ba")
    lines = capsys.readouterr().out.splitlines()
    tokens = [line.split()[1] for line in lines]
    ends = [1, *range(100, plan.total_updates, 100), plan.total_updates]
    at = {position.update: position.token for position in map(plan.at, _boundaries(plan))}
    assert tokens == [f"{short(at[end])}/{short(plan.total_tokens)}" for end in ends]


def test_a_line_may_come_every_so_many_seconds_of_training(plan, clock, capsys):
    train(plan, clock, 20, interval=f"{round(5 * STEP)}sec")
    tokens = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    at = {position.update: position.token for position in map(plan.at, _boundaries(plan))}
    assert tokens == [f"{short(at[end])}/{short(plan.total_tokens)}" for end in (1, 5, 10, 15, 20)]


def _boundaries(plan):
    token = 0
    while token < plan.total_tokens:
        yield token
        token += plan.segment_at(token).tokens_per_update
    yield token


def test_a_line_has_the_last_updates_loss_and_the_rates_since_the_line_before(plan, clock, capsys):
    train(plan, clock, 20, mfu=0.4123)  # every other update takes twice as long
    line = capsys.readouterr().out.splitlines()[-1]
    rows = plan.segments[0]
    assert rows.updates > 20
    tokens_per_second = (rows.tokens_per_update - 8) / (STEP / 2 * 1.5)
    lr = rows.learning_rate.at(19 * rows.tokens_per_update)
    assert f"loss {9.0 - 20 / 1000:.3f}  lr {number(lr)}  " in line
    assert f"{short(tokens_per_second)} tok/s  MFU {0.4123 / 1.5:.1%}" in line
    left = (plan.total_tokens - 20 * rows.tokens_per_update) / rows.tokens_per_update * STEP
    assert line.endswith(f"ETA {duration(left)} at this rate")


def test_the_time_left_is_told_by_the_updates_of_this_stage_alone(plan, clock, capsys):
    updates = plan.at(plan.stage_ends["pretrain"]).update + 1
    train(plan, clock, updates, interval="1ba")
    line = capsys.readouterr().out.splitlines()[-1]
    segment = plan.segment_at(plan.stage_ends["pretrain"])
    left = plan.total_tokens - plan.stage_ends["pretrain"] - segment.tokens_per_update
    assert line.startswith("extend")
    assert line.endswith(f"ETA {duration(left / segment.tokens_per_update * STEP)} at this rate")
    assert "MFU n/a" in line


def test_without_a_terminal_there_are_lines_and_nothing_else(plan, clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as some CI services set it
    train(plan, clock, 20, progress_bar=True).close(None, None)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 3
    assert all(character.isprintable() for line in printed.splitlines() for character in line)


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_two_bars_which_are_gone_in_the_end(plan, clock, monkeypatch, no_color):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    updates = plan.at(plan.stage_ends["pretrain"]).update + 2  # in stage 2
    progress = train(plan, clock, updates, progress_bar=True)
    drawn = terminal.getvalue()
    bare = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    *_, recipe, stage = [line for line in re.split(r"[\r\n]+", bare) if line.strip()]
    token = [*_boundaries(plan)][updates]
    assert recipe.startswith("recipe") and f"{token / plan.total_tokens:.1%}" in recipe and "at this rate" in recipe
    end = plan.stage_ends["pretrain"]
    assert stage.startswith("extend")
    assert f"{(token - end) / (plan.stage_ends['extend'] - end):.1%}" in stage
    assert "2 rows of 8,192" in stage
    assert bool(re.search(r"\x1b\[[0-9;]*[39][0-7]m", drawn)) != bool(no_color)
    progress.close(None, None)
    assert Bars.shown is None
    assert terminal.getvalue().endswith("\x1b[2K")  # the lines of the bars are wiped


def test_numbers_are_short_and_never_rounded_up_into_five_digits():
    assert [short(count) for count in (256, 999.4, 999.97, 14336, 999_960, 2_018_993_373_184)] == [
        "256",
        "999",
        "1.000K",
        "14.34K",
        "1.000M",
        "2.019T",
    ]
    assert [number(lr) for lr in (0, 8e-4, 4.5421e-5)] == ["0", "8e-4", "4.54e-5"]
    assert [duration(seconds) for seconds in (6.6, 306, 14_700, 273_600)] == ["7s", "5m06s", "4h05m", "3d04h"]
