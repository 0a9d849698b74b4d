"""Check the values of a recipe beyond their types, before a process group, a device or a shard is used."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from math import inf
from os.path import abspath
from typing import Any

from rotary_foundry.models.family import Shape
from rotary_foundry.objectives.objective import OBJECTIVES, Objective
from rotary_foundry.recipe import extension_names
from rotary_foundry.recipe.knobs import knob_complaint
from rotary_foundry.recipe.mixtures import long_share_problems
from rotary_foundry.recipe.named_parts import load
from rotary_foundry.recipe.schedules import DECAYS, parse_seconds, parse_tokens
from rotary_foundry.recipe.schema import (
    DataConfig,
    FSDPConfig,
    Recipe,
    RollbackConfig,
    StageConfig,
    Trigger,
    knob_names,
)
from rotary_foundry.recipe.updates import ROLLBACK_TIMES, UPDATES
from rotary_foundry.utils.knob import Problem
from rotary_foundry.utils.redaction import redacted
from rotary_foundry.utils.wording import nearest

OF_COMPILE = (  # arguments of torch.compile, some of them only in newer releases
    *("fullgraph", "dynamic", "backend", "mode", "options", "disable"),
    *("name", "recompile_limit", "isolate_recompiles", "dynamic_shapes"),
)
LONGEST_TIMEOUT = 604_800  # seconds
NUMBERS_IN_A_TENSOR = 2**30  # 2**31 bytes, at two bytes each
ELEMENTS_IN_A_TENSOR = 2**31
SEES = {True: "to earlier tokens only", False: "in both directions"}  # by `causal`
PRECISIONS = ("fp32", "amp_bf16")
ATTN_IMPLEMENTATIONS = ("auto", "varlen", "flash", "sdpa")
INTERVAL = re.compile(r"[1-9][0-9]*(_[0-9]+)*(ba|tok|sp)")
BYTES = re.compile(r"[0-9]+b?|[0-9]+(\.[0-9]+)?[kmgt]b", re.IGNORECASE)  # as Streaming reads them
S3_FOLDER = re.compile(r"s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/[^/\s{}]+)*/?")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield (key, complaint) for every invalid value."""
    if not NAME.fullmatch(recipe.run_name):
        yield "run_name", f"'{recipe.run_name}' has to be the name of a folder: letters, digits, '_', '-' and '.'"
    if not 0 <= recipe.seed < 2**31:
        yield "seed", f"{recipe.seed} is not in [0, 2**31)"
    yield from _positive("", recipe, "dist_timeout")
    if recipe.dist_timeout > LONGEST_TIMEOUT:
        yield "dist_timeout", f"{recipe.dist_timeout} seconds are more than {LONGEST_TIMEOUT}, a week"
    if recipe.save_folder is not None and not S3_FOLDER.fullmatch(recipe.save_folder):
        yield (
            "save_folder",
            f"'{redacted(recipe.save_folder)}' is not of the form s3://bucket/path; the run's name is added to it. Any "
            "store with an S3 API works: set AWS_ENDPOINT_URL to its address. To save on a disk, set runs_folder",
        )
    if recipe.save_num_checkpoints_to_keep < -1 or recipe.save_num_checkpoints_to_keep == 0:
        yield "save_num_checkpoints_to_keep", "expected -1 to keep all, or at least 1 to resume from"
    if recipe.precision not in PRECISIONS:
        yield "precision", f"'{recipe.precision}' is not one of {', '.join(PRECISIONS)}"
    for key in ("save_interval", "console_log_interval"):
        interval = getattr(recipe, key)
        if not INTERVAL.fullmatch(interval) and not parse_seconds(interval):
            yield key, f"'{interval}' is not a time such as 500ba, 1_000_000tok, 1800sec, 30m or 1h30m (below 24h)"
    yield from ((f"model.{key}", complaint) for key, complaint in recipe.model.shape.problems())
    if recipe.model.attn_implementation not in ATTN_IMPLEMENTATIONS:
        known = nearest(recipe.model.attn_implementation, ATTN_IMPLEMENTATIONS)
        yield "model.attn_implementation", f"'{recipe.model.attn_implementation}' is not known; {known}"
    yield from _fsdp(recipe.fsdp_config)
    yield from _compilation(recipe.compile_config)
    yield from ((f"optimizer.{key}", complaint) for key, complaint in recipe.optimizer.problems())
    if not recipe.data.sources:
        yield "data.sources", "expected at least one source, got none"
    for source in recipe.data.sources:
        if recipe.data.sources.count(source) > 1 or not NAME.fullmatch(source):
            yield "data.sources", f"'{source}' has to be the name of a source, given once"
    yield from _positive("data.", recipe.data, "shuffle_block_size")
    yield from _cache(recipe.data)
    if recipe.data.num_workers < 0:
        yield "data.num_workers", f"{recipe.data.num_workers} is negative"
    yield from extension_names.problems(recipe)
    if not recipe.stages:
        yield "stages", "expected at least one stage, got none"
    for name, stage in recipe.stages.items():
        if not NAME.fullmatch(name):
            yield "stages", f"'{name}', a stage's name, has to be made of letters, digits, '_', '-' and '.'"
        for key, complaint in _stage(stage, recipe.data.sources):
            yield f"stages.{name}.{key}", complaint
        yield from ((f"stages.{name}.{key}", complaint) for key, complaint in _width(stage, recipe.model.shape))
        yield from _objective(recipe, name)
        for key, complaint in recipe.optimizer.change_problems(stage.optimizer):
            yield f"stages.{name}.optimizer.{key}", complaint
    yield from ((f"rollback.{key}", complaint) for key, complaint in _rollback(recipe.rollback))
    yield from _saved_by_the_clock(recipe)


