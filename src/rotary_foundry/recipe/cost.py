"""The cost of a plan before it is run: parameters, floating-point operations, hours, memory, checkpoints.

The family's shape gives the operations of the model, counted as for MFU (PaLM, arXiv 2204.02311, appendix B). A
backward pass counts as two forward passes. Recomputation is not counted (activation checkpointing, attention's
backward), nor are the optimizer and evaluation. A padded slot counts as a token. A row counts as one document, which is
an upper limit: shorter documents have fewer pairs in attention.

Memory is computed, not measured: the ranks' share of the model, and what a forward pass keeps for the backward pass.
BESIDES is an allowance for the rest: temporary tensors of a layer and of the loss, CUDA and NCCL.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rotary_foundry.recipe.compilation import named_tokens
from rotary_foundry.recipe.plan import Plan, Segment
from rotary_foundry.recipe.schedules import parse_seconds
from rotary_foundry.recipe.schema import Recipe
from rotary_foundry.utils.errors import ConfigurationError

MOST_CHECKPOINTS = 1_000_000
BYTES_A_PARAMETER = 12  # of a checkpoint: the weight and StableAdamW's two moments, float32 each
STATE_BYTES_A_PARAMETER = 16  # these three and the gradient
WHOLE_BYTES_A_PARAMETER = 8  # the parameter and the gradient, if they stay whole during an update
GPUS_OF_A_NODE = 8

# Operations per second of one GPU in bf16 on dense matrices, from the makers' data sheets (NVIDIA prints twice as
# many, with sparsity): H100 SXM5, H200 SXM, A100 40 and 80 GB, L40S, HGX B200, and AMD's Instinct MI300X.
PEAK_FLOPS = {
    "h100": 989.4e12,
    "h200": 989.4e12,
    "a100": 312e12,
    "l40s": 362e12,
    "b200": 2250e12,
    "mi300x": 1307.4e12,
}
SLOWER = {"pcie", "nvl"}  # variants of Hopper GPUs with another peak, which PEAK_FLOPS does not list

GPU_MEMORY = {"h100": 80e9, "h200": 141e9, "a100": 80e9, "l40s": 48e9, "b200": 180e9, "mi300x": 192e9}  # bytes
BESIDES = 5e9


def peak_flops(device_name: str) -> float | None:
    """Return the dense bf16 peak (operations per second) of a GPU by torch's name for it; None if it is unknown."""
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    known = words & PEAK_FLOPS.keys()
    if len(known) != 1 or "mig" in words or (known <= {"h100", "h200"} and words & SLOWER):
        return None
    return PEAK_FLOPS[known.pop()]


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind.

    Raises:
        ConfigurationError: the number is not positive, the kind is not in PEAK_FLOPS, or the MFU not between 0 and 1.
    """

    gpus: int
    gpu: str
    mfu: float | None = None  # the share of its peak that each GPU reaches; None: unknown, and so are the hours

    def __post_init__(self):
        if self.gpu not in PEAK_FLOPS:
            raise ConfigurationError(f"--gpu: '{self.gpu}' is not known; known are {', '.join(PEAK_FLOPS)}")
        if self.gpus < 1:
            raise ConfigurationError(f"--gpus: {self.gpus} is not positive")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise ConfigurationError(f"--mfu: {self.mfu} is not a share of a GPU's peak, above 0 and at most 1")

    @property
    def nodes(self) -> int:
        return -(-self.gpus // GPUS_OF_A_NODE)

    def holds(self, size: float) -> bool:
        """Return whether a GPU's memory holds `size` bytes and the allowance BESIDES."""
        return size + BESIDES <= GPU_MEMORY[self.gpu]

    def hours(self, flops: float) -> float | None:
        """Return the hours that the GPUs take for `flops` operations; None if their MFU is not known."""
        return None if self.mfu is None else flops / (self.gpus * PEAK_FLOPS[self.gpu] * self.mfu) / 3600


@dataclass(frozen=True)
class Cost:
    """The cost of a plan, including the work that a rollback abandons."""

    parameters: int
    flops: float
    abandoned_flops: float  # the operations among them that a set rollback abandons
    checkpoint_bytes: int  # of one
    checkpoints_written: int  # with `save_seconds`, only those that are due at a token
    checkpoints_kept: int | None  # on disk at the end, including those in `abandoned/`; None: depends on the speed
    save_seconds: int | None  # of training between two further checkpoints; None: save_interval is not in time


