"""The folder of a run with a multi-task stage, made without training: random weights, and heads for every kind."""

import shutil
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import nn
from torch.distributed import checkpoint as dist_cp

from rotary_foundry.data.corpus import keep_rows, open_objective
from rotary_foundry.interop.checkpoint_weights import WEIGHTS
from rotary_foundry.models.task_heads import attach_heads
from rotary_foundry.recipe import compile_plan
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.training.first_weights import first_weights
from rotary_foundry.training.sharding import fill
from tests.interop.runs import checkpoint_folder, complete
from tests.task_corpus import ROW_LENGTH, write_tasks

YAMLS = Path(__file__).parents[1] / "yamls"
FAMILIES = {
    "roformer_v2": ("roformer_v2.yaml, {yamls}/models/roformer_v2_small.yaml", "residual_scale: 0.5"),
    "modernbert": ("modernbert.yaml, {yamls}/models/nano.yaml", "local_attention: 16"),
}
RECIPE = """
extends: [{yamls}/{base}]
run_name: tasks
model: {{vocab_size: 384, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 4, num_attention_heads: 2, {more}}}
precision: fp32
save_interval: 10ba
data: {{local: {folder}/data, sources: [text, topic, score, pick, find, names]}}
stages:
  tasks: {{duration: 9216tok, row_length: 64, global_train_batch_size: 24, device_train_microbatch_size: 3, lr: 1e-2,
     {knobs} objective: {{name: multi_task, combine: mean, rows_per_block: 4, mlm_probability: 0.15,
       eval_mlm_probability: 0.15, mask_share: 0.8, random_share: 0.1}}}}
"""


def make_task_run(folder: Path, family: str) -> tuple[Path, nn.Module]:
    """Write `data` and `run` into a folder; return the run's, and its network with heads."""
    write_tasks(folder / "data")
    base, more = (text.format(yamls=YAMLS) for text in FAMILIES[family])
    knobs = "rope_theta: 10000, local_rope_theta: 10000," if family == "modernbert" else ""
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(yamls=YAMLS, base=base, more=more, folder=folder, knobs=knobs))
    recipe = load_recipe(path)
    network = recipe.family.network(recipe.model.shape, compile_plan(recipe).at(0).knobs)
    attach_heads(network, open_objective(recipe, "tasks").tasks)
    fill(network, first_weights(recipe, network))
    torch.manual_seed(0)
    with torch.no_grad():  # biases are 0 and gains 1 in the beginning
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 2)
    run = RunFolder(folder / "run")
    shutil.copytree(folder / "data/tokenizer", run.tokenizer)
    run.recipe.write_text(OmegaConf.to_yaml(OmegaConf.structured(recipe)))
    keep_rows(recipe, run.rows, {ROW_LENGTH})
    token = compile_plan(recipe).stage_ends["tasks"]
    state = {WEIGHTS + name: value for name, value in network.state_dict().items()}
    dist_cp.save(state, storage_writer=dist_cp.FileSystemWriter(checkpoint_folder(run, recipe, token)), no_dist=True)
    complete(checkpoint_folder(run, recipe, token), recipe, token)
    return run.path, network.eval()
