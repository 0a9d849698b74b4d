"""Time the work of a rank's host for the records at the end of an update of `yamls/main/base.yaml`.

The code is RunRecords' own, in a run with its three monitors that need no optimizer. Communication is replaced by its
result: rank 0 gets an array for every rank. So its time is not included, but all work of this project is.
"""

import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

from rotary_foundry.callbacks import run_records
from rotary_foundry.callbacks.loss_spike import LossSpike
from rotary_foundry.callbacks.memory import Memory
from rotary_foundry.callbacks.run_records import RunRecords
from rotary_foundry.callbacks.throughput import Throughput
from rotary_foundry.models.layers.cross_entropy import TokenLoss
from rotary_foundry.runs.recipes import load_recipe_and_plan
from rotary_foundry.runs.run_folder import RunFolder

RECIPE = Path(__file__).parents[1] / "yamls/main/base.yaml"
TOKENS_OF_A_DOCUMENT = 256
UPDATES = 200


def milliseconds(ranks: int, rank: int) -> float:
    """Return the median milliseconds of updates with full rows, on rank `rank` of `ranks`."""
    recipe, plan = load_recipe_and_plan(RECIPE, [])
    stage, name = recipe.stages["pretrain"], "pretrain"
    rows, length = stage.global_train_batch_size // ranks, stage.row_length
    generator = np.random.default_rng(0)
    documents = length // TOKENS_OF_A_DOCUMENT
    batch = {
        "row_length": length,
        "most_rows": rows,
        "row_tokens": [length] * rows,
        "row_labels": [length // 3] * rows,
        "row_sources": generator.choice(recipe.data.sources, rows).tolist(),
        "row_digests": [f"{digest:016x}" for digest in generator.integers(2**63, size=rows).tolist()],
        "lengths": [TOKENS_OF_A_DOCUMENT] * documents * rows,
    }
    total = [0]
    state = SimpleNamespace(
        batch=batch,
        device=SimpleNamespace(tensor_to_device=lambda tensor: tensor),
        outputs=TokenLoss(torch.tensor(3.0), torch.tensor(5), 10),
        total_loss_dict={"loss/train/total": 3.0},
        dataloader_label=name,
        dataloader=SimpleNamespace(
            dataset=SimpleNamespace(
                draw=SimpleNamespace(mixture=None), rows_by_source=dict.fromkeys(recipe.data.sources, 10**9)
            )
        ),
        timestamp=SimpleNamespace(batch=SimpleNamespace(value=0), token=SimpleNamespace(value=0)),
        previous_timestamp=SimpleNamespace(token=SimpleNamespace(value=plan.total_tokens // 10)),
        optimizers=[SimpleNamespace(param_groups=[{"lr": 1e-3, "weight_decay": 0.0}], defaults={})],
        model=SimpleNamespace(objective=recipe.objective_of(name), network=SimpleNamespace(knobs={})),
    )

    def gather(own, others, group):
        for other in others or []:
            other.copy_(own)

    logger = SimpleNamespace(log_metrics=lambda metrics: total.append(len(metrics)))
    seconds = []
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.multiple(run_records.dist, get_world_size=lambda: ranks, get_global_rank=lambda: rank),
        mock.patch.object(run_records.distributed, "gather", gather),
        mock.patch.object(run_records, "cpu_group", lambda timeout: None),
    ):
        monitors = [Throughput(recipe), Memory(), LossSpike()]
        records = RunRecords(RunFolder(Path(folder)), 0, plan, monitors, recipe.dist_timeout)
        records.fit_start(state, logger)
        monitors[0].fit_start(state, logger)
        for _ in range(UPDATES):
            started = time.perf_counter()
            records.batch_start(state, logger)
            monitors[0].batch_start(state, logger)
            records.after_loss(state, logger)
            records.after_train_batch(state, logger)
            records.batch_end(state, logger)
            seconds.append(time.perf_counter() - started)
        records.close(state, logger)
    return 1000 * statistics.median(seconds)
