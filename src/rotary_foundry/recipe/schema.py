"""The typed keys of a recipe.

Keys that exist in Composer's Trainer or in Streaming have the same names here. A YAML must set each field that has no
default; the numbers of the published recipes are only in the YAMLs. Times are Composer's time strings: tokens
(`3_000_000_000tok`), updates (`2000ba`, see updates.py), or, inside a stage, shares of the stage (`1dur`).

`model` and `stages` have more keys than this file: those of the family's shape, and the knobs. `schema_of` adds them,
so that OmegaConf checks every key of every file, and a family adds keys without a change to this file.
"""

from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from typing import Any

from omegaconf import MISSING, OmegaConf

from rotary_foundry.models.family import Family, Shape, families, find_family
from rotary_foundry.objectives.objective import OBJECTIVES, Metric, Objective
from rotary_foundry.recipe.loading import chosen_by
from rotary_foundry.recipe.named_parts import build, load
from rotary_foundry.recipe.optimizer_settings import OPTIMIZERS, OptimizerConfig
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.knob import Knob

MOST_HELD_OUT_WORKERS = 2
LARGEST_GATHERED = 1_000_000_000  # parameters of a model that stays whole on every rank during an update


@dataclass
class ModelConfig:
    """The model: its family, the keys of the family's shape, and the family's knobs.

    A knob set here applies to every stage that does not set it. Keys of the shape that a recipe omits are taken from
    `init_from`, and so are knobs that belong to trained weights.
    """

    family: str
    attn_implementation: str = field(default="auto", compare=False)  # the attention backend; not part of the shape

    @property
    def shape(self) -> Shape:
        """Return the values of the family's shape: two models with different values are different models."""
        shape = find_family(self.family).Shape
        return shape(**{key.name: getattr(self, key.name) for key in fields(shape)})


@dataclass
class DataConfig:
    """The place of the shards that `python data_prep` wrote, and the shuffling of their rows."""

    local: str  # the `out` of the data YAML, or the cache for `remote`
    sources: list[str]  # a stage without a mixture draws each row of all these sources once per epoch
    remote: str | None = None
    cache_limit: str | None = None  # most bytes of `local` for training rows of one length, e.g. 100gb; null: no limit
    shuffle_block_size: int = 1 << 18  # approximate number of rows shuffled together: some whole shards
    num_workers: int = 1

    @property
    def held_out_workers(self) -> int:
        """Return the loader workers per rank for evaluation on a GPU, where each batch is one microbatch."""
        return min(MOST_HELD_OUT_WORKERS, self.num_workers)


@dataclass
class BatchSizeRamp:
    """Batch sizes from `initial` to the stage's in steps of `increment`, each for the same number of updates."""

    initial: int
    increment: int
    duration: str


@dataclass
class StageConfig:
    """A stretch of training with one row length and one objective.

    Each knob is a key: a number, or `{start, end, shape, duration}`, which moves it over the duration from the start
    of the stage, or over the whole stage without one.
    """

    duration: str
    row_length: int  # tokens
    global_train_batch_size: int  # rows per update
    device_train_microbatch_size: int  # most rows per forward pass on one device
    lr: float  # the stage's peak
    t_warmup: str = "0tok"  # linear from 0
    t_decay: str = "0tok"  # at the end of the stage
    decay_shape: str = "one_minus_sqrt"  # or linear, or cosine
    alpha_f: float = 1.0  # the last learning rate as a multiple of the peak
    lr_schedule: list[Any] | None = None  # instead of the four above: lines between points [time, factor of lr]
    batch_size_ramp: BatchSizeRamp | None = None
    mixture: dict[str, float] | None = None  # share of the rows by source; null: every row once per epoch
    long_share: float | None = None  # share of the rows from sources named *_from_<tokens> (recipe/mixtures.py)
    objective: Any = None  # in the form of the recipe's `objective`; null: that one
    optimizer: dict[str, Any] = field(default_factory=dict)  # arguments that this stage changes


@dataclass
class Trigger:
    """The target and the changes of a rollback. The subclasses define when it happens."""

    to: str | None = None  # go to the last checkpoint at or before this token; null: the last one before the trouble
    lr: float | None = None  # new peak, from there on, of the stages with abandoned tokens; null: unchanged
    weight_decay: float | None = None  # new value from there to the end of the run; null: unchanged
    data: str = "replay"  # replay: draw the abandoned rows again; advance: draw the rows after them


@dataclass
class AtTrigger(Trigger):
    """Roll back from a set token to an earlier one."""

    token: str = MISSING
    to: str = MISSING


