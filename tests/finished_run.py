"""A finished run of few updates, made without training: the files that training and export leave in its folder."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from torch.distributed import checkpoint as dist_cp

from rotary_foundry import load_recipe
from rotary_foundry.data.corpus import keep_rows
from rotary_foundry.data_prep.inspection.trace import rows_of
from rotary_foundry.interop.checkpoint_weights import WEIGHTS
from rotary_foundry.interop.export import export_checkpoint
from rotary_foundry.recipe.compilation import compile_stages, set_rollback
from rotary_foundry.runs.record_files import append_line
from rotary_foundry.runs.run_folder import WORKING_DIRECTORY, CompleteCheckpoint, RunFolder, mark_complete
from tests.data_prep.inspection.tree import write_tree
from tests.models.peers import our_network

RECIPE = {
    "extends": [str(Path("yamls/main/nano.yaml").absolute())],
    "run_name": "finished",
    "model": {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "data": {"local": "data", "sources": ["mine", "yours"]},
    "rollback": {"at": {"token": "384tok", "to": "256tok", "data": "advance"}},
    "stages": {
        "pretrain": {"duration": "512tok", "row_length": 64, "t_warmup": "128tok", "batch_size_ramp": None},
        "extend": {"duration": "512tok", "row_length": 256},
        "decay": {"duration": "512tok", "row_length": 256, "mixture": {"mine": 0.3, "yours": 0.7}},
    },
}


def write_finished_run(folder: Path) -> RunFolder:
    """Write `data`, a prepared corpus, and `run`, which was started in `folder` and is exported."""
    write_tree(folder / "data")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    recipe = load_recipe(
        folder / "recipe.yaml",
        [f"data.local={folder / 'data'}", *(f"stages.{stage}.global_train_batch_size=2" for stage in RECIPE["stages"])],
    )
    run = RunFolder(folder / "run")
    run.path.mkdir()
    plan = compile_stages(recipe)
    rollback = set_rollback(recipe, plan)
    _write_updates(run, recipe, plan, 0, 0, rollback.token)
    line = {"number": 1, "batch": plan.at(rollback.token).update, "to_batch": plan.at(rollback.to_token).update}
    append_line(run.ledger, line | asdict(rollback))
    plan = plan.rolled_back(rollback)
    _write_updates(run, recipe, plan, 1, rollback.to_token, plan.total_tokens)
    run.plan.write_text(json.dumps(plan.to_json()))
    environment = {WORKING_DIRECTORY: str(folder), "ranks": 1, "python": "3.11.7", "packages": {"torch": "2.7.0"}}
    run.environment.write_text(json.dumps(environment))
    keep_rows(recipe, run.rows, {64, 256})
    (run.tokenizer).mkdir()
    for file in (folder / "data/tokenizer").iterdir():
        (run.tokenizer / file.name).write_bytes(file.read_bytes())
    written = OmegaConf.structured(recipe)
    written.data.local = "data"
    run.recipe.write_text(OmegaConf.to_yaml(written))
    network = our_network(**RECIPE["model"])
    checkpoint = run.checkpoints / f"ba{plan.total_updates}"
    state = {WEIGHTS + name: value for name, value in network.state_dict().items()}
    dist_cp.save(state, storage_writer=dist_cp.FileSystemWriter(checkpoint), no_dist=True)
    sizes = {file.name: file.stat().st_size for file in checkpoint.iterdir()}
    mark_complete(CompleteCheckpoint(checkpoint, plan.total_updates, plan.total_tokens, 1, {}, sizes))
    export_checkpoint(run.path, run.export)
    return run


def _write_updates(run, recipe, plan, rollbacks, start, end):
    generator = random.Random(rollbacks)
    for segment in plan.between(start, end):
        for update in range(segment.updates):
            at = segment.start_token + update * segment.tokens_per_update
            position, (_, digest) = plan.at(at), rows_of(recipe, plan, at)
            token = at + segment.tokens_per_update
            place = {"batch": position.update + 1, "token": token, "rollbacks": rollbacks, "stage": segment.stage}
            loss = generator.uniform(2, 6)
            sizes = {"rows": segment.rows, "row_length": segment.row_length}
            shares = {"mine": 0.25, "yours": 0.75}
            line = place | sizes | position.knobs | {"loss": loss, "masked_accuracy": 0.1, "lr": position.lr}
            line |= {"weight_decay": position.weight_decay, "mixture": segment.mixture, "asked": shares}
            line |= {"drawn": shares, "tokens_by_source": {"mine": 32, "yours": 96}, "rows_digest": digest}
            line |= {"tokens_per_second": 1000.0, "mfu": None, "grad_norm": 1.5, "loss_spike_score": None}
            append_line(run.metrics, line)
            if token in plan.stage_ends.values():
                evaluated = place | {"row_length": segment.row_length} | position.knobs
                append_line(run.evaluations, evaluated | {"loss": loss - 0.1, "masked_accuracy": 0.12})