def cost(recipe: Recipe, plan: Plan) -> Cost:
    """Compute the cost of a recipe's plan.

    `rollback.plateau` and `rollback.spike` may each keep one more checkpoint for a while. The rollbacks that they may
    cause cannot be known in advance and are not counted.
    """
    abandoned = _flops(recipe, plan.abandoned)
    written, kept = _checkpoints(recipe, plan)
    return Cost(
        parameters=recipe.model.shape.parameters,
        flops=_flops(recipe, plan.segments) + abandoned,
        abandoned_flops=abandoned,
        checkpoint_bytes=BYTES_A_PARAMETER * recipe.model.shape.parameters,
        checkpoints_written=written,
        checkpoints_kept=kept,
        save_seconds=parse_seconds(recipe.save_interval),
    )


@dataclass(frozen=True)
class TokenCost:
    """The operations per token in rows of one length. Each row counts as one document."""

    row_length: int
    flops: float  # per token
    attention: float  # the share of them that attention takes
    megatron: float | None  # operations per token as `megatron_flops` counts them; None: not for this family

    def to_json(self) -> dict:
        """Return the figures as plain JSON types."""
        return {"row_length": self.row_length, "flops_a_token": self.flops, "attention_share": self.attention}


def token_costs(recipe: Recipe, plan: Plan) -> dict[str, TokenCost]:
    """Compute the cost per token at the end of each stage of a plan, by the stage's name."""
    return {segment.stage: token_cost(recipe, segment, segment.row_length) for segment in plan.segments}


def token_cost(recipe: Recipe, segment: Segment, row_length: int) -> TokenCost:
    """Compute the cost per token at the end of a segment, as if its rows had `row_length` tokens."""
    matmuls, attention = _row_flops(recipe, segment, row_length, segment.end_token)
    try:
        megatron = recipe.model.shape.megatron_flops(1, row_length)
    except ConfigurationError:
        megatron = None
    row = matmuls + attention
    return TokenCost(row_length, row / row_length, attention / row, megatron)


def slower(flops: float, than: float) -> float:
    """Return the share of the tokens per second that is lost if a token takes `flops` operations instead of `than`.

    The device is assumed to do as many operations per second in both cases.
    """
    return 1 - than / flops


@dataclass(frozen=True)
class Memory:
    """The memory that training takes on a GPU, for rows of one length."""

    row_length: int
    rows: int  # of a microbatch
    kept: float  # bytes that its forward pass keeps for the backward pass; not sharded over GPUs
    state: int  # bytes of weights, gradients and two moments, summed over all GPUs that share a copy of the model

    def of_a_gpu(self, shards: int) -> float:
        """Return the bytes on each of the GPUs that share a copy of the model."""
        return self.state / shards + self.kept

    def to_json(self) -> dict:
        """Return the figures as plain JSON types."""
        return {"microbatch": self.rows, "kept_bytes": self.kept, "state_bytes": self.state}


def memory(recipe: Recipe, plan: Plan) -> dict[str, Memory]:
    """Estimate the memory at the end of each stage, by name; empty if the family does not count activations."""
    shape, recomputed = recipe.model.shape, recipe.fsdp_config.activation_checkpointing
    itemsize = 4 if recipe.precision == "fp32" else 2
    compiled = recipe.is_compiled_on("cuda")
    # autograd keeps the whole weights that autocast has cast; a recomputed layer casts them again
    casts = 0 if recomputed or itemsize == 4 else itemsize * shape.parameters
    whole = 0 if recipe.fsdp_config.reshards(shape.parameters) else WHOLE_BYTES_A_PARAMETER * shape.parameters
    found = {}
    for segment in plan.segments:
        rows = min(recipe.stages[segment.stage].device_train_microbatch_size, segment.rows)
        activations = shape.activation_bytes(rows * segment.row_length, itemsize, recomputed, compiled)
        if activations is not None:
            state = STATE_BYTES_A_PARAMETER * shape.parameters
            found[segment.stage] = Memory(segment.row_length, rows, activations + casts + whole, state)
    return found


