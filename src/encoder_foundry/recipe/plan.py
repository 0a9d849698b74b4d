"""The plan: what a recipe does at every token.

A run's position is one integer, the token *slots* it has consumed (rows × row length). This module compiles a recipe
to a tuple of segments, stretches with one row length, batch size, theta and mixture, and answers `Plan.at(token)` from
nothing else. Three decisions:

- Boundaries are whole updates, counted down (`floor`): a stage never takes more tokens than it was given.
- An update that starts at token t has the values of t, so the first update of a warm-up from zero has learning rate 0.
- At a boundary the next segment holds; at the very end, the last one.
"""

import bisect
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import sqrt

from encoder_foundry.errors import ConfigurationError
from encoder_foundry.recipe.schema import Recipe, StageConfig


@dataclass(frozen=True)
class Segment:
    """`updates` updates of `rows` rows of `row_length` tokens."""

    stage: str
    stage_index: int
    updates: int
    rows: int
    row_length: int  # tokens
    start_token: int
    start_update: int  # of the whole run
    start_row: int  # rows drawn in this stage before it
    rope_theta_global: float
    weight_decay: float
    mixture: dict[str, float] | None

    @property
    def tokens_per_update(self) -> int:
        return self.rows * self.row_length

    @property
    def end_token(self) -> int:
        return self.start_token + self.updates * self.tokens_per_update


@dataclass(frozen=True)
class LearningRate:
    """Warm-up, constant, 1 - sqrt decay: lr_end + (lr_peak - lr_end)·(1 - sqrt((t - t0) / (t1 - t0)))."""

    peak: float
    start_token: int
    warmup: int  # tokens
    decay: int  # tokens
    end_token: int
    alpha_f: float

    def at(self, token: int) -> float:
        """The learning rate of an update that starts at `token`."""
        since_start = token - self.start_token
        if since_start < self.warmup:
            return self.peak * since_start / self.warmup
        decayed = token - (self.end_token - self.decay)
        if decayed <= 0:
            return self.peak
        end = self.alpha_f * self.peak
        return end + (self.peak - end) * (1 - sqrt(min(1.0, decayed / self.decay)))


@dataclass(frozen=True)
class Position:
    """Everything that a token decides."""

    token: int
    stage: str
    segment: int  # index
    update: int  # updates of the whole run that end at or before the token
    rows: int
    row_length: int
    rope_theta_global: float
    lr: float
    max_lr: float  # the stage's peak, to which the decoupled weight decay is relative
    weight_decay: float
    rows_drawn_in_stage: int


@dataclass(frozen=True)
class Plan:
    """A compiled recipe: plain data."""

    name: str
    segments: tuple[Segment, ...]
    learning_rates: tuple[LearningRate, ...]  # one a stage

    @property
    def total_tokens(self) -> int:
        return self.segments[-1].end_token

    @property
    def total_updates(self) -> int:
        return self.segments[-1].start_update + self.segments[-1].updates

    @property
    def stage_ends(self) -> dict[str, int]:
        """The token at which each stage ends, by name, in order."""
        return {segment.stage: segment.end_token for segment in self.segments}

    def segment_at(self, token: int) -> Segment:
        """The segment of the update that starts at `token`; at the very end, the last segment."""
        return self.segments[self._index_at(token)]

    def at(self, token: int) -> Position:
        """The position at `token`, which lies in 0 … total_tokens.

        Raises:
            ValueError: if it does not.
        """
        index = self._index_at(token)
        segment = self.segments[index]
        learning_rate = self.learning_rates[segment.stage_index]
        done = (token - segment.start_token) // segment.tokens_per_update
        return Position(
            token=token,
            stage=segment.stage,
            segment=index,
            update=segment.start_update + done,
            rows=segment.rows,
            row_length=segment.row_length,
            rope_theta_global=segment.rope_theta_global,
            lr=learning_rate.at(token),
            max_lr=learning_rate.peak,
            weight_decay=segment.weight_decay,
            rows_drawn_in_stage=segment.start_row + done * segment.rows,
        )

    def to_json(self) -> dict:
        """The plan as plain JSON types."""
        return {
            "name": self.name,
            "total_tokens": self.total_tokens,
            "segments": [self._segment_json(segment) for segment in self.segments],
        }

    def _segment_json(self, segment: Segment) -> dict:
        shown = asdict(segment)
        del shown["stage_index"], shown["start_update"], shown["start_row"]
        learning_rate = self.learning_rates[segment.stage_index]
        return shown | {
            "end_token": segment.end_token,
            "lr_start": learning_rate.at(segment.start_token),
            "lr_end": learning_rate.at(segment.end_token),
        }

    def _index_at(self, token: int) -> int:
        if not 0 <= token <= self.total_tokens:
            raise ValueError(f"token {token:_} is outside the plan, which has {self.total_tokens:_}")
        starts = [segment.start_token for segment in self.segments]
        return bisect.bisect_right(starts, token) - 1


