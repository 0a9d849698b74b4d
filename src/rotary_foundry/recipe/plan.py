"""The plan: what a recipe does at every token.

A run's position is one integer, the number of token *slots* it has consumed (rows × row length). A plan is a tuple of
segments. Each segment has one row length, batch size, objective and mixture. `Plan.at(token)` depends only on the
segments. `recipe/compilation.py` makes a plan from a recipe. There are three decisions:

- An update that starts at token t has the values of t, so the first update of a warm-up from zero has learning rate 0.
- A boundary belongs to the next segment; the end of the plan belongs to the last one.
- A rollback turns a plan into another plan; several rollbacks are applied one after the other (`Plan.after`).
"""

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from rotary_foundry.recipe.knobs import KnobSchedule
from rotary_foundry.recipe.schedules import piecewise_linear, warmup_stable_decay


@dataclass(frozen=True)
class Rollback:
    """A decided rollback: one line of a run's `rollbacks.jsonl`."""

    trigger: str  # at, plateau, spike or non_finite
    why: str  # the reason, in numbers
    token: int  # at which it was decided; the tokens from `to_token` to here are abandoned
    to_token: int
    lr: float | None  # new peak, from `to_token` on, of the stages that contain abandoned tokens; None: unchanged
    weight_decay: float | None  # new value from `to_token` on; None: unchanged
    data: str  # replay: the same rows again; advance: those after the abandoned ones


@dataclass(frozen=True)
class LearningRate:
    """A stage's learning rate: warm-up, constant, decay; or lines between the points of `schedule`."""

    peak: float
    start_token: int
    end_token: int
    warmup: int  # tokens
    decay: int  # tokens
    decay_shape: str
    alpha_f: float
    schedule: tuple[tuple[int, float], ...] = ()  # (tokens of the stage, factor of the peak)

    @property
    def turns(self) -> list[int]:
        """Return the token at which the warm-up ends, or the tokens of the points of `schedule`."""
        return [self.start_token + tokens for tokens, _ in self.schedule or ((self.warmup, 1.0),)]

    def at(self, token: int) -> float:
        """Return the learning rate of an update that starts at `token`."""
        elapsed, total = token - self.start_token, self.end_token - self.start_token
        if self.schedule:
            return self.peak * piecewise_linear(elapsed, self.schedule)
        return self.peak * warmup_stable_decay(elapsed, total, self.warmup, self.decay, self.decay_shape, self.alpha_f)