def megatron_flops(recipe: Recipe, plan: Plan) -> float:
    """Compute a plan's operations as Megatron-LM and some papers count them.

    Raises:
        ConfigurationError: the family is not a stack of layers of one width.
    """
    segments = (*plan.segments, *plan.abandoned)
    count = recipe.model.shape.megatron_flops
    return sum(count(segment.updates * segment.tokens_per_update, segment.row_length) for segment in segments)


def _flops(recipe: Recipe, segments: Iterable[Segment]) -> float:
    total = 0.0
    for segment in segments:
        middle = (segment.start_token + segment.end_token) // 2
        row = sum(_row_flops(recipe, segment, segment.row_length, middle))
        total += segment.updates * segment.rows * row
    return total


def _row_flops(recipe: Recipe, segment: Segment, row_length: int, token: int) -> tuple[float, float]:
    """Return the operations of matrix products and of attention on a row of one document, with the knobs at `token`."""
    predicted = recipe.objective_of(segment.stage).predicted_share(segment.knobs_at(token)) * row_length
    return recipe.model.shape.matmul_flops(row_length, predicted), recipe.model.shape.attention_flops([row_length])


def checkpoint_tokens(recipe: Recipe, plan: Plan) -> list[int]:
    """Return the tokens at which a checkpoint is due, in order, without those that are saved by the clock."""
    return sorted(_interval_tokens(recipe.save_interval, plan) | _named(recipe, plan) | set(plan.stage_ends.values()))


def _named(recipe: Recipe, plan: Plan) -> set[int]:
    return {plan.boundary_before(token) for token in named_tokens(recipe)}


def _checkpoints(recipe: Recipe, plan: Plan) -> tuple[int, int | None]:
    """Return how many checkpoints are written, and how many are on disk at the end (at most, if saved by the clock)."""
    named, due = _named(recipe, plan), checkpoint_tokens(recipe, plan)
    back, end = (plan.abandoned[0].start_token, plan.abandoned[-1].end_token) if plan.abandoned else (0, 0)
    before = [token for token in due if token < end]  # a rollback is decided before its update is saved
    after = [token for token in due if token > back]
    if parse_seconds(recipe.save_interval):
        keep = recipe.save_num_checkpoints_to_keep
        kept = None if keep < 0 else (keep + len(named)) * (2 if plan.abandoned else 1)
        return len(before) + len(after), kept
    kept_before = _kept(before, named, recipe.save_num_checkpoints_to_keep)
    kept = _kept([token for token in kept_before if token <= back] + after, named, recipe.save_num_checkpoints_to_keep)
    return len(before) + len(after), len(kept) + sum(token > back for token in kept_before)


def _kept(tokens: list[int], named: set[int], keep: int) -> list[int]:
    """Return which of the checkpoints at `tokens` (in order) are kept: the newest, and those that a rollback names."""
    return tokens if keep < 0 else sorted(set(tokens[-keep:]) | named.intersection(tokens))


def _interval_tokens(save_interval: str, plan: Plan) -> set[int]:
    """Return the ends of the updates at which Composer's CheckpointSaver saves: those that reach or pass a multiple.

    Empty if the interval is in time.
    """
    if parse_seconds(save_interval):
        return set()
    number, unit = re.fullmatch(r"([0-9_]+)([a-z]+)", save_interval).groups()
    interval, count, tokens = int(number), 0, set()
    rows = sum(segment.updates * segment.rows for segment in plan.segments)
    whole = {"ba": plan.total_updates, "tok": plan.total_tokens, "sp": rows}[unit]
    if min(whole // interval, plan.total_updates) > MOST_CHECKPOINTS:
        raise ConfigurationError(
            f"'save_interval': {save_interval} makes more than {MOST_CHECKPOINTS:_} checkpoints; set a longer interval"
        )
    for segment in plan.segments:
        step = {"ba": 1, "tok": segment.tokens_per_update, "sp": segment.rows}[unit]
        end = count + segment.updates * step
        if step < interval:
            multiples = range(count // interval * interval + interval, end + 1, interval)
            updates = [-((count - multiple) // step) for multiple in multiples]
        else:
            updates = range(1, segment.updates + 1)
        tokens.update(segment.start_token + update * segment.tokens_per_update for update in updates)
        count = end
    return tokens
