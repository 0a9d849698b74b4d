"""Loss and gradient of an update are the unsharded model's, for any split into ranks and microbatches, any sharding.

Gradients and not losses: gloo sums where FSDP2 asks for the mean, and neither the loss nor Adam would show it.
"""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from encoder_foundry import compile_plan, load_recipe

FIRST_UPDATE = [  # 8 rows, without dropout, whose randomness is the rank's own
    "model.attn_out_dropout=0",
    "stages[0].global_train_batch_size=16",
    "stages[0].batch_size_ramp={initial: 8, increment: 8, duration: 3072tok}",
]


def _first_gradients(rank: int, world: int, port: int, recipe_path: Path, overrides: list[str], result: Path) -> None:
    """Run one update under Composer and FSDP2; save its loss and the gradients, whole, on rank 0."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from composer.core import Callback
    from composer.utils import dist

    from encoder_foundry.data.shards import open_corpus
    from encoder_foundry.run_folder import RunFolder
    from encoder_foundry.training.run import build_trainer

    class Capture(Callback):
        def after_train_batch(self, state, logger):
            parameters = state.model.network.named_parameters()
            self.gradients = {name: param.grad.full_tensor() for name, param in parameters}

        def batch_end(self, state, logger):
            if rank == 0:
                torch.save((state.total_loss_dict["loss/train/total"], self.gradients), result)
            state.stop_training()

    recipe = load_recipe(recipe_path, [*FIRST_UPDATE, *overrides, f"run_name=gradients{port}"])
    dist.initialize_dist("cpu")
    trainer = build_trainer(recipe, compile_plan(recipe), open_corpus(recipe), RunFolder(result.parent), None)
    trainer.state.callbacks.append(Capture())
    trainer.fit()
    trainer.close()


def _unsharded(recipe_path: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """The same update by plain autograd: the sum of the loss over all masked tokens, divided by their number."""
    from encoder_foundry.data.loaders import RunData
    from encoder_foundry.data.shards import open_corpus
    from encoder_foundry.model.initialisation import initialise
    from encoder_foundry.model.masked_lm import MaskedLM

    recipe = load_recipe(recipe_path, FIRST_UPDATE)
    data = RunData(recipe, compile_plan(recipe), open_corpus(recipe))
    batch = next(iter(data.train_loader(0)))
    assert len(batch["row_tokens"]) == 8
    network = MaskedLM(recipe.model, recipe.stages[0].rope_theta)
    initialise(network, recipe.seed)
    logits = network(batch["input_ids"], batch["cu_seqlens"], batch["row_length"])
    loss = F.cross_entropy(logits, batch["labels"], ignore_index=-100)
    loss.backward()
    return loss.item(), {name: param.grad for name, param in network.named_parameters()}


@pytest.fixture(scope="module")
def expected(tiny) -> tuple[float, dict[str, torch.Tensor]]:
    return _unsharded(tiny.recipe)


def microbatch(rows: int) -> str:
    return f"stages[0].device_train_microbatch_size={rows}"


RECOMPUTED = "fsdp_config.activation_checkpointing=true"
COMPILED = "compile_config={dynamic: true}"
TWO_REPLICAS = "fsdp_config.data_parallel_replicate_degree=2"


@pytest.mark.parametrize(
    ("world", "overrides"),
    [
        (1, [microbatch(8)]),
        (1, [microbatch(3)]),
        (2, [microbatch(2)]),
        (4, [microbatch(2)]),
        (2, [microbatch(4), RECOMPUTED]),
        (2, [microbatch(2), COMPILED]),
        (2, [microbatch(4), COMPILED, RECOMPUTED]),
        (2, [microbatch(4), TWO_REPLICAS]),
        (4, [microbatch(1), TWO_REPLICAS, RECOMPUTED]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else f"{value} ranks",
)
def test_loss_and_gradients_are_the_unsharded_models(tiny, expected, tmp_path, world, overrides):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = tmp_path / "gradients.pt"
    mp.spawn(_first_gradients, args=(world, port, tiny.recipe, overrides, result), nprocs=world)
    loss, gradients = torch.load(result)
    expected_loss, expected_gradients = expected
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
