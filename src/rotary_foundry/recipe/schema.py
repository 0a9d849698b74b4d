"""The keys of a recipe, typed.

Keys that Composer's Trainer or Streaming know bear their names. A field without a default has to be given in a YAML:
the numbers of the published recipes stand there, once, and not here. Times are Composer's time strings in tokens
(`3_000_000_000tok`), or, inside a stage, in shares of the stage (`1dur`).
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from rotary_foundry.utils.errors import ConfigurationError


@dataclass
class ModelConfig:
    """ModernBERT's shape. The theta of the global layers is not here: it belongs to the stage.

    What a recipe leaves out of the shape is that of `init_from`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int  # inner width of the GLU; its input projection is twice as wide
    num_hidden_layers: int
    num_attention_heads: int
    global_attn_every_n_layers: int  # layers 0, n, 2n, … attend globally
    local_attention: int | None  # window of the others in tokens, half of it to each side; null if n is 1: no others
    local_rope_theta: float
    norm_eps: float
    attn_out_dropout: float
    attn_implementation: str = field(default="auto", compare=False)  # how attention is computed: no part of the shape


NOT_SHAPE = (
    "attn_out_dropout",
    "attn_implementation",
)  # keys of the above that every model of a shape may have its own


@dataclass
class MaskingConfig:
    """Masked-LM corruption: which share of the tokens is to be predicted, and what stands in their places."""

    mlm_probability: float
    eval_mlm_probability: float
    mask_share: float  # of the chosen tokens, those replaced by [MASK]
    random_share: float  # … by a random token; the rest is kept as it is


@dataclass
class OptimizerConfig:
    """StableAdamW. The learning rate is the stage's."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float  # fully decoupled: a step multiplies by 1 - (lr / max_lr) * weight_decay


@dataclass
class DataConfig:
    """Where the shards are, as `python data_prep` wrote them, and how Streaming orders them."""

    local: str  # the `out` of the data YAML, or the cache for `remote`
    sources: list[str]  # what a stage without a mixture draws on, each row once an epoch
    remote: str | None = None
    cache_limit: str | None = None  # bytes that the training rows of one length take of `local`, as 100gb; null: all
    shuffle_algo: str = "py1e"
    shuffle_block_size: int = 1 << 18
    num_workers: int = 1


@dataclass
class BatchSizeRamp:
    """Batch sizes from `initial` in steps of `increment` up to the stage's, with the same number of updates at each."""

    initial: int
    increment: int
    duration: str


@dataclass
class StageConfig:
    """A stretch of training with one row length and one theta."""

    duration: str
    row_length: int  # tokens
    rope_theta: float  # of the global layers; where it is left out, that of `init_from`
    global_train_batch_size: int  # rows an update
    device_train_microbatch_size: int  # rows a forward pass on one device, at most
    lr: float  # the stage's peak
    t_warmup: str = "0tok"  # linear from 0
    t_decay: str = "0tok"  # at the end of the stage
    decay_shape: str = "one_minus_sqrt"  # or linear, or cosine
    alpha_f: float = 1.0  # the last learning rate as a multiple of the peak
    batch_size_ramp: BatchSizeRamp | None = None
    mixture: dict[str, float] | None = None  # share of the rows by source; none: every row once an epoch


@dataclass
class Trigger:
    """What a rollback does. Each kind of trigger says when."""

    to: str | None = None  # a token, of which the last checkpoint before it is taken; null: the last before the trouble
    lr: float | None = None  # the peak of the stages it goes back over, from there on; null: as it was
    weight_decay: float | None = None  # from there to the end of the run; null: as it was
    data: str = "replay"  # the rows of the abandoned stretch again; advance: those that come after them


@dataclass
class AtTrigger(Trigger):
    """At a set token, back to another."""

    token: str = MISSING
    to: str = MISSING


@dataclass
class PlateauTrigger(Trigger):
    """The smoothed loss has not fallen by `min_delta` over the last `window` tokens of a stage."""

    window: str = MISSING
    min_delta: float = MISSING  # nats


@dataclass
class SpikeTrigger(Trigger):
    """The loss lies `z_score` robust deviations above the median of the updates before, `patience` updates on end."""

    z_score: float = MISSING
    patience: int = MISSING


@dataclass
class NonFiniteTrigger(Trigger):
    """The loss of an update is infinite or not a number. Without this trigger, that ends the run."""


@dataclass
class RollbackConfig:
    """When a run goes back to an earlier checkpoint and goes on from there otherwise."""

    at: AtTrigger | None = None
    plateau: PlateauTrigger | None = None
    spike: SpikeTrigger | None = None
    non_finite: NonFiniteTrigger | None = None
    max_rollbacks: int = 3  # of those that are not set; one more ends the run


@dataclass
class FSDPConfig:
    """How parameters, gradients and optimizer state lie on the ranks; the names are Composer's."""

    data_parallel_shard_degree: int = -1  # ranks that share one copy of the model; -1: as many as there are
    data_parallel_replicate_degree: int = 1  # copies; more than 1 is HSDP
    activation_checkpointing: bool = False  # compute a layer again in the backward pass instead of keeping what it made

    def degrees(self, world_size: int) -> tuple[int, int]:
        """Replicas, and shards of each.

        Raises:
            ConfigurationError: the two do not make up the world size.
        """
        replicas, shards = self.data_parallel_replicate_degree, self.data_parallel_shard_degree
        if shards == -1:
            shards = world_size // replicas
        if replicas * shards != world_size:
            raise ConfigurationError(
                f"fsdp_config: data_parallel_replicate_degree {replicas} × data_parallel_shard_degree {shards} "
                f"is not the number of processes, {world_size}"
            )
        return replicas, shards


@dataclass
class Recipe:
    """A whole training run."""

    run_name: str
    seed: int
    precision: str  # fp32 or amp_bf16
    model: ModelConfig
    masking: MaskingConfig
    optimizer: OptimizerConfig
    data: DataConfig
    stages: dict[str, StageConfig]  # by name, in order
    save_interval: str  # such as 500ba or 1_000_000tok; the end of every stage is saved as well
    init_from: str | None = None  # a run, a checkpoint or a Hugging Face directory to begin with; none: drawn at random
    rollback: RollbackConfig = field(default_factory=RollbackConfig)
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)
    deterministic_mode: bool = False  # the Trainer's: the same command gives the same bits on a GPU as well, but slower
    compile_config: dict[str, Any] | None = None  # arguments of torch.compile, layer by layer; null: not compiled
    runs_folder: str = "runs"
    save_folder: str | None = None  # s3://bucket/path, where what a resume needs is kept as well; null: only locally
    save_num_checkpoints_to_keep: int = -1
    dist_timeout: float = 600.0  # seconds
    console_log_interval: str = "10ba"  # or such as 1_000_000tok: a line on the terminal
    progress_bar: bool = True  # on a terminal only
    loggers: dict[str, Any] = field(default_factory=dict)  # wandb and tensorboard: {arguments of Composer's}
    rehearse: bool = False  # run a rehearsal of this recipe instead: every transition, in minutes