@dataclass
class PlateauTrigger(Trigger):
    """Roll back if the smoothed loss has not fallen by `min_delta` over the last `window` tokens of a stage."""

    window: str = MISSING
    min_delta: float = MISSING  # nats


@dataclass
class SpikeTrigger(Trigger):
    """Roll back if `patience` losses in a row are `z_score` robust deviations above the median of earlier updates."""

    z_score: float = MISSING
    patience: int = MISSING


@dataclass
class NonFiniteTrigger(Trigger):
    """Roll back if the loss of an update is infinite or NaN. Without this trigger, such a loss ends the run."""


@dataclass
class RollbackConfig:
    """The triggers of rollbacks to an earlier checkpoint."""

    at: AtTrigger | None = None
    plateau: PlateauTrigger | None = None
    spike: SpikeTrigger | None = None
    non_finite: NonFiniteTrigger | None = None
    max_rollbacks: int = 3  # not counting set (`at`) rollbacks; one more ends the run


@dataclass
class FSDPConfig:
    """The distribution of parameters, gradients and optimizer state over the ranks. The names are Composer's."""

    data_parallel_shard_degree: int = -1  # ranks that share one copy of the model; -1: all ranks of a replica
    data_parallel_replicate_degree: int | None = None  # copies; more than 1 is HSDP; null: one on each node
    reshard_after_forward: bool | None = None  # free whole parameters after a layer; null: above 1e9 parameters
    activation_checkpointing: bool = False  # recompute a layer in the backward pass instead of storing its activations

    def degrees(self, world_size: int, nodes: int = 1) -> tuple[int, int]:
        """Return the number of replicas, and of shards per replica.

        Raises:
            ConfigurationError: their product is not the world size, or a replica would be neither whole nodes nor an
            equal part of one, so that its ranks exchange parameters both within nodes and between them.
        """
        replicas, shards = self.data_parallel_replicate_degree, self.data_parallel_shard_degree
        if replicas is None:
            replicas = nodes if shards == -1 else max(1, world_size // shards)
        if shards == -1:
            shards = world_size // replicas
        if replicas * shards != world_size:
            raise ConfigurationError(
                f"fsdp_config: data_parallel_replicate_degree {replicas} × data_parallel_shard_degree {shards} "
                f"is not the number of processes, {world_size}"
            )
        of_a_node = world_size // nodes
        if world_size % nodes == 0 and shards % of_a_node and of_a_node % shards:
            raise ConfigurationError(
                f"fsdp_config: data_parallel_replicate_degree {replicas} does not fit the {nodes} nodes: the {shards} "
                f"processes that share a copy of the model would be neither whole nodes of {of_a_node} nor an equal "
                f"part of one; leave it out for a copy on each node, or set a divisor or a multiple of {nodes}"
            )
        return replicas, shards

    def reshards(self, parameters: int) -> bool:
        """Return whether a rank frees whole parameters after each layer, and gathers them again for every microbatch.

        If not, it holds 8 more bytes per parameter (the parameter, and the gradient of the update), and parameters and
        gradients cross the network once per update.
        """
        return parameters > LARGEST_GATHERED if self.reshard_after_forward is None else self.reshard_after_forward


@dataclass
class Recipe:
    """A complete training run."""

    run_name: str
    seed: int
    precision: str  # fp32 or amp_bf16
    model: ModelConfig
    objective: dict[str, Any]  # {name: …, its arguments}
    optimizer: OptimizerConfig = field(metadata=chosen_by("name", OPTIMIZERS))
    data: DataConfig
    stages: dict[str, StageConfig]  # by name, in order
    save_interval: str  # such as 500ba, 1_000_000tok, or 30m of training; the end of every stage is saved as well
    init_from: str | None = None  # a run, a checkpoint or a Hugging Face directory to begin with; null: random weights
    rollback: RollbackConfig = field(default_factory=RollbackConfig)
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)
    deterministic_mode: bool = False  # the Trainer's: the same command gives the same bits on a GPU as well, but slower
    compile_config: dict[str, Any] | None = None  # arguments of torch.compile for each layer; null: by the device
    runs_folder: str = "runs"
    save_folder: str | None = (
        None  # s3://bucket/path for a second copy of what a resume needs; null: only the local one
    )
    save_num_checkpoints_to_keep: int = -1
    dist_timeout: float = 600.0  # seconds that a rank waits in a collective, or for a batch of its loader
    console_log_interval: str = "10ba"  # how often a line is printed on the terminal; or such as 1_000_000tok
    progress_bar: bool = True  # on a terminal only
    # Keys: the name of a Composer class or the dotted path of any class. Values: its arguments; null: not used.
    callbacks: dict[str, Any] = field(default_factory=dict)
    algorithms: dict[str, Any] = field(default_factory=dict)
    loggers: dict[str, Any] = field(default_factory=dict)
    rehearse: bool = False  # run a rehearsal of this recipe instead: every transition, in minutes

    @property
    def family(self) -> Family:
        """Return the model's family."""
        return find_family(self.model.family)

    def compiled_with(self, device_type: str) -> dict[str, Any]:
        """Return the arguments of torch.compile on a device type. Without `compile_config`, only GPUs compile.

        Sizes are static, because microbatches are filled to the same number of tokens (data/batches.py). Kernels for
        one size do not compute sizes and bounds at run time. One graph is compiled for each row length and microbatch
        size, in training and in evaluation. With `dynamic: true`, the same graph serves every size.
        """
        by_device = {"dynamic": False} if device_type == "cuda" else {"disable": True}
        return by_device if self.compile_config is None else self.compile_config

    def is_compiled_on(self, device_type: str) -> bool:
        """Return whether layers are compiled on a device type."""
        return not self.compiled_with(device_type).get("disable")

    def objective_of(self, stage: str) -> Objective:
        """Build a stage's objective.

        Raises:
            ConfigurationError: the objective is unknown, or has a wrong argument; names the key.
        """
        given = self.stages[stage].objective
        if given is None:
            return build(OBJECTIVES, self.objective, "objective")
        return build(OBJECTIVES, given, f"stages.{stage}.objective")

    def knobs_of(self, stage: str) -> dict[str, Any]:
        """Return the value of every knob of the family and of the stage's objective, as set in the recipe."""
        config, objective = self.stages[stage], self.objective_of(stage)
        given = {name: getattr(config, name, None) for name in (*self.family.knobs, *objective.knobs)}
        default = {name: getattr(self.model, name, None) for name in self.family.knobs}
        default |= {name: getattr(objective, name) for name in objective.knobs}
        return {name: default[name] if value is None else value for name, value in given.items()}

    def __reduce__(self) -> tuple:
        """Pickle by content, because `schema_of` makes the class and no module has a name for it."""
        return _from_yaml, (self.model.family, OmegaConf.to_yaml(OmegaConf.structured(self)))


