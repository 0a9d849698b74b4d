"""A training run, from a recipe to its last checkpoint, in the order in which things happen."""

import atexit
import gc
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch
from composer import Trainer
from composer.core import Evaluator, Event, State
from composer.utils import dist
from omegaconf import OmegaConf
from torch.distributed.checkpoint import state_dict

from rotary_foundry.algorithms.microbatch_seed import MicrobatchSeed
from rotary_foundry.algorithms.segment_switch import SegmentSwitch
from rotary_foundry.callbacks.checkpoint_rollback import CheckpointRollback, RollbackDue
from rotary_foundry.callbacks.checkpoint_saver import NOT_LOADED, CompleteCheckpointSaver
from rotary_foundry.callbacks.first_update import FirstUpdate
from rotary_foundry.callbacks.graceful_stop import GracefulStop
from rotary_foundry.callbacks.loss_spike import LossSpike
from rotary_foundry.callbacks.loss_watch import LossWatch
from rotary_foundry.callbacks.memory import Memory
from rotary_foundry.callbacks.monitor import Monitor
from rotary_foundry.callbacks.optimizer_monitor import OptimizerMonitor
from rotary_foundry.callbacks.run_records import RunRecords
from rotary_foundry.callbacks.step_time import StepTime
from rotary_foundry.callbacks.straggling_rank import StragglingRank
from rotary_foundry.callbacks.throughput import Throughput
from rotary_foundry.data.corpus import TokenizerFacts, check_same_rows, keep_rows
from rotary_foundry.data.loaders import RunData, data_spec
from rotary_foundry.data.same_tokenizer import keep_tokenizer
from rotary_foundry.interop.safe_reading import refuse_code
from rotary_foundry.loggers.stage_progress import StageProgress
from rotary_foundry.models.composer_model import METRICS, ComposerMaskedLM
from rotary_foundry.models.layers.attention import check_implementation
from rotary_foundry.models.modernbert.network import MaskedLM
from rotary_foundry.optim.decay_groups import decay_groups
from rotary_foundry.optim.stable_adamw import StableAdamW
from rotary_foundry.recipe import Plan, Recipe
from rotary_foundry.recipe.plan import Rollback, named_tokens, plan_in_force, set_rollback
from rotary_foundry.recipe.schema import StageConfig
from rotary_foundry.runs.changes import changes_of_run, without_secrets
from rotary_foundry.runs.checkpoint_store import CheckpointStore, open_store
from rotary_foundry.runs.environment import environment
from rotary_foundry.runs.run_folder import CompleteCheckpoint, RunFolder, write_whole
from rotary_foundry.training.first_weights import first_weights
from rotary_foundry.training.loggers import loggers
from rotary_foundry.training.ranks import on_each_node, on_rank_zero, watching
from rotary_foundry.training.rollback import roll_back
from rotary_foundry.training.sharding import ShardingConfig, fill, shard
from rotary_foundry.utils.allocator import keep_freed_memory
from rotary_foundry.utils.errors import StopRequested

Announce = Callable[[Recipe, Plan, RunFolder, str, CompleteCheckpoint | None], None]


def train(recipe: Recipe, tokenizer: TokenizerFacts, announce: Announce | None = None) -> None:
    """Train a recipe to its end, from its newest complete checkpoint if there is one.

    Everything goes to `<runs_folder>/<run_name>/`, and what a resume needs to `save_folder` as well. A finished run is
    left as it is. A rollback ends the Trainer and goes the same way as a new start, in the same processes.

    Args:
        recipe: with all overrides.
        tokenizer: of its shards.
        announce: called on rank 0 when it begins, with the recipe, the plan in force, the run's folder, the name of the
            attention backend, and the checkpoint if there is one.

    Raises:
        StopRequested: after a SIGTERM, when the checkpoint is written.
    """
    folder = RunFolder.of(recipe)
    store = open_store(recipe, folder)
    on_gpu = torch.cuda.is_available()
    attention = check_implementation(recipe.model.attn_implementation, "cuda" if on_gpu else "cpu", recipe.precision)
    dist.initialize_dist("gpu" if on_gpu else "cpu", timeout=recipe.dist_timeout)
    if not on_gpu:
        keep_freed_memory()
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // dist.get_local_world_size()))
    data = RunData(recipe, tokenizer)
    started = psutil.Process().create_time()
    with watching(recipe.dist_timeout):
        while (start := _find_start(recipe, folder, store)) is not None:
            if announce is not None and dist.get_global_rank() == 0:
                announce(recipe, start.plan, folder, attention, start.checkpoint)
            announce = None
            due = _fit(recipe, data, folder, store, start, started)
            if due is None:
                return
            gc.collect()  # the Trainer, which refers to itself: the next one needs its memory
            started = time.time()
            on_rank_zero(partial(roll_back, recipe, folder, store, due))


