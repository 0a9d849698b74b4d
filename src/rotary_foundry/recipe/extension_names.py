"""Check the names under a recipe's `callbacks:`, `algorithms:` and `loggers:`, without importing Composer.

A name is that of a Composer class in snake case, for loggers without the word "logger". A dotted path names any other
class; `training/extensions.py` imports it before a process group is made. The value of either holds its arguments.

Classes that would change what the recipe decides are refused, each with a reason. This concerns all of Composer's
algorithms: they change models and data through the Trainer, but here the recipe sets both, and the model is sharded
before Composer gets it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rotary_foundry.utils.wording import nearest

if TYPE_CHECKING:
    from rotary_foundry.recipe.schema import Recipe

DOTTED_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")

_SURGERY = "replaces layers of the model, which is already sharded; use 'model' to set its layers"
_IMAGES = "is for images"
_ROWS = "changes the rows of an update, which the data and the stage decide"
_OPTIMIZER = "changes the optimizer, which 'optimizer' decides"
_AVERAGE = "replaces weights by averages, and checkpoints do not hold its state, so a resume would not be exact"


@dataclass(frozen=True)
class Kind:
    """One of the three keys.

    Args:
        base: the Composer class that all of them derive from.
        classes: names of Composer's classes by their name in a recipe.
        refused: the reason why a class is refused, by its name in a recipe.
    """

    base: str
    classes: dict[str, str]
    refused: dict[str, str] = field(default_factory=dict)

    def problems(self, given: dict[str, object]) -> Iterator[tuple[str, str]]:
        """Yield (name, complaint) for each given entry that cannot be used."""
        known = self.classes.keys() - self.refused.keys()
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


KINDS = {
    "callbacks": Kind(
        "Callback",
        {
            "activation_monitor": "ActivationMonitor",
            "checkpoint_saver": "CheckpointSaver",
            "early_stopper": "EarlyStopper",
            "export_for_inference_callback": "ExportForInferenceCallback",
            "free_outputs": "FreeOutputs",
            "generate": "Generate",
            "image_visualizer": "ImageVisualizer",
            "load_checkpoint": "LoadCheckpoint",
            "lr_monitor": "LRMonitor",
            "memory_monitor": "MemoryMonitor",
            "memory_snapshot": "MemorySnapshot",
            "mlperf_callback": "MLPerfCallback",
            "nan_monitor": "NaNMonitor",
            "oom_observer": "OOMObserver",
            "optimizer_monitor": "OptimizerMonitor",
            "runtime_estimator": "RuntimeEstimator",
            "speed_monitor": "SpeedMonitor",
            "system_metrics_monitor": "SystemMetricsMonitor",
            "threshold_stopper": "ThresholdStopper",
        },
        {
            "checkpoint_saver": "a run saves its checkpoints itself; see 'save_interval' and 'save_folder'",
            "load_checkpoint": "a run resumes by itself; use 'init_from' to begin with other weights",
            "optimizer_monitor": "fails under FSDP2 (composer#3920); the norms of every update are logged without it",
        },
    ),
    "algorithms": Kind(
        "Algorithm",
        {
            "alibi": "Alibi",
            "aug_mix": "AugMix",
            "blur_pool": "BlurPool",
            "channels_last": "ChannelsLast",
            "col_out": "ColOut",
            "cut_mix": "CutMix",
            "cut_out": "CutOut",
            "ema": "EMA",
            "factorize": "Factorize",
            "gated_linear_units": "GatedLinearUnits",
            "ghost_batch_norm": "GhostBatchNorm",
            "gradient_clipping": "GradientClipping",
            "gyro_dropout": "GyroDropout",
            "label_smoothing": "LabelSmoothing",
            "layer_freezing": "LayerFreezing",
            "low_precision_group_norm": "LowPrecisionGroupNorm",
            "low_precision_layer_norm": "LowPrecisionLayerNorm",
            "mix_up": "MixUp",
            "no_op_model": "NoOpModel",
            "progressive_resizing": "ProgressiveResizing",
            "rand_augment": "RandAugment",
            "sam": "SAM",
            "selective_backprop": "SelectiveBackprop",
            "seq_length_warmup": "SeqLengthWarmup",
            "squeeze_excite": "SqueezeExcite",
            "stochastic_depth": "StochasticDepth",
            "swa": "SWA",
            "weight_standardization": "WeightStandardization",
        },
        {
            "alibi": _SURGERY,
            "factorize": _SURGERY,
            "gated_linear_units": _SURGERY,
            "gyro_dropout": _SURGERY,
            "low_precision_layer_norm": _SURGERY,
            "no_op_model": _SURGERY,
            "stochastic_depth": _SURGERY,
            "aug_mix": _IMAGES,
            "blur_pool": _IMAGES,
            "channels_last": _IMAGES,
            "col_out": _IMAGES,
            "cut_mix": _IMAGES,
            "cut_out": _IMAGES,
            "ghost_batch_norm": _IMAGES,
            "low_precision_group_norm": _IMAGES,
            "mix_up": _IMAGES,
            "progressive_resizing": _IMAGES,
            "rand_augment": _IMAGES,
            "squeeze_excite": _IMAGES,
            "weight_standardization": _IMAGES,
            "selective_backprop": _ROWS,
            "seq_length_warmup": f"{_ROWS}; give the stages their 'row_length'",
            "label_smoothing": "changes the labels, which the objective decides",
            "layer_freezing": _OPTIMIZER,
            "sam": _OPTIMIZER,
            "gradient_clipping": f"{_OPTIMIZER}; adamw clips at its 'max_grad_norm', stable_adamw clips its updates",
            "ema": _AVERAGE,
            "swa": _AVERAGE,
        },
    ),
    "loggers": Kind(
        "LoggerDestination",
        {
            "comet_ml": "CometMLLogger",
            "console": "ConsoleLogger",
            "file": "FileLogger",
            "in_memory": "InMemoryLogger",
            "mlflow": "MLFlowLogger",
            "mosaicml": "MosaicMLLogger",
            "neptune": "NeptuneLogger",
            "progress_bar": "ProgressBarLogger",
            "remote_uploader_downloader": "RemoteUploaderDownloader",
            "slack": "SlackLogger",
            "tensorboard": "TensorboardLogger",
            "wandb": "WandBLogger",
        },
        {"progress_bar": "would draw into the recipe's own 'progress_bar', which is on by itself"},
    ),
}


def problems(recipe: "Recipe") -> Iterator[tuple[str, str]]:
    """Yield (key, complaint) for every callback, algorithm and logger that a recipe cannot have."""
    for key, kind in KINDS.items():
        yield from ((f"{key}.{name}", complaint) for name, complaint in kind.problems(getattr(recipe, key)))
    wandb = recipe.loggers.get("wandb")
    if isinstance(wandb, dict):
        if not isinstance(wandb.get("init_kwargs") or {}, dict):
            yield "loggers.wandb.init_kwargs", "expected arguments of wandb.init by name, as in {mode: offline}"
        if not isinstance(wandb.get("checkpoint_references", False), bool):
            yield "loggers.wandb.checkpoint_references", "expected true or false"