def _from_yaml(family: str, content: str) -> Recipe:
    config, values = OmegaConf.structured(schema_of(family)), OmegaConf.create(content)
    config.optimizer = OmegaConf.structured(OPTIMIZERS[values.optimizer.name])
    return OmegaConf.to_object(OmegaConf.merge(config, values))


def knob_names(family: Family) -> list[str]:
    """Return the names of all knobs that a stage may set: the family's, and those of every objective."""
    of_objectives = (name for place in OBJECTIVES.values() for name in load(place).knobs)
    return list(dict.fromkeys([*family.knobs, *of_objectives]))


def all_knobs() -> dict[str, Knob]:
    """Return every knob of every family and objective, by name."""
    of_families = {name: knob for family in families() for name, knob in family.knobs.items()}
    return of_families | {name: knob for place in OBJECTIVES.values() for name, knob in load(place).knobs.items()}


def all_metrics() -> dict[str, Metric]:
    """Return every metric of every objective, by name."""
    return {metric.name: metric for place in OBJECTIVES.values() for metric in load(place).metrics}


def schema_of(family_name: str) -> type[Recipe]:
    """Return Recipe with the keys that a family and the objectives add to `model` and `stages`.

    Raises:
        ConfigurationError: there is no such family.
    """
    return _schema(find_family(family_name), tuple(OBJECTIVES))


@cache
def _schema(family: Family, objectives: tuple[str, ...]) -> type[Recipe]:
    shape = [
        (key.name, key.type) if key.default is NO_DEFAULT else (key.name, key.type, field(default=key.default))
        for key in fields(family.Shape)
    ]
    of_model = [(name, Any, field(default=None)) for name in family.knobs]
    of_stage = [(name, Any, field(default=None)) for name in knob_names(family)]
    model = make_dataclass("ModelConfig", [*shape, *of_model], bases=(ModelConfig,), kw_only=True)
    stage = make_dataclass("StageConfig", of_stage, bases=(StageConfig,), kw_only=True)
    return make_dataclass("Recipe", [("model", model), ("stages", dict[str, stage])], bases=(Recipe,), kw_only=True)