def _positive(prefix: str, config: object, *keys: str) -> Iterator[Problem]:
    for key in keys:
        if not 0 < getattr(config, key) < inf:
            yield f"{prefix}{key}", f"{getattr(config, key)} is not positive and finite"


def _objective(recipe: Recipe, stage: str) -> Iterator[Problem]:
    """Check a stage's objective against the family, and every knob against both."""
    objective, family = recipe.objective_of(stage), recipe.family
    key = "objective" if recipe.stages[stage].objective is None else f"stages.{stage}.objective"
    yield from ((f"{key}.{name}", complaint) for name, complaint in objective.problems())
    if objective.causal != family.causal:
        fitting = ", ".join(name for name, place in OBJECTIVES.items() if load(place).causal == family.causal)
        yield (
            f"{key}.name",
            f"'{objective.name}' needs attention {SEES[objective.causal]}, and {family.name} has attention "
            f"{SEES[family.causal]}; choose an objective for it ({fitting}), or another family",
        )
    yield from _blocks(recipe.stages[stage], stage, objective)
    knobs = {**family.knobs, **objective.knobs}
    for name in knob_names(family):
        if name not in knobs and getattr(recipe.stages[stage], name) is not None:
            yield f"stages.{stage}.{name}", f"neither {family.name} nor {objective.name} has it; {nearest(name, knobs)}"
    tokens = _attempt(parse_tokens, recipe.stages[stage].duration)
    tokens = tokens if isinstance(tokens, int) and tokens > 0 else None  # a wrong duration is reported separately
    given = recipe.knobs_of(stage)
    complaints = [(name, knob_complaint(knobs[name], value, tokens)) for name, value in given.items()]
    row_length = recipe.stages[stage].row_length
    for name, complaint in (*complaints, *recipe.model.shape.knob_problems(given, row_length)):
        if complaint is None:
            continue
        if getattr(recipe.stages[stage], name) is not None:
            yield f"stages.{stage}.{name}", complaint
        else:
            yield f"{'model' if name in family.knobs else key}.{name}", complaint


