"""Run a training, from a recipe to its last checkpoint. The functions are in the order in which they are called."""

import gc
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch
from composer import Trainer
from composer.core import Evaluator, Event, State
from composer.utils import dist
from omegaconf import OmegaConf

from rotary_foundry.algorithms.gradient_combination import GradientCombination
from rotary_foundry.algorithms.microbatch_seed import MicrobatchSeed
from rotary_foundry.algorithms.one_reduction import OneReduction
from rotary_foundry.algorithms.segment_switch import SegmentSwitch
from rotary_foundry.callbacks.checkpoint_rollback import CheckpointRollback
from rotary_foundry.callbacks.checkpoint_saver import NOT_LOADED, CompleteCheckpointSaver
from rotary_foundry.callbacks.first_update import FirstUpdate
from rotary_foundry.callbacks.graceful_stop import GracefulStop
from rotary_foundry.callbacks.held_locks import HeldLocks
from rotary_foundry.callbacks.last_progress import LastProgress
from rotary_foundry.callbacks.loss_spike import LossSpike
from rotary_foundry.callbacks.loss_watch import LossWatch
from rotary_foundry.callbacks.memory import Memory
from rotary_foundry.callbacks.monitor import Monitor
from rotary_foundry.callbacks.optimizer_monitor import OptimizerMonitor
from rotary_foundry.callbacks.run_records import RunRecords
from rotary_foundry.callbacks.step_time import StepTime
from rotary_foundry.callbacks.task_records import TaskRecords
from rotary_foundry.callbacks.throughput import Throughput
from rotary_foundry.compat.composer import forget_exit_hook
from rotary_foundry.compat.torch import forget_parameter_names
from rotary_foundry.data.corpus import TokenizerFacts, check_same_rows, keep_rows, open_objective
from rotary_foundry.data.loaders import RunData, data_spec
from rotary_foundry.data.same_tokenizer import keep_tokenizer
from rotary_foundry.interop.checkpoint_weights import tasks_with_heads
from rotary_foundry.loggers.stage_progress import StageProgress
from rotary_foundry.models.composer_model import FoundryModel, evaluation_metrics
from rotary_foundry.models.layers.attention import check_implementation, check_kernels
from rotary_foundry.models.task_heads import attach_heads
from rotary_foundry.optim.optimizers import build_optimizer
from rotary_foundry.recipe import Plan, Recipe
from rotary_foundry.recipe.compilation import named_tokens, set_rollback
from rotary_foundry.recipe.plan import Position, Rollback
from rotary_foundry.runs.changes import changes_of_run, without_secrets
from rotary_foundry.runs.checkpoint_store import CheckpointStore, open_store
from rotary_foundry.runs.environment import environment
from rotary_foundry.runs.record_files import write_whole
from rotary_foundry.runs.run_folder import CompleteCheckpoint, RunFolder
from rotary_foundry.runs.run_lock import RunLock
from rotary_foundry.runs.safe_reading import refuse_code
from rotary_foundry.runs.trouble import RollbackDue
from rotary_foundry.training.extensions import extensions
from rotary_foundry.training.first_weights import first_weights
from rotary_foundry.training.loggers import loggers
from rotary_foundry.training.ranks import ended_by_sigterm, on_each_node, on_rank_zero, watching
from rotary_foundry.training.rollback import roll_back
from rotary_foundry.training.sharding import ShardingConfig, check_compile_config, fill, replicas_of, shard
from rotary_foundry.utils.allocator import keep_freed_memory
from rotary_foundry.utils.errors import ConfigurationError, StopRequested

Announce = Callable[[Recipe, Plan, RunFolder, str, CompleteCheckpoint | None], None]
AMPERE = (8, 0)
MOST_THREADS = 8  # per rank on a GPU, which has little work on the host


