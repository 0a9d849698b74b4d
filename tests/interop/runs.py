"""The folder of a run, made without training: a recipe, a checkpoint and records such as training writes."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

from omegaconf import OmegaConf
from torch import Tensor, distributed
from torch.distributed import checkpoint as dist_cp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from rotary_foundry.interop.checkpoint_weights import WEIGHTS
from rotary_foundry.models.family import Shape
from rotary_foundry.recipe import Recipe, compile_plan
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.runs.record_files import append_line
from rotary_foundry.runs.run_folder import CompleteCheckpoint, RunFolder, mark_complete

NANO = compile_plan(load_recipe("yamls/main/nano.yaml"))
TOKENS = NANO.stage_ends["extend"]


def make_run(
    path: Path,
    shape: Shape,
    corpus: Path,
    weights: dict[str, Tensor],
    attn_implementation: str = "auto",
    name: str = "nano",
    token: int = TOKENS,
) -> RunFolder:
    """Make a run of another shape, with a checkpoint at a token: for nano, at the end of its second stage."""
    recipe = load_recipe(f"yamls/main/{name}.yaml")
    model = replace(recipe.model, **asdict(shape), attn_implementation=attn_implementation)
    recipe = replace(recipe, model=model, data=replace(recipe.data, local=str(corpus)))
    run = RunFolder(path)
    shutil.copytree(corpus / "tokenizer", run.tokenizer)
    run.recipe.write_text(OmegaConf.to_yaml(OmegaConf.structured(recipe)))
    state = {WEIGHTS + name: value for name, value in weights.items()}
    folder = checkpoint_folder(run, recipe, token)
    dist_cp.save(state, storage_writer=dist_cp.FileSystemWriter(folder), no_dist=True)
    complete(folder, recipe, token)
    return run


def save_sharded(folder: Path, weights: dict[str, Tensor]) -> None:
    """Save parameters and their moments, cut into as many pieces as there are ranks; called on each of them."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    state = {WEIGHTS + name: value for name, value in weights.items()}
    for moment in ("exp_avg", "exp_avg_sq"):
        state |= {f"state.optimizers.AdamW.state.{name}.{moment}": value + 7 for name, value in weights.items()}
    cut = {name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in state.items()}
    dist_cp.save(cut, checkpoint_id=str(folder))


def checkpoint_folder(run: RunFolder, recipe: Recipe, token: int = TOKENS) -> Path:
    return run.checkpoints / f"ba{compile_plan(recipe).at(token).update}"


def complete(folder: Path, recipe: Recipe, token: int = TOKENS) -> None:
    """Mark a checkpoint as whole, whatever is in its folder now."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "COMPLETE"}
    mark_complete(CompleteCheckpoint(folder, compile_plan(recipe).at(token).update, token, 0, {}, sizes))


def add_records(run: RunFolder) -> None:
    """Three updates and evaluations; the last are beyond the checkpoint."""
    for (stage, token), loss in zip(NANO.stage_ends.items(), (5.5, 5.25, 1.0), strict=True):
        line = {"batch": token // 4096, "token": token, "rollbacks": 0, "stage": stage, "loss": loss}
        append_line(run.metrics, line | {"drawn": {"code": loss / 10, "docs": 1 - loss / 10}})
        append_line(run.evaluations, line | {"row_length": 1024, "rope_theta": 10_000.0, "masked_accuracy": loss / 40})