def _blocks(config: StageConfig, stage: str, objective: Objective) -> Iterator[Problem]:
    """Check that every batch size of a multi-task stage is whole blocks, and not fewer than the objective needs."""
    rows_per_block = objective.block_size
    if rows_per_block is None or rows_per_block < 1:
        return
    sizes = {"global_train_batch_size": config.global_train_batch_size}
    if config.batch_size_ramp is not None:
        sizes["batch_size_ramp.initial"] = config.batch_size_ramp.initial
        sizes["batch_size_ramp.increment"] = config.batch_size_ramp.increment
    for key, rows in sizes.items():
        if rows % rows_per_block:
            yield f"stages.{stage}.{key}", f"{rows} rows are not whole blocks of rows_per_block, {rows_per_block}"
        elif rows < objective.least_blocks * rows_per_block and not key.endswith("increment"):
            yield (
                f"stages.{stage}.{key}",
                f"{rows} rows are one block (rows_per_block {rows_per_block}), and so one task; the objective combines "
                f"gradients of different tasks: take at least {objective.least_blocks * rows_per_block} rows, smaller "
                "blocks, or `combine: mean`",
            )


def _fsdp(config: FSDPConfig) -> Iterator[Problem]:
    if config.data_parallel_replicate_degree is not None:
        yield from _positive("fsdp_config.", config, "data_parallel_replicate_degree")
    if config.data_parallel_shard_degree != -1:
        yield from _positive("fsdp_config.", config, "data_parallel_shard_degree")


def _compilation(compile_config: dict[str, Any] | None) -> Iterator[Problem]:
    for key in compile_config or ():
        if key not in OF_COMPILE:
            yield f"compile_config.{key}", f"torch.compile has no such argument; {nearest(key, OF_COMPILE)}"


def _cache(data: DataConfig) -> Iterator[Problem]:
    if data.remote is not None and redacted(data.remote) != data.remote:
        yield (
            "data.remote",
            "contains a user or a signature, which would be written to files; give credentials in the environment",
        )
    if data.remote is not None and abspath(data.remote) == abspath(data.local):
        yield "data.remote", f"'{data.remote}' is also data.local; for a local corpus, set only data.local"
    if data.cache_limit is not None and not BYTES.fullmatch(data.cache_limit):
        yield "data.cache_limit", f"'{data.cache_limit}' is not a number of bytes such as 500mb, 100gb or 1.5tb"
    if data.cache_limit is not None and data.remote is None:
        yield (
            "data.cache_limit",
            "would delete the original shards; set it only with data.remote, which data.local then caches",
        )


def _stage(stage: StageConfig, sources: list[str]) -> Iterator[Problem]:
    sizes = ("row_length", "global_train_batch_size", "device_train_microbatch_size", "lr")
    bad = list(_positive("", stage, *sizes))
    yield from bad
    if stage.decay_shape not in DECAYS:
        yield "decay_shape", f"'{stage.decay_shape}' is not one of {', '.join(DECAYS)}"
    if not 0 <= stage.alpha_f <= 1:
        yield "alpha_f", f"{stage.alpha_f} is not in [0, 1]"
    yield from _mixture(stage, sources)
    yield from long_share_problems(stage, sources)
    yield from _one_schedule(stage)
    try:
        duration = parse_tokens(stage.duration)
    except ValueError as error:
        yield "duration", str(error)
        return
    if duration <= 0:
        yield "duration", f"{stage.duration} is not positive"
        return
    within = _times(stage, duration)
    for key, value in within.items():
        if isinstance(value, ValueError):
            yield key, str(value)
        elif not 0 <= value <= duration:
            yield key, f"{value:_} tokens do not lie within the stage's {duration:_}"
    if not any(isinstance(within[key], ValueError) for key in ("t_warmup", "t_decay")):
        both = within["t_warmup"] + within["t_decay"]
        if both > duration + 1:  # 0.5dur of an odd duration is rounded twice
            yield "t_decay", f"warm-up and decay together take {both:_} tokens, the stage has {duration:_}"
    if stage.lr_schedule is not None and (complaint := _schedule_complaint(stage.lr_schedule, duration)):
        yield "lr_schedule", complaint
    if not bad:
        yield from _ramp(stage)