def train(
    recipe: Recipe,
    plan: Plan,
    tokenizer: TokenizerFacts,
    announce: Announce | None = None,
    locks: Sequence[RunLock] = (),
) -> None:
    """Train a recipe to its end, from its newest complete checkpoint if there is one.

    The run writes to `<runs_folder>/<run_name>/`, and copies what a resume needs to `save_folder`. A finished run is
    left unchanged. For a rollback, the Trainer ends, and a new start follows in the same processes.

    Args:
        recipe: the recipe with all overrides.
        plan: the recipe's plan before any rollback.
        tokenizer: the tokenizer of the shards.
        announce: called on rank 0 when training begins, with the recipe, the plan in force, the run's folder, the name
            of the attention backend, and the checkpoint if there is one.
        locks: the run's locks, which this process holds; they stay held.

    Raises:
        StopRequested: a rank got SIGTERM or SIGUSR1, and the checkpoint is written.
    """
    folder = RunFolder.of(recipe)
    store = open_store(recipe, folder)
    on_gpu = torch.cuda.is_available()
    device_type = "cuda" if on_gpu else "cpu"
    attention = check_implementation(recipe.model.attn_implementation, device_type, recipe.precision)
    if on_gpu:
        _check_gpu(attention, recipe.model.shape.head_dim)
    check_compile_config(recipe, device_type)
    with ended_by_sigterm():
        dist.initialize_dist("gpu" if on_gpu else "cpu", timeout=recipe.dist_timeout)
    if not on_gpu:
        keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        threads = len(os.sched_getaffinity(0)) // dist.get_local_world_size()
        torch.set_num_threads(max(1, min(threads, MOST_THREADS) if on_gpu else threads))
    data = RunData(recipe, tokenizer)
    started = psutil.Process().create_time()
    with watching(recipe.dist_timeout):
        while (start := _find_start(recipe, plan, folder, store)) is not None:
            if announce is not None and dist.get_global_rank() == 0:
                announce(recipe, start.plan, folder, attention, start.checkpoint)
            announce = None
            due = _fit(recipe, data, folder, store, start, started, locks)
            if due is None:
                return
            gc.collect()  # frees the old Trainer, which has reference cycles; the next one needs its memory
            started = time.time()
            on_rank_zero(partial(roll_back, recipe, start.plan, folder, store, due))


def _check_gpu(attention: str, head_dim: int) -> None:
    """Refuse an attention backend whose kernels this rank's GPU cannot run, or not for heads of this size."""
    rank = dist.get_local_rank()
    torch.cuda.set_device(rank)  # as Composer does later; newer kernels are chosen for the current device
    capability = torch.cuda.get_device_capability(rank)
    if attention != "sdpa" and capability < AMPERE:
        raise ConfigurationError(
            f"'model.attn_implementation': the kernels of '{attention}' need compute capability 8.0 (Ampere), and "
            f"{torch.cuda.get_device_name(rank)} has {'.'.join(map(str, capability))}; set precision: fp32, for which "
            "'auto' takes sdpa, or use newer GPUs"
        )
    check_kernels(attention, head_dim, torch.device("cuda", rank))


@dataclass(frozen=True)
class Start:
    """The point from which a run starts or resumes."""

    plan: Plan
    rollbacks: list[Rollback]  # the run's rollbacks so far
    checkpoint: CompleteCheckpoint | None  # None: at the beginning

    @property
    def token(self) -> int:
        return self.checkpoint.token if self.checkpoint else 0


def _find_start(recipe: Recipe, plan: Plan, folder: RunFolder, store: CheckpointStore | None) -> Start | None:
    """Find the start on every rank, with the checkpoint on every node; None if the run is finished."""
    if store is not None:
        newest = on_rank_zero(store.bring_newest)
        if newest is not None:
            on_each_node(partial(store.fetch, newest))
    start = on_rank_zero(partial(_prepare_start, recipe, plan, folder))
    if start is not None:
        on_each_node(partial(check_same_rows, recipe, on_rank_zero(folder.rows.read_text)))
    if start is not None and start.checkpoint is not None:
        on_each_node(partial(refuse_code, start.checkpoint.folder))
    return start


