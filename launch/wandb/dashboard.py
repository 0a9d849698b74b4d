"""Define the dashboard of a project's runs as code: which panel shows which keys, and only keys that a run logs.

Every panel is a line plot over the token clock. The names of stages, sources and evaluations are a recipe's own, so
those panels take all keys that match a pattern, and one dashboard serves all recipes of a project. At a rollback the
token clock goes back: `loss by stage` starts a new line, and `the token clock` shows where that was.
"""

from dataclasses import dataclass
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from rotary_foundry.loggers.metric_keys import X_AXIS

NAME = "Rotary Foundry"
STEP = "Step"  # W&B's own: updates made, including abandoned ones


@dataclass(frozen=True)
class Panel:
    title: str
    keys: tuple[str, ...] = ()
    pattern: str | None = None  # in place of keys: a regular expression
    unit: str | None = None
    x: str = X_AXIS
    options: tuple[tuple[str, Any], ...] = ()

    def plot(self) -> wr.LinePlot:
        return wr.LinePlot(
            title=self.title,
            x=self.x,
            y=list(self.keys),
            metric_regex=self.pattern,
            title_x="tokens" if self.x == X_AXIS else "updates made",
            title_y=self.unit,
            **dict(self.options),
        )


SMOOTHED = (("smoothing_factor", 0.9), ("smoothing_show_original", True))
STACKED = (("plot_type", "stacked-area"),)

SECTIONS = {
    "Loss": (
        Panel("loss by stage", pattern=r"loss/stage/.*", unit="nats", options=SMOOTHED),
        Panel("masked accuracy", ("loss/masked_accuracy",), options=SMOOTHED),
        Panel("spike score", ("loss/spike_score",), unit="robust deviations"),
    ),
    "Evaluation": (
        Panel("held-out loss", pattern=r"eval/.*/loss", unit="nats"),
        Panel("held-out accuracy", pattern=r"eval/.*/masked_accuracy"),
    ),
    "Recipe": (
        Panel("stage", ("recipe/stage",)),
        Panel("learning rate", ("recipe/lr",)),
        Panel("batch size", ("recipe/rows",), unit="rows"),
        Panel("row length", ("recipe/row_length",), unit="tokens"),
        Panel("theta of the global layers", ("recipe/rope_theta",), options=(("log_y", True),)),
        Panel("weight decay", ("recipe/weight_decay",), options=(("log_y", True),)),
    ),
    "Rollbacks": (
        Panel("rollbacks so far", ("rollback/count",), x=STEP),
        Panel("the token clock", (X_AXIS,), unit="tokens", x=STEP),
    ),
    "Throughput": (
        Panel("tokens per second", ("throughput/tokens_per_sec",)),
        Panel("MFU", ("throughput/device/mfu",), unit="share of the bf16 peak"),
        Panel("an update, and its wait for data", ("time/step", "time/data"), unit="seconds"),
        Panel("slowest rank", ("throughput/slowest_rank",)),
        Panel("its lag", ("throughput/slowest_lag",), unit="share of the median"),
        Panel("memory", ("memory/peak_gb",), unit="GB"),
    ),
    "Data": (
        Panel("drawn", pattern=r"data/drawn/.*", unit="share of the stage's tokens", options=STACKED),
        Panel("asked", pattern=r"data/asked/.*", unit="share", options=STACKED),
        Panel("real tokens per update", ("data/real_tokens",), unit="tokens"),
    ),
    "Optimizer": (
        Panel("norms", pattern=r"optim/l2_norm/.*/global", options=(("log_y", True),)),
        Panel("clipping", ("optim/clipping/max",)),
    ),
}


def dashboard(entity: str, project: str) -> ws.Workspace:
    """Return the workspace. This needs no network; its `save` uploads it."""
    sections = [
        ws.Section(name=name, panels=[panel.plot() for panel in panels], is_open=True)
        for name, panels in SECTIONS.items()
    ]
    settings = ws.WorkspaceSettings(x_axis=X_AXIS)
    return ws.Workspace(name=NAME, entity=entity, project=project, sections=sections, settings=settings)