def compile_plan(recipe: Recipe) -> Plan:
    """Compile a recipe to its plan.

    Raises:
        ConfigurationError: if a stage or its ramp is too short for a single update.
    """
    segments: list[Segment] = []
    learning_rates: list[LearningRate] = []
    for index, stage in enumerate(recipe.stages):
        start_token = segments[-1].end_token if segments else 0
        start_update = segments[-1].start_update + segments[-1].updates if segments else 0
        start_row = 0
        for rows, updates in _rungs(stage):
            segment = Segment(
                stage=stage.name,
                stage_index=index,
                updates=updates,
                rows=rows,
                row_length=stage.row_length,
                start_token=start_token,
                start_update=start_update,
                start_row=start_row,
                rope_theta_global=stage.rope_theta,
                weight_decay=recipe.optimizer.weight_decay,
                mixture=stage.mixture,
            )
            segments.append(segment)
            start_token, start_update = segment.end_token, start_update + updates
            start_row += updates * rows
        learning_rates.append(_learning_rate(stage, start_token - start_row * stage.row_length, start_token))
    return Plan(recipe.run_name, tuple(segments), tuple(learning_rates))


def parse_tokens(value: str, duration: int | None = None) -> int:
    """`50_000tok`, or, where a duration in tokens is given, a share of it such as `0.5dur`, in tokens.

    Raises:
        ValueError: if it is neither.
    """
    text = value.strip()
    with suppress(ValueError, OverflowError):
        if text.endswith("tok"):
            return int(text.removesuffix("tok"))
        if text.endswith("dur") and duration is not None:
            return round(float(text.removesuffix("dur")) * duration)
    raise ValueError(f"'{value}' is not a number of tokens, such as 1_000_000tok" + (" or 0.5dur" if duration else ""))


def _rungs(stage: StageConfig) -> list[tuple[int, int]]:
    """(rows, updates) of every batch size of a stage, the ramp's with equal updates."""
    tokens = parse_tokens(stage.duration)
    rungs: list[tuple[int, int]] = []
    ramp = stage.batch_size_ramp
    if ramp is not None:
        sizes = list(range(ramp.initial, stage.global_train_batch_size, ramp.increment))
        ramp_tokens = parse_tokens(ramp.duration, tokens)
        updates = ramp_tokens // (stage.row_length * sum(sizes))
        if updates < 1:
            raise ConfigurationError(
                f"stage '{stage.name}': a batch_size_ramp of {ramp_tokens:_} tokens is too short for one update at "
                f"each of its {len(sizes)} sizes, which takes {stage.row_length * sum(sizes):_}"
            )
        rungs = [(rows, updates) for rows in sizes]
        tokens -= updates * stage.row_length * sum(sizes)
    updates = tokens // (stage.row_length * stage.global_train_batch_size)
    if updates < 1:
        raise ConfigurationError(
            f"stage '{stage.name}': {max(tokens, 0):_} tokens are too short for one update of "
            f"{stage.global_train_batch_size} rows × {stage.row_length} tokens"
        )
    return [*rungs, (stage.global_train_batch_size, updates)]


def _learning_rate(stage: StageConfig, start_token: int, end_token: int) -> LearningRate:
    tokens = end_token - start_token
    return LearningRate(
        peak=stage.lr,
        start_token=start_token,
        warmup=parse_tokens(stage.t_warmup, tokens),
        decay=parse_tokens(stage.t_decay, tokens),
        end_token=end_token,
        alpha_f=stage.alpha_f,
    )