def _prepare_start(recipe: Recipe, plan: Plan, folder: RunFolder) -> Start | None:
    """Choose the start, and write the recipe and its plan; None if the run is finished."""
    folder.tidy_up()
    rollbacks, checkpoint = folder.rollbacks(), folder.newest_checkpoint()
    start = Start(plan.after(rollbacks), rollbacks, checkpoint)
    if checkpoint is not None:
        for change in changes_of_run(folder, recipe, plan):
            print(f"changed since the last start: {change}")
        if start.token == start.plan.total_tokens:
            print(f"{folder.path}: finished, all {start.token:_} tokens; nothing to do")
            return None
        _check_heads(recipe, checkpoint)
        print(f"{folder.path}: going on from {checkpoint.folder.name}, token {start.token:_}", flush=True)
    folder.path.mkdir(parents=True, exist_ok=True)
    keep_tokenizer(Path(recipe.data.local) / "tokenizer", folder.tokenizer, begun=checkpoint is not None)
    keep_rows(recipe, folder.rows, {segment.row_length for segment in start.plan.between(0, start.token)})
    write_whole(folder.recipe, OmegaConf.to_yaml(OmegaConf.structured(without_secrets(recipe))))
    write_whole(folder.plan, json.dumps(start.plan.to_json(), indent=2) + "\n")
    write_whole(folder.environment, json.dumps(environment(), indent=2) + "\n")
    return start


def _check_heads(recipe: Recipe, checkpoint: CompleteCheckpoint) -> None:
    """Refuse a multi-task stage that was added to a run, because its heads are not in the checkpoint."""
    tasks = {name: task for stage in recipe.stages for name, task in open_objective(recipe, stage).tasks.items()}
    new = {name for name, task in tasks.items() if task.kind != "masked_lm"}
    if new and (new := new - tasks_with_heads(checkpoint.folder)):
        raise ConfigurationError(
            f"{checkpoint.folder}: has no head for {', '.join(sorted(new))}; a run has its heads from its beginning, "
            "so train the multi-task stage in a run of its own, with init_from: and this run's folder"
        )


def _fit(
    recipe: Recipe,
    data: RunData,
    folder: RunFolder,
    store: CheckpointStore | None,
    start: Start,
    started: float,
    locks: Sequence[RunLock],
) -> RollbackDue | None:
    """Train to the end of the plan, or until a rollback is due."""
    trainer = build_trainer(recipe, data, folder, start, store, locks)
    trainer.state.callbacks.append(FirstUpdate(started))
    try:
        if start.checkpoint is None and recipe.init_from is not None:
            _evaluate_first_weights(trainer)
        trainer.fit()
    except (RollbackDue, StopRequested) as outcome:  # raised on every rank
        trainer.close()
        forget_exit_hook(trainer)
        forget_parameter_names()
        if isinstance(outcome, StopRequested):
            raise
        return RollbackDue(
            outcome.trouble, outcome.token
        )  # a new exception, because the old one's traceback refers to the Trainer
    except BaseException:
        trainer.engine.close()  # not trainer.close(), which waits for the other ranks, while they may wait for this one
        raise
    trainer.close()
    return None


def build_trainer(
    recipe: Recipe,
    data: RunData,
    folder: RunFolder,
    start: Start,
    store: CheckpointStore | None = None,
    locks: Sequence[RunLock] = (),
) -> Trainer:
    """Build Composer's Trainer for a recipe, at a checkpoint or at the start."""
    plan, rollbacks = start.plan, len(start.rollbacks)
    position = plan.at(start.token)
    precision = recipe.precision if torch.cuda.is_available() else "fp32"  # on CPU the model itself casts to bf16
    train_loader = partial(data.train_loader, plan)
    model = _build_model(recipe, data, position, initialised=start.checkpoint is None)
    optimizer = build_optimizer(recipe.optimizer, model, position.max_lr)
    combinations = [GradientCombination(recipe.seed)] if data.tasks else []
    reshards = recipe.fsdp_config.reshards(recipe.model.shape.parameters)
    reductions = [] if reshards or combinations else [OneReduction()]  # a combination needs each task's own gradient
    watch = LossWatch(recipe.rollback)
    if start.checkpoint is not None:
        watch.load_state_dict(start.checkpoint.watch)
    planned = set_rollback(recipe, plan)
    if any(rollback.trigger == planned.trigger for rollback in start.rollbacks if planned):
        planned = None
    monitors = [*_monitors(recipe), *map(TaskRecords, combinations)]
    records = RunRecords(folder, rollbacks, plan, monitors, recipe.dist_timeout)
    saver = _build_saver(recipe, folder, start, watch, records, store)
    return Trainer(
        model=model,
        run_name=recipe.run_name,
        seed=recipe.seed,
        max_duration=f"{plan.total_tokens}tok",
        train_dataloader=data_spec(train_loader(start.token)),
        train_dataloader_label=position.stage,
        spin_dataloaders=False,  # the loader starts at the token clock
        accumulate_train_batch_on_tokens=True,  # weight microbatches by predicted tokens
        device_train_microbatch_size=data.microbatch_rows[position.stage],
        optimizers=optimizer,
        precision=precision,
        parallelism_config={"fsdp": ShardingConfig(replicas_of(recipe))},
        algorithms=[
            SegmentSwitch(recipe, data.microbatch_rows, plan, train_loader),
            MicrobatchSeed(recipe.seed),
            *reductions,
            *combinations,
            *extensions(recipe, "algorithms"),
        ],
        callbacks=[
            HeldLocks(locks),
            *monitors,
            records,
            CheckpointRollback(watch, planned),
            saver,
            LastProgress(),
            GracefulStop(saver),
            *extensions(recipe, "callbacks"),
        ],
        eval_dataloader=[_stage_end_evaluator(plan, data, stage) for stage in recipe.stages],
        loggers=[
            StageProgress(plan, recipe.console_log_interval, recipe.progress_bar),
            *loggers(recipe, folder),
        ],
        progress_bar=False,  # StageProgress draws it
        load_path=str(start.checkpoint.folder) if start.checkpoint else None,
        load_ignore_keys=NOT_LOADED,
        dist_timeout=recipe.dist_timeout,
        deterministic_mode=recipe.deterministic_mode,
    )


