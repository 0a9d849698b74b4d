"""Check the values in the records of a run, before anything computes with them or formats them.

A full disk, a copy that was cut off or an editor may leave anything in these files. All readers check them here, so a
damaged file is named, with its line, in one sentence. Keys that are not listed here are read by nothing, or only shown.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from rotary_foundry.recipe.schema import all_knobs, all_metrics

MOST = 1 << 63  # counts are below it, as numpy's int64

# keys of metrics.jsonl, each a number of an update
NUMBERS = (
    *all_metrics(), *all_knobs(), "lr", "weight_decay", "rows", "row_length", "real_tokens",
    "tokens_per_second", "mfu", "step_seconds", "data_seconds", "memory_gb", "grad_norm", "update_norm",
    "loss_spike_score", "slowest_lag",
)  # fmt: skip
SHARES = ("asked", "drawn")  # each a mapping from a source to its share
# also mappings, by the tasks of an update; a line has the tasks of its own update
BY_TASK = ("task_loss", "task_right", "task_grad_norm", "task_weight", "task_cosine", "task_cosine_estimate")


class Kind(NamedTuple):
    """A kind of value."""

    words: str  # for errors
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < MOST)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_mapping(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(holds, value.values()))


def _is_knob(value: Any) -> bool:
    ends = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(end is None or _is_finite(end) for end in ends)


COUNT = Kind("a count", lambda value: type(value) is int and 0 <= value < MOST)
TEXT = Kind("text", lambda value: isinstance(value, str))
NUMBER = Kind("a number", _is_number)  # the loss of a run that diverges is NaN
FINITE = Kind("a number", _is_finite)
NUMBERS_BY_NAME = Kind("numbers by name", lambda value: _is_mapping(value, _is_number))


def _or_null(kind: Kind) -> Kind:
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.holds(value))


PLACE = {"batch": COUNT, "token": COUNT}  # every line of metrics.jsonl and eval.jsonl has them
LINES: dict[str, tuple[dict[str, Kind], dict[str, Kind], Kind | None]] = {
    # by file: the keys that every line has, others that are checked if they are there, and the kind of all the rest
    "metrics.jsonl": (
        PLACE,
        dict.fromkeys(NUMBERS, _or_null(NUMBER))
        | dict.fromkeys((*SHARES, *BY_TASK, "mixture", "tokens_by_source"), _or_null(NUMBERS_BY_NAME))
        | {"rollbacks": COUNT, "stage": TEXT, "rows_digest": TEXT, "rows": COUNT, "row_length": COUNT},
        None,
    ),
    "eval.jsonl": (PLACE, {"rollbacks": COUNT, "stage": TEXT, "row_length": COUNT}, _or_null(NUMBER)),
    "rollbacks.jsonl": (
        {"trigger": TEXT, "why": TEXT, "token": COUNT, "to_token": COUNT}
        | {"lr": _or_null(FINITE), "weight_decay": _or_null(FINITE), "data": TEXT},
        {"number": COUNT, "batch": COUNT, "to_batch": COUNT},
        None,
    ),
}
PLAN = {"name": TEXT, "total_tokens": COUNT, "segments": Kind("a list", lambda value: isinstance(value, list))}
SEGMENT = {
    "stage": TEXT,
    **dict.fromkeys(("updates", "rows", "row_length", "start_token", "end_token"), COUNT),
    "knobs": Kind("knobs, each a number, two or null", lambda value: _is_mapping(value, _is_knob)),
    **dict.fromkeys(("lr_start", "lr_end", "weight_decay"), FINITE),
    "mixture": _or_null(Kind("shares by source", lambda value: _is_mapping(value, _is_finite))),
}


def complaint(
    content: Any, needed: Mapping[str, Kind], more: Mapping[str, Kind] | None = None, rest: Kind | None = None
) -> str | None:
    """Say what is wrong with an object of a record: "expected …, found …"; None if nothing is.

    Args:
        needed: the keys that it must have.
        more: other keys, checked if they are there.
        rest: the kind of all other keys; None: any.
    """
    if not isinstance(content, dict):
        return f"expected a JSON object, found {_shown(content)}"
    for key in needed:
        if key not in content:
            return f"expected the key '{key}', found none"
    for key, value in content.items():
        kind = needed.get(key) or (more or {}).get(key) or rest
        if kind is not None and not kind.holds(value):
            return f"expected {kind.words} for '{key}', found {_shown(value)}"
    return None


def line_complaint(file: str, content: Any, needed: Iterable[str] = ()) -> str | None:
    """Say what is wrong with a line of a run's file of that name, as `complaint`; `needed` are further keys."""
    always, more, rest = LINES.get(file, ({}, {}, None))
    return complaint(content, always | {key: more.get(key, rest or NUMBER) for key in needed}, more, rest)


def plan_complaint(content: Any) -> str | None:
    """Say what is wrong with the content of a plan.json, as `complaint`."""
    wrong = complaint(content, PLAN)
    if wrong is not None:
        return wrong
    if not content["segments"]:
        return "expected segments, found none"
    for number, segment in enumerate(content["segments"], 1):
        wrong = complaint(segment, SEGMENT)
        if wrong is not None:
            return f"segment {number}: {wrong}"
    return None


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
