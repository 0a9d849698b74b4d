"""A training run, from a recipe to its last checkpoint, in the order in which things happen."""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from composer import Trainer
from composer.core import Evaluator, Event, Precision, State
from composer.loggers import LoggerDestination, WandBLogger
from composer.utils import dist
from omegaconf import OmegaConf

from encoder_foundry.algorithms.microbatch_seed import MicrobatchSeed
from encoder_foundry.algorithms.segment_switch import SegmentSwitch
from encoder_foundry.callbacks.checkpoints import NOT_LOADED, CompleteCheckpointSaver
from encoder_foundry.callbacks.optimizer_monitor import OptimizerMonitor
from encoder_foundry.callbacks.run_records import RunRecords
from encoder_foundry.callbacks.stage_progress import StageProgress
from encoder_foundry.data.loaders import RunData, data_spec
from encoder_foundry.data.shards import TokenizerFacts
from encoder_foundry.errors import ConfigurationError
from encoder_foundry.model.attention import check_implementation
from encoder_foundry.model.composer_model import METRICS, ComposerMaskedLM
from encoder_foundry.model.masked_lm import MaskedLM
from encoder_foundry.optim.decay_groups import decay_groups
from encoder_foundry.optim.stable_adamw import StableAdamW
from encoder_foundry.recipe import Plan, Recipe, compile_plan, load_recipe
from encoder_foundry.recipe.plan import Segment
from encoder_foundry.recipe.schema import StageConfig
from encoder_foundry.run_folder import CompleteCheckpoint, RunFolder
from encoder_foundry.training.allocator import keep_freed_memory
from encoder_foundry.training.first_weights import first_weights
from encoder_foundry.training.sharding import ShardingConfig, fill, shard


def train(recipe: Recipe, tokenizer: TokenizerFacts) -> None:
    """Train a recipe to its end, from its newest complete checkpoint if there is one.

    Everything goes to `<runs_folder>/<run_name>/`. A finished run is left as it is.
    """
    plan = compile_plan(recipe)
    folder = RunFolder(Path(recipe.runs_folder) / recipe.run_name)
    on_gpu = torch.cuda.is_available()
    check_implementation(recipe.model.attn_implementation, "cuda" if on_gpu else "cpu", recipe.precision)
    dist.initialize_dist("gpu" if on_gpu else "cpu", timeout=recipe.dist_timeout)
    if not on_gpu:
        keep_freed_memory()
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // dist.get_local_world_size()))
    checkpoint = _choose_checkpoint(folder)
    if checkpoint is not None and checkpoint.token >= plan.total_tokens:
        if dist.get_global_rank() == 0:
            print(f"{folder.path}: finished, all {plan.total_tokens:_} tokens; nothing to do")
        return
    if checkpoint is not None:
        _refuse_another_run(recipe, plan, folder, checkpoint)
    dist.barrier()  # every rank has compared before the first writes
    if dist.get_global_rank() == 0:
        _describe_run(recipe, plan, folder)
    trainer = build_trainer(recipe, plan, tokenizer, folder, checkpoint)
    try:
        if checkpoint is None and recipe.init_from is not None:
            _evaluate_first_weights(trainer)
        trainer.fit()
    except BaseException:
        trainer.engine.close()  # not trainer.close(): it waits for the other ranks, who may wait for this one
        raise
    trainer.close()