def _build_model(recipe: Recipe, data: RunData, position: Position, initialised: bool) -> FoundryModel:
    """Build the sharded network with its objectives; if not `initialised`, a checkpoint sets its parameters later."""
    on_gpu = torch.cuda.is_available()
    with torch.device("meta"):
        network = recipe.family.network(recipe.model.shape, position.knobs, recipe.model.attn_implementation)
        if data.tasks:
            attach_heads(network, data.tasks)
    device = torch.device("cuda" if on_gpu else "cpu")
    shard(network, recipe, device)
    network.to_empty(device=device)
    if initialised:
        fill(network, first_weights(recipe, network))
    return FoundryModel(
        network,
        data.objectives,
        position.stage,
        cpu_autocast=recipe.precision == "amp_bf16" and not on_gpu,
        static_rows=data.microbatch_rows if data.compiled else None,
    )


def _build_saver(
    recipe: Recipe,
    folder: RunFolder,
    start: Start,
    watch: LossWatch,
    records: RunRecords,
    store: CheckpointStore | None,
) -> CompleteCheckpointSaver:
    named = {start.plan.boundary_before(token) for token in named_tokens(recipe)}
    return CompleteCheckpointSaver(
        folder,
        recipe.save_interval,
        due_tokens=named | set(start.plan.stage_ends.values()),
        num_checkpoints_to_keep=recipe.save_num_checkpoints_to_keep,
        rollbacks=len(start.rollbacks),
        begun=start.checkpoint is not None,
        watch=watch,
        needed_tokens=named,
        records=records,
        store=store,
    )


def _monitors(recipe: Recipe) -> list[Monitor]:
    return [
        StepTime(),
        Throughput(recipe),
        Memory(),
        OptimizerMonitor(),
        LossSpike(),
    ]


def _stage_end_evaluator(plan: Plan, data: RunData, stage: str) -> Evaluator:
    end = plan.stage_ends[stage]

    def at_stage_end(state: State, event: Event) -> bool:
        return event == Event.BATCH_END and state.timestamp.token.value == end

    return Evaluator(
        label=stage,
        dataloader=data_spec(data.eval_loader(stage)),
        metric_names=[f"^{re.escape(name)}$" for name in evaluation_metrics(data.objectives[stage])],
        eval_interval=at_stage_end,
        device_eval_microbatch_size=data.microbatch_rows[stage],
    )


def _evaluate_first_weights(trainer: Trainer) -> None:
    """Evaluate once before the first update, with the first stage's evaluator, to measure the effect of growing."""
    evaluators = trainer.state.evaluators
    trainer.state.evaluators = evaluators[:1]
    trainer.eval()
    trainer.state.evaluators = evaluators