@dataclass(frozen=True)
class Start:
    """Where a run goes on."""

    plan: Plan
    rollbacks: list[Rollback]  # that it has had
    checkpoint: CompleteCheckpoint | None  # None: at the beginning

    @property
    def token(self) -> int:
        return self.checkpoint.token if self.checkpoint else 0


def _find_start(recipe: Recipe, folder: RunFolder, store: CheckpointStore | None) -> Start | None:
    """Where to go on, on every rank, with the checkpoint on every node; None if the run is finished."""
    if store is not None:
        newest = on_rank_zero(store.bring_newest)
        if newest is not None:
            on_each_node(partial(store.fetch, newest))
    start = on_rank_zero(partial(_prepare_start, recipe, folder))
    if start is not None:
        on_each_node(partial(check_same_rows, recipe, on_rank_zero(folder.rows.read_text)))
    if start is not None and start.checkpoint is not None:
        on_each_node(partial(refuse_code, start.checkpoint.folder))
    return start


def _prepare_start(recipe: Recipe, folder: RunFolder) -> Start | None:
    """Choose where to go on, and write the recipe and its plan down; None if the run is finished."""
    folder.tidy_up()
    rollbacks, checkpoint = folder.rollbacks(), folder.newest_checkpoint()
    start = Start(plan_in_force(recipe, rollbacks), rollbacks, checkpoint)
    if checkpoint is not None:
        for change in changes_of_run(folder, recipe):
            print(f"changed since the last start: {change}")
        if start.token == start.plan.total_tokens:
            print(f"{folder.path}: finished, all {start.token:_} tokens; nothing to do")
            return None
        print(f"{folder.path}: going on from {checkpoint.folder.name}, token {start.token:_}", flush=True)
    folder.path.mkdir(parents=True, exist_ok=True)
    keep_tokenizer(Path(recipe.data.local) / "tokenizer", folder.tokenizer, begun=checkpoint is not None)
    keep_rows(recipe, folder.rows, {segment.row_length for segment in start.plan.between(0, start.token)})
    write_whole(folder.recipe, OmegaConf.to_yaml(OmegaConf.structured(without_secrets(recipe))))
    write_whole(folder.plan, json.dumps(start.plan.to_json(), indent=2) + "\n")
    write_whole(folder.environment, json.dumps(environment(), indent=2) + "\n")
    return start


def _fit(
    recipe: Recipe, data: RunData, folder: RunFolder, store: CheckpointStore | None, start: Start, started: float
) -> RollbackDue | None:
    """Train to the end of the plan, or until a rollback is due."""
    trainer = build_trainer(recipe, data, folder, start, store)
    trainer.state.callbacks.append(FirstUpdate(started))
    try:
        if start.checkpoint is None and recipe.init_from is not None:
            _evaluate_first_weights(trainer)
        trainer.fit()
    except (RollbackDue, StopRequested) as outcome:  # on every rank alike
        trainer.close()
        _let_go_of(trainer)
        if isinstance(outcome, StopRequested):
            raise
        return RollbackDue(outcome.trouble, outcome.token)  # a new one: the old one's traceback holds the Trainer
    except BaseException:
        trainer.engine.close()  # not trainer.close(): it waits for the other ranks, who may wait for this one
        raise
    trainer.close()
    return None


def _let_go_of(trainer: Trainer) -> None:
    """Undo what keeps a closed Trainer's model and optimizer in memory: Composer's exit hook, a cache of torch's."""
    atexit.unregister(trainer.engine._close)
    if hasattr(state_dict._get_fqns, "cache_clear"):  # up to torch 2.11
        state_dict._get_fqns.cache_clear()