def _width(stage: StageConfig, shape: Shape) -> Iterator[Problem]:
    """Check that no tensor has more numbers than a kernel can count in 32 bits; such a kernel overflows silently.

    FlashAttention's rotary kernel in Triton did so at 144 rows of 8,192 tokens.
    """
    rows = min(stage.device_train_microbatch_size, stage.global_train_batch_size)
    of_a_row = stage.row_length * shape.rotary_width
    if rows * of_a_row >= NUMBERS_IN_A_TENSOR:
        most = (NUMBERS_IN_A_TENSOR - 1) // of_a_row
        yield (
            "device_train_microbatch_size",
            f"{rows} rows × row_length {stage.row_length:,} × {shape.rotary_width:,} of queries and keys are "
            f"{rows * of_a_row:,} numbers in a tensor; kernels that count in 32 bits go wrong silently from "
            f"{NUMBERS_IN_A_TENSOR:,} on: take at most {most} rows",
        )
    elif not any(shape.problems()):  # parameter_shapes() of a wrong shape may list billions
        weights = (size for size in shape.parameter_shapes().values() if len(size) == 2)
        widest = max((outputs for outputs, _ in weights if outputs != shape.vocab_size), default=0)  # of a layer
        if rows * stage.row_length * widest >= ELEMENTS_IN_A_TENSOR:
            most = (ELEMENTS_IN_A_TENSOR - 1) // (stage.row_length * widest)
            yield (
                "device_train_microbatch_size",
                f"{rows} rows × row_length {stage.row_length:,} × {widest:,} outputs of a layer's widest product are "
                f"{rows * stage.row_length * widest:,} elements, and a 32-bit index ends before "
                f"{ELEMENTS_IN_A_TENSOR:,}: take at most {most} rows",
            )


def _one_schedule(stage: StageConfig) -> Iterator[Problem]:
    """Check that the keys of warm-up and decay are not set together with `lr_schedule`."""
    defaults = {field.name: field.default for field in fields(StageConfig)}
    for key in ("t_warmup", "t_decay", "decay_shape", "alpha_f"):
        if stage.lr_schedule is not None and getattr(stage, key) != defaults[key]:
            yield (
                "lr_schedule",
                f"is set, and {key} ({getattr(stage, key)}) too; a stage has one or the other: set lr_schedule to "
                f"null, or {key} to {defaults[key]}",
            )


def _schedule_complaint(points: Sequence[Any], duration: int) -> str | None:
    """Return what is wrong with the points of a stage of `duration` tokens; None if they are valid."""
    before = -1
    for point in points:
        if not isinstance(point, Sequence) or isinstance(point, str) or len(point) != 2:
            return f"{point!r} is not a pair [time, factor] such as [0.1dur, 0.5]"
        time, factor = point
        tokens = _attempt(parse_tokens, str(time), duration)
        if isinstance(tokens, ValueError):
            return str(tokens)
        if before < 0 and tokens != 0:
            return f"begins at {time}; give the factor at the stage's beginning first, as [0tok, 0]"
        if tokens <= before:
            return f"{time} does not come after the time before it, {before:_} tokens; give the times in order"
        if tokens > duration:
            return f"{time} is {tokens:_} tokens, which do not lie within the stage's {duration:_}"
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor <= 1:
            return f"the factor at {time} is {factor!r}, which is not in [0, 1]; lr is the highest learning rate"
        before = tokens
    if not any(factor for _, factor in points):
        return "expected points [time, factor] with a factor above 0; for a warm-up and a decay, set it to null"
    return None