@dataclass(frozen=True)
class Segment:
    """`updates` updates of `rows` rows of `row_length` tokens."""

    stage: str
    stage_index: int
    updates: int
    rows: int
    row_length: int  # tokens
    start_token: int
    start_update: int  # counted from the start of the run
    start_row: int  # rows of the stage's order before the segment: drawn in the stage, or skipped by a rollback
    objective: dict[str, Any]  # as in the recipe
    knobs: dict[str, KnobSchedule]
    learning_rate: LearningRate
    optimizer: dict[str, Any]  # the arguments of the optimizer that a stage may change
    mixture: dict[str, float] | None

    @property
    def weight_decay(self) -> float:
        return self.optimizer["weight_decay"]

    @property
    def tokens_per_update(self) -> int:
        return self.rows * self.row_length

    @property
    def end_token(self) -> int:
        return self.start_token + self.updates * self.tokens_per_update

    def updates_before(self, token: int) -> int:
        """Return how many of the segment's updates end at or before a token."""
        return max(0, min(self.updates, (token - self.start_token) // self.tokens_per_update))

    def split(self, token: int) -> tuple["Segment", "Segment"]:
        """Split the segment at the last update boundary at or before `token`; either part may be empty."""
        done = self.updates_before(token)
        tail = replace(
            self,
            updates=self.updates - done,
            start_token=self.start_token + done * self.tokens_per_update,
            start_update=self.start_update + done,
            start_row=self.start_row + done * self.rows,
        )
        return replace(self, updates=done), tail

    def knobs_at(self, token: int) -> dict[str, float]:
        """Return the value of every knob for an update that starts at `token`."""
        return {name: schedule.at(token) for name, schedule in self.knobs.items()}

    def knobs_of_row(self, position: int) -> dict[str, float]:
        """Return the value of every knob for a row of this segment, by its position in the stage's order."""
        update = (position - self.start_row) // self.rows
        return self.knobs_at(self.start_token + update * self.tokens_per_update)

    def knobs_to_json(self) -> dict[str, float | list[float]]:
        """Return every knob's value, or its start and end values if it moves."""
        ends = {name: [knob.at(self.start_token), knob.at(self.end_token)] for name, knob in self.knobs.items()}
        return {name: first if first == last else [first, last] for name, (first, last) in ends.items()}

    def to_json(self) -> dict:
        """Return the segment as plain JSON types."""
        return {
            "stage": self.stage,
            "updates": self.updates,
            "rows": self.rows,
            "row_length": self.row_length,
            "start_token": self.start_token,
            "end_token": self.end_token,
            "objective": self.objective,
            "knobs": self.knobs_to_json(),
            "lr_start": self.learning_rate.at(self.start_token),
            "lr_end": self.learning_rate.at(self.end_token),
            **_as_json(self.optimizer),
            "mixture": self.mixture,
        }


@dataclass(frozen=True)
class Position:
    """All values that the plan gives for a token."""

    token: int
    stage: str
    segment: int  # index
    update: int  # number of the run's updates that end at or before the token
    rows: int
    row_length: int
    knobs: dict[str, float]
    lr: float
    max_lr: float  # the stage's peak, to which the decoupled weight decay is relative
    optimizer: dict[str, Any]  # the arguments of the optimizer that a stage may change
    rows_drawn_in_stage: int  # position in the stage's order of rows at which the next update begins

    @property
    def weight_decay(self) -> float:
        return self.optimizer["weight_decay"]

    def to_json(self) -> dict:
        """Return the position as plain JSON types."""
        shown = asdict(self)
        del shown["max_lr"]
        knobs, optimizer = shown.pop("knobs"), shown.pop("optimizer")
        return shown | knobs | _as_json(optimizer)


@dataclass(frozen=True)
class Plan:
    """A compiled recipe: plain data."""

    name: str
    segments: tuple[Segment, ...]  # the kept trajectory
    abandoned: tuple[Segment, ...] = ()  # the segments that rollbacks abandoned

    @property
    def total_tokens(self) -> int:
        return self.segments[-1].end_token

    @property
    def total_updates(self) -> int:
        return self.segments[-1].start_update + self.segments[-1].updates

    @property
    def stage_ends(self) -> dict[str, int]:
        """Return the token at which each stage ends, by name, in order."""
        return {segment.stage: segment.end_token for segment in self.segments}

    def segment_at(self, token: int) -> Segment:
        """Return the segment of the update that starts at `token`; at the end of the plan, the last segment."""
        return self.segments[self._index_at(token)]

    def at(self, token: int) -> Position:
        """Return the position at `token`.

        Raises:
            ValueError: `token` is not in 0 … total_tokens.
        """
        index = self._index_at(token)
        segment = self.segments[index]
        done = segment.updates_before(token)
        return Position(
            token=token,
            stage=segment.stage,
            segment=index,
            update=segment.start_update + done,
            rows=segment.rows,
            row_length=segment.row_length,
            knobs=segment.knobs_at(token),
            lr=segment.learning_rate.at(token),
            max_lr=segment.learning_rate.peak,
            optimizer=segment.optimizer,
            rows_drawn_in_stage=segment.start_row + done * segment.rows,
        )

    def boundary_before(self, token: int) -> int:
        """Return the last token at or before `token` at which an update begins or the plan ends."""
        segment = self.segment_at(min(token, self.total_tokens))
        return segment.start_token + segment.updates_before(token) * segment.tokens_per_update

    def boundary_after(self, token: int) -> int:
        """Return the first token at or after `token` at which an update ends."""
        before = self.boundary_before(token)
        return before if before == token else before + self.segment_at(token).tokens_per_update

    def token_after(self, updates: int) -> int:
        """Return the token at which the run's first `updates` updates end, as if the last segment had no end."""
        segment = next(
            (each for each in self.segments if each.start_update + each.updates >= updates), self.segments[-1]
        )
        return segment.start_token + (updates - segment.start_update) * segment.tokens_per_update

    def between(self, start: int, end: int) -> tuple[Segment, ...]:
        """Return the segments between two update boundaries, cut at the boundaries."""
        cut = (segment.split(start)[1].split(end)[0] for segment in self.segments)
        return tuple(segment for segment in cut if segment.updates)

    def after(self, rollbacks: Iterable[Rollback]) -> "Plan":
        """Apply these rollbacks one after the other. A set one (`at`) is applied only if it is among them."""
        plan = self
        for rollback in rollbacks:
            plan = plan.rolled_back(rollback)
        return plan

    def rolled_back(self, rollback: Rollback) -> "Plan":
        """Return the plan after a rollback: unchanged up to `to_token`, and changed after it."""
        abandoned = self.between(rollback.to_token, rollback.token)
        stages = {segment.stage for segment in abandoned}
        again = self.between(rollback.to_token, self.total_tokens)
        if rollback.lr is not None:
            again = tuple(
                replace(segment, learning_rate=replace(segment.learning_rate, peak=rollback.lr))
                if segment.stage in stages
                else segment
                for segment in again
            )
        if rollback.weight_decay is not None:
            decay = {"weight_decay": rollback.weight_decay}
            again = tuple(replace(segment, optimizer=segment.optimizer | decay) for segment in again)
        if rollback.data == "advance":
            again = tuple(_past_the_rows_of(abandoned, again))
        return Plan(self.name, self.between(0, rollback.to_token) + again, self.abandoned + abandoned)

    def to_json(self) -> dict:
        """Return the plan as plain JSON types."""
        return {
            "name": self.name,
            "total_tokens": self.total_tokens,
            "segments": [segment.to_json() for segment in self.segments],
            "abandoned": [segment.to_json() for segment in self.abandoned],
        }

    def _index_at(self, token: int) -> int:
        if not 0 <= token <= self.total_tokens:
            raise ValueError(f"token {token:_} is outside the plan, which has {self.total_tokens:_}")
        starts = [segment.start_token for segment in self.segments]
        return bisect.bisect_right(starts, token) - 1


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _past_the_rows_of(abandoned: Iterable[Segment], again: Iterable[Segment]) -> Iterator[Segment]:
    """Yield the segments of `again`; in each stage, their rows start after the last row that `abandoned` drew."""
    next_row: dict[str, int] = {}
    for segment in abandoned:
        next_row[segment.stage] = max(
            next_row.get(segment.stage, 0), segment.start_row + segment.updates * segment.rows
        )
    for segment in again:
        if segment.stage in next_row:
            segment = replace(segment, start_row=next_row[segment.stage])
            next_row[segment.stage] += segment.updates * segment.rows
        yield segment