def build_trainer(
    recipe: Recipe, plan: Plan, tokenizer: TokenizerFacts, folder: RunFolder, checkpoint: CompleteCheckpoint | None
) -> Trainer:
    """Composer's Trainer for a recipe, at a checkpoint or at the start."""
    token = checkpoint.token if checkpoint else 0
    position = plan.at(token)
    on_gpu = torch.cuda.is_available()
    data = RunData(recipe, plan, tokenizer)
    precision = recipe.precision if on_gpu else "fp32"  # Composer knows no amp_bf16 on CPU: the model sees to it
    with torch.device("meta"):
        network = MaskedLM(recipe.model, position.rope_theta_global)
    device = torch.device("cuda" if on_gpu else "cpu")
    shard(network, recipe, Precision(precision), device)
    network.to_empty(device=device)
    if checkpoint is None:
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
    return Trainer(
        model=model,
        run_name=recipe.run_name,
        seed=recipe.seed,
        max_duration=f"{plan.total_tokens}tok",
        train_dataloader=data_spec(data.train_loader(token)),
        train_dataloader_label=position.stage,
        spin_dataloaders=False,  # the loader starts at the token clock
        accumulate_train_batch_on_tokens=True,  # weight microbatches by masked tokens
        device_train_microbatch_size=recipe.stages[plan.segment_at(token).stage_index].device_train_microbatch_size,
        optimizers=optimizer,
        precision=precision,
        parallelism_config={"fsdp": ShardingConfig(recipe.fsdp_config.degrees(dist.get_world_size())[0])},
        algorithms=[SegmentSwitch(recipe, plan, data.train_loader), MicrobatchSeed(recipe.seed)],
        callbacks=[
            RunRecords(folder),
            OptimizerMonitor(),
            StageProgress(),
            CompleteCheckpointSaver(
                folder.checkpoints, recipe.save_interval, plan, recipe.save_num_checkpoints_to_keep
            ),
        ],
        eval_dataloader=[_stage_end_evaluator(plan, data, stage) for stage in recipe.stages],
        loggers=_loggers(recipe, folder),
        progress_bar=recipe.progress_bar,
        load_path=str(checkpoint.folder) if checkpoint else None,
        load_ignore_keys=NOT_LOADED,
        dist_timeout=recipe.dist_timeout,
    )


def _loggers(recipe: Recipe, folder: RunFolder) -> list[LoggerDestination]:
    if recipe.loggers.get("wandb") is None:
        return []
    arguments = dict(recipe.loggers["wandb"])
    init_kwargs = {"dir": str(folder.path)} | (arguments.pop("init_kwargs", None) or {})
    try:
        return [WandBLogger(**arguments, init_kwargs=init_kwargs)]
    except TypeError as error:
        raise ConfigurationError(f"'loggers.wandb': {error}") from error


def _stage_end_evaluator(plan: Plan, data: RunData, stage: StageConfig) -> Evaluator:
    end = plan.stage_ends[stage.name]

    def at_stage_end(state: State, event: Event) -> bool:
        return event == Event.BATCH_END and state.timestamp.token.value == end

    return Evaluator(
        label=stage.name,
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


def _choose_checkpoint(folder: RunFolder) -> CompleteCheckpoint | None:
    """Rank 0's choice, for all ranks alike."""
    choice: list = [None]
    if dist.get_global_rank() == 0:
        try:
            choice = [folder.newest_checkpoint()]
        except Exception as error:  # raised below, on every rank
            choice = [error]
    dist.broadcast_object_list(choice)
    if isinstance(choice[0], Exception):
        raise choice[0]
    return choice[0]


def _refuse_another_run(recipe: Recipe, plan: Plan, folder: RunFolder, checkpoint: CompleteCheckpoint) -> None:
    """A checkpoint goes on under the recipe that made it, as far as that has been run; what lies ahead may change."""
    before = load_recipe(folder.recipe)
    for key in ("model", "init_from", "masking", "optimizer", "seed"):
        if getattr(before, key) != getattr(recipe, key):
            raise ConfigurationError(
                f"{folder.path}: began with another '{key}' (see {folder.recipe}); "
                "give the old one, or another run_name"
            )
    if _trained(compile_plan(before), checkpoint.token) != _trained(plan, checkpoint.token):
        raise ConfigurationError(
            f"{folder.path}: its first {checkpoint.token:_} tokens were trained by other stages (see {folder.recipe}), "
            "which cannot change any more; give the old ones, or another run_name"
        )


def _trained(plan: Plan, token: int) -> list[Segment]:
    """The segments of a plan as far as they lie before a token, in whole updates."""
    return [
        replace(segment, updates=min(segment.updates, (token - segment.start_token) // segment.tokens_per_update))
        for segment in plan.segments
        if segment.start_token < token
    ]


def _describe_run(recipe: Recipe, plan: Plan, folder: RunFolder) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.structured(recipe), folder.recipe)
    folder.plan.write_text(json.dumps(plan.to_json(), indent=2) + "\n", encoding="utf-8")