def _rollback(rollback: RollbackConfig) -> Iterator[Problem]:
    if rollback.max_rollbacks < 1:
        yield "max_rollbacks", f"{rollback.max_rollbacks} is not positive; for no rollbacks, set no trigger"
    triggers = {kind: value for kind, value in vars(rollback).items() if isinstance(value, Trigger)}
    for kind, trigger in triggers.items():
        yield from ((f"{kind}.{key}", complaint) for key, complaint in _trigger(trigger))
        if trigger.data == "replay" and trigger.lr is None and trigger.weight_decay is None:
            yield kind, "would repeat the same trajectory; set lr, weight_decay or data: advance"


def _saved_by_the_clock(recipe: Recipe) -> Iterator[Problem]:
    """Check that no rollback depends on a machine's speed: each run would go back to a different token."""
    for kind, trigger in vars(recipe.rollback).items():
        if isinstance(trigger, Trigger) and kind != "at" and parse_seconds(recipe.save_interval):
            yield (
                "save_interval",
                f"'{recipe.save_interval}' saves by the clock, and rollback.{kind} goes back to a checkpoint, so that "
                "a resumed run would not repeat an undisturbed one; set an interval such as 500ba or 1_000_000tok",
            )


def _trigger(trigger: Trigger) -> Iterator[Problem]:
    if trigger.data not in ("replay", "advance"):
        yield "data", f"'{trigger.data}' is not one of replay, advance"
    if trigger.weight_decay is not None and not 0 <= trigger.weight_decay < 1:
        yield "weight_decay", f"{trigger.weight_decay} is not in [0, 1)"
    values = {key: value for key, value in vars(trigger).items() if value is not None}
    yield from _positive("", trigger, *({"lr", "min_delta", "z_score", "patience"} & values.keys()))
    for key in [key for key in ROLLBACK_TIMES if key in values]:
        updates = UPDATES.fullmatch(values[key].strip())
        tokens = int(updates[1]) if updates else _attempt(parse_tokens, values[key])
        if isinstance(tokens, ValueError):
            yield key, str(tokens)
        elif tokens <= 0:
            yield key, f"{values[key]} is not positive"


def _times(stage: StageConfig, duration: int) -> dict[str, int | ValueError]:
    values = {"t_warmup": stage.t_warmup, "t_decay": stage.t_decay}
    if stage.batch_size_ramp is not None:
        values["batch_size_ramp.duration"] = stage.batch_size_ramp.duration
    return {key: _attempt(parse_tokens, value, duration) for key, value in values.items()}


def _attempt(parse: Callable[..., int], *arguments: object) -> int | ValueError:
    try:
        return parse(*arguments)
    except ValueError as error:
        return error


def _ramp(stage: StageConfig) -> Iterator[Problem]:
    ramp = stage.batch_size_ramp
    if ramp is None:
        return
    if ramp.initial <= 0 or ramp.increment <= 0:
        yield "batch_size_ramp", "expected positive numbers of rows for initial and increment"
    elif ramp.initial >= stage.global_train_batch_size:
        yield "batch_size_ramp.initial", f"{ramp.initial} is not below global_train_batch_size"
    elif (stage.global_train_batch_size - ramp.initial) % ramp.increment:
        yield (
            "batch_size_ramp.increment",
            f"steps of {ramp.increment} from {ramp.initial} do not reach {stage.global_train_batch_size}",
        )


def _mixture(stage: StageConfig, sources: list[str]) -> Iterator[Problem]:
    for source, weight in (stage.mixture or {}).items():
        if source not in sources:
            yield f"mixture.{source}", f"not among data.sources ({', '.join(sources)})"
        if not 0 < weight < inf:
            yield f"mixture.{source}", f"{weight} is not positive and finite; to exclude the source, leave it out"
    if stage.mixture == {}:
        yield "mixture", "expected at least one source, got none"
