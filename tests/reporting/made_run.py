"""A run's folder as a run leaves it, without training: the schedule is the recipe's plan, what is measured is made up.

The whole of a published recipe takes hundreds of thousands of updates; the page has to be right for those.
"""

import json
import math
import random
from pathlib import Path

from omegaconf import OmegaConf

from rotary_foundry import load_recipe
from rotary_foundry.evaluation.results import Headline, Measure, Result
from rotary_foundry.recipe.compilation import compile_stages, set_rollback
from rotary_foundry.recipe.plan import Plan, Rollback
from rotary_foundry.runs.run_folder import RunFolder

ENVIRONMENT = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "ranks": 8,
    "nodes": 1,
    "devices": ["a device"] * 8,
    "cuda": "13.2",
    "packages": {"torch": "2.7.0", "mosaicml": "0.32.1"},
}


def write_run(
    path: Path,
    recipe: str,
    *overrides: str,
    every: int = 1,
    until: float = 1.0,
    monitors: bool = True,
    noise: float = 0.02,
) -> Path:
    """Write the records of a run, each `every`-th update of it, up to a share of its tokens."""
    path.mkdir(parents=True)
    loaded = load_recipe(recipe, overrides)
    folder, generator = RunFolder(path), random.Random(loaded.run_name)
    first = compile_stages(loaded)
    rollback = set_rollback(loaded, first)
    with open(folder.metrics, "w") as metrics, open(folder.evaluations, "w") as evaluations:

        def stretch(plan: Plan, number: int, start: int, end: int) -> None:
            for line in _lines(plan, number, start, end, every, monitors, noise, generator):
                metrics.write(json.dumps(line) + "\n")
            for stage, token in plan.stage_ends.items():
                if start < token <= end:
                    evaluations.write(json.dumps(_evaluation(plan, number, stage, token)) + "\n")

        end = int(until * first.total_tokens)
        if rollback is None or end < rollback.token:
            plan = first
            stretch(plan, 0, 0, end)
        else:
            plan = first.rolled_back(rollback)
            stretch(first, 0, 0, rollback.token)
            folder.ledger.write_text(json.dumps(_ledger_line(first, rollback)) + "\n")
            stretch(plan, 1, rollback.to_token, end)
    folder.plan.write_text(json.dumps(plan.to_json()))
    folder.recipe.write_text(OmegaConf.to_yaml(OmegaConf.structured(loaded)))
    folder.environment.write_text(json.dumps(ENVIRONMENT))
    return path


def write_result(run: Path, model: str, suite: str, **measures: tuple[float, float | None, float | None]) -> Path:
    """Write what an evaluation of a run's model leaves, with a headline a measure: its value, low and high."""
    headlines = [
        Headline(name, Measure(*measure), True, {"document": (2.0, 1.0)}) for name, measure in measures.items()
    ]
    known = {"name": f"{run.name}-{model}", "path": f"{run}/{model}"}
    return Result(suite, suite, known, {}, {}, [], headlines).write(run / "evaluations" / model / suite)


def _ledger_line(plan: Plan, rollback: Rollback) -> dict:
    batches = {"batch": plan.at(rollback.token).update, "to_batch": plan.at(rollback.to_token).update}
    return {"number": 1} | batches | vars(rollback)


def _evaluation(plan: Plan, number: int, stage: str, token: int) -> dict:
    position = plan.at(token - 1)
    loss = _loss(token) - 0.05
    return {
        "batch": plan.at(token).update,
        "token": token,
        "rollbacks": number,
        "stage": stage,
        "row_length": position.row_length,
        **position.knobs,
        "loss": loss,
        "masked_accuracy": math.exp(-loss / 3),
    }


def _loss(token: int) -> float:
    return 1.6 + 9.3 * (1 + token / 2e8) ** -0.45


def _lines(plan, number, start, end, every, monitors, noise, generator):
    drawn: dict[str, dict] = {}
    for segment in plan.between(start, end):
        asked = segment.mixture or {"code": 0.1, "papers": 0.15, "web": 0.75}
        counts = drawn.setdefault(segment.stage, dict.fromkeys(asked, 0))
        for update in range(0, segment.updates, every):
            at = segment.start_token + update * segment.tokens_per_update
            token = at + segment.tokens_per_update
            for source, share in asked.items():
                counts[source] += max(0, generator.gauss(share, 0.02)) * segment.tokens_per_update
            seconds = segment.tokens_per_update / 3.1e6 * generator.gauss(1, 0.02)
            loss = _loss(token) * generator.gauss(1, noise)
            yield {
                "batch": segment.start_update + update + 1,
                "token": token,
                "rollbacks": number,
                "stage": segment.stage,
                "loss": loss,
                "masked_accuracy": math.exp(-loss / 3),
                "lr": segment.learning_rate.at(at),
                "weight_decay": segment.weight_decay,
                "rows": segment.rows,
                "row_length": segment.row_length,
                **segment.knobs_at(at),
                "mixture": segment.mixture,
                "asked": asked,
                "drawn": {source: count / sum(counts.values()) for source, count in counts.items()},
                "rows_by_source": {source: round(segment.rows * share) for source, share in asked.items()},
                "tokens_by_source": {
                    source: round(segment.tokens_per_update * share) for source, share in asked.items()
                },
                "real_tokens": round(0.995 * segment.tokens_per_update),
                "tokens_per_second": segment.tokens_per_update / seconds,
                "rows_digest": "0123456789abcdef",
            } | (_monitored(seconds, segment.tokens_per_update, loss, generator) if monitors else {})


def _monitored(seconds: float, tokens: int, loss: float, generator: random.Random) -> dict:
    share = 0.42 * (tokens / 3.1e6) / seconds
    return {
        "mfu": share,
        "step_seconds": seconds,
        "data_seconds": 0.01 * seconds,
        "memory_gb": 61.5,
        "grad_norm": 0.4 * generator.lognormvariate(0, 0.2) * loss / 2,
        "update_norm": 0.02 * generator.lognormvariate(0, 0.1),
        "loss_spike_score": generator.gauss(0, 1),
        "slowest_rank": 3,
        "slowest_lag": abs(generator.gauss(0, 0.01)),
    }