def build_trainer(
    recipe: Recipe, data: RunData, folder: RunFolder, start: Start, store: CheckpointStore | None = None
) -> Trainer:
    """Composer's Trainer for a recipe, at a checkpoint or at the start."""
    plan, rollbacks = start.plan, len(start.rollbacks)
    position = plan.at(start.token)
    on_gpu = torch.cuda.is_available()
    precision = recipe.precision if on_gpu else "fp32"  # Composer knows no amp_bf16 on CPU: the model sees to it
    train_loader = partial(data.train_loader, plan)
    with torch.device("meta"):
        network = MaskedLM(recipe.model, position.rope_theta_global)
    device = torch.device("cuda" if on_gpu else "cpu")
    shard(network, recipe, device)
    network.to_empty(device=device)
    if start.checkpoint is None:
        fill(network, first_weights(recipe))
    model = ComposerMaskedLM(network, cpu_autocast=recipe.precision == "amp_bf16" and not on_gpu)
    optimizer = StableAdamW(
        decay_groups(model, recipe.optimizer.weight_decay),
        lr=position.lr,
        betas=recipe.optimizer.betas,
        eps=recipe.optimizer.eps,
        weight_decay=recipe.optimizer.weight_decay,
        max_lr=position.max_lr,
    )
    watch = LossWatch(recipe.rollback)
    if start.checkpoint is not None:
        watch.load_state_dict(start.checkpoint.watch)
    planned = set_rollback(recipe, plan)
    if any(rollback.trigger == planned.trigger for rollback in start.rollbacks if planned):
        planned = None
    named = {plan.boundary_before(token) for token in named_tokens(recipe)}
    saver = CompleteCheckpointSaver(
        folder,
        recipe.save_interval,
        due_tokens=named | set(plan.stage_ends.values()),
        num_checkpoints_to_keep=recipe.save_num_checkpoints_to_keep,
        rollbacks=rollbacks,
        watch=watch,
        needed_tokens=named,
        store=store,
    )
    monitors = _monitors(recipe)
    return Trainer(
        model=model,
        run_name=recipe.run_name,
        seed=recipe.seed,
        max_duration=f"{plan.total_tokens}tok",
        train_dataloader=data_spec(train_loader(start.token)),
        train_dataloader_label=position.stage,
        spin_dataloaders=False,  # the loader starts at the token clock
        accumulate_train_batch_on_tokens=True,  # weight microbatches by masked tokens
        device_train_microbatch_size=recipe.stages[position.stage].device_train_microbatch_size,
        optimizers=optimizer,
        precision=precision,
        parallelism_config={"fsdp": ShardingConfig(recipe.fsdp_config.degrees(dist.get_world_size())[0])},
        algorithms=[SegmentSwitch(recipe, plan, train_loader), MicrobatchSeed(recipe.seed)],
        callbacks=[
            *monitors,
            RunRecords(folder, rollbacks, list(recipe.stages), monitors),
            CheckpointRollback(watch, planned),
            saver,
            GracefulStop(saver),
        ],
        eval_dataloader=[_stage_end_evaluator(plan, data, name, stage) for name, stage in recipe.stages.items()],
        loggers=[
            *loggers(recipe, folder),
            StageProgress(plan, recipe.console_log_interval, recipe.progress_bar),
        ],
        progress_bar=False,  # StageProgress has it
        load_path=str(start.checkpoint.folder) if start.checkpoint else None,
        load_ignore_keys=NOT_LOADED,
        dist_timeout=recipe.dist_timeout,
        deterministic_mode=recipe.deterministic_mode,
    )


def _monitors(recipe: Recipe) -> list[Monitor]:
    step_time = StepTime()
    return [
        step_time,
        StragglingRank(step_time),
        Throughput(recipe),
        Memory(),
        OptimizerMonitor(),
        LossSpike(),
    ]


def _stage_end_evaluator(plan: Plan, data: RunData, name: str, stage: StageConfig) -> Evaluator:
    end = plan.stage_ends[name]

    def at_stage_end(state: State, event: Event) -> bool:
        return event == Event.BATCH_END and state.timestamp.token.value == end

    return Evaluator(
        label=name,
        dataloader=data_spec(data.eval_loader(stage.row_length, stage.device_train_microbatch_size)),
        metric_names=list(METRICS),
        eval_interval=at_stage_end,
        device_eval_microbatch_size=stage.device_train_microbatch_size,
    )


def _evaluate_first_weights(trainer: Trainer) -> None:
    """One evaluation before the first update, by the first stage's evaluator: what growing was worth."""
    evaluators = trainer.state.evaluators
    trainer.state.evaluators = evaluators[:1]
    trainer.eval()
    trainer.state.evaluators = evaluators
