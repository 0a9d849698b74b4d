"""Check the names under a recipe's `callbacks:`, `algorithms:` and `loggers:`, without importing Composer.

A key is the name of a Composer class in snake case (for loggers, without the word "logger"), or the dotted path of any
other class. Its value holds the arguments. `training/extensions.py` imports the class before a process group is made.

Classes that would change what the recipe decides are refused, each with a reason. All of Composer's algorithms are:
they change models and data through the Trainer, but here the recipe sets both, and the model is sharded before
Composer gets it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rotary_foundry.utils.wording import nearest

if TYPE_CHECKING:
    from rotary_foundry.recipe.schema import Recipe

DOTTED_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


@dataclass(frozen=True)
class Kind:
    """The rules for one of the three keys.

    Args:
        names: Composer's classes.
        refused: the reason why a class is refused, by its name.
    """

    names: tuple[str, ...]
    refused: dict[str, str]

    def problems(self, given: dict[str, object]) -> Iterator[tuple[str, str]]:
        """Yield (name, complaint) for every entry that cannot be used."""
        known = set(self.names) - self.refused.keys()
        for name, arguments in given.items():
            if name in self.refused:
                yield name, self.refused[name]
            elif name not in known and not DOTTED_PATH.fullmatch(str(name)):
                yield name, self._unknown(str(name), sorted(known))
            elif arguments is not None and (
                not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments)
            ):
                yield name, "expected arguments by name, such as {every: 3}, or {}"

    def _unknown(self, name: str, known: list[str]) -> str:
        near = f"; {nearest(name, known).removesuffix('?')}" if known else ""
        return f"'{name}' is not known{near}; name a class of your own by its dotted path, such as my_package.MyClass"


CALLBACKS = (
    *("activation_monitor", "checkpoint_saver", "early_stopper", "export_for_inference_callback", "free_outputs"),
    *("generate", "image_visualizer", "load_checkpoint", "lr_monitor", "memory_monitor", "memory_snapshot"),
    *("mlperf_callback", "nan_monitor", "oom_observer", "optimizer_monitor", "runtime_estimator", "speed_monitor"),
    *("system_metrics_monitor", "threshold_stopper"),
)
LOGGERS = (
    *("comet_ml", "console", "file", "in_memory", "mlflow", "mosaicml", "neptune", "progress_bar"),
    *("remote_uploader_downloader", "slack", "tensorboard", "wandb"),
)
ALGORITHMS = {  # names by the reason why they are refused
    "replaces layers of the model, which is sharded by then; 'model' decides them": (
        *("alibi", "factorize", "gated_linear_units", "gyro_dropout", "low_precision_layer_norm", "no_op_model"),
        "stochastic_depth",
    ),
    "is for images": (
        *("aug_mix", "blur_pool", "channels_last", "col_out", "cut_mix", "cut_out", "ghost_batch_norm", "mix_up"),
        *("low_precision_group_norm", "progressive_resizing", "rand_augment", "squeeze_excite"),
        "weight_standardization",
    ),
    "changes the rows of an update, which the data and the stage decide": ("selective_backprop",),
    "changes the length of rows; give the stages their 'row_length'": ("seq_length_warmup",),
    "changes the labels, which the objective decides": ("label_smoothing",),
    "changes the optimizer, which 'optimizer' decides": ("layer_freezing", "sam"),
    "changes the optimizer, which 'optimizer' decides; adamw clips at its 'max_grad_norm', stable_adamw clips its "
    "updates": ("gradient_clipping",),
    "replaces weights by its averages, and its state is in no checkpoint, so no resume would be exact": ("ema", "swa"),
}
_REFUSED_ALGORITHMS = {name: why for why, names in ALGORITHMS.items() for name in names}

KINDS = {
    "callbacks": Kind(
        CALLBACKS,
        {
            "checkpoint_saver": "a run saves its checkpoints itself; see 'save_interval' and 'save_folder'",
            "load_checkpoint": "a run resumes by itself; use 'init_from' to begin with other weights",
            "optimizer_monitor": "fails under FSDP2 (composer#3920); the norms of every update are logged without it",
        },
    ),
    "algorithms": Kind(tuple(_REFUSED_ALGORITHMS), _REFUSED_ALGORITHMS),
    "loggers": Kind(
        LOGGERS, {"progress_bar": "would draw into the recipe's own 'progress_bar', which is on by itself"}
    ),
}


def problems(recipe: "Recipe") -> Iterator[tuple[str, str]]:
    """Yield (key, complaint) for every callback, algorithm and logger that a recipe cannot use."""
    for key, kind in KINDS.items():
        yield from ((f"{key}.{name}", complaint) for name, complaint in kind.problems(getattr(recipe, key)))
    wandb = recipe.loggers.get("wandb")
    if isinstance(wandb, dict):
        if not isinstance(wandb.get("init_kwargs") or {}, dict):
            yield "loggers.wandb.init_kwargs", "expected arguments of wandb.init by name, as in {mode: offline}"
        if not isinstance(wandb.get("checkpoint_references", False), bool):
            yield "loggers.wandb.checkpoint_references", "expected true or false"
