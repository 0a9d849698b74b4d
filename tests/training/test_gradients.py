"""The gradient of an update is the unsharded model's, for any number of ranks and any microbatches.

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

FIRST_UPDATE_ROWS = 4


def _first_gradients(rank: int, world: int, port: int, recipe_path: Path, microbatch: int, result: Path) -> None:
    """Run one update under Composer and FSDP2 and save the gradients of rank 0, whole."""
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
            gradients = {name: param.grad.full_tensor() for name, param in state.model.network.named_parameters()}
            if rank == 0:
                torch.save(gradients, result)

        def batch_end(self, state, logger):
            state.stop_training()

    recipe = load_recipe(
        recipe_path,
        [
            "model.attn_out_dropout=0",
            f"stages[0].device_train_microbatch_size={microbatch}",
            f"run_name=gradients{port}",
        ],
    )
    dist.initialize_dist("cpu")
    trainer = build_trainer(recipe, compile_plan(recipe), open_corpus(recipe), RunFolder(result.parent), None)
    trainer.state.callbacks.append(Capture())
    trainer.fit()
    trainer.close()


def _unsharded_gradients(recipe_path: Path) -> dict[str, torch.Tensor]:
    """The same update by plain autograd: the sum of the loss over all masked tokens, divided by their number."""
    from encoder_foundry.data.loaders import RunData
    from encoder_foundry.data.shards import open_corpus
    from encoder_foundry.model.initialisation import initialise
    from encoder_foundry.model.masked_lm import MaskedLM

    recipe = load_recipe(recipe_path)
    data = RunData(recipe, compile_plan(recipe), open_corpus(recipe))
    batch = next(iter(data.train_loader(0)))
    assert len(batch["row_tokens"]) == FIRST_UPDATE_ROWS
    network = MaskedLM(recipe.model, recipe.stages[0].rope_theta)
    initialise(network, recipe.seed)
    network.eval()  # no dropout
    logits = network(batch["input_ids"], batch["cu_seqlens"], batch["row_length"])
    F.cross_entropy(logits, batch["labels"], ignore_index=-100).backward()
    return {name: param.grad for name, param in network.named_parameters()}


@pytest.fixture(scope="module")
def expected(tiny) -> dict[str, torch.Tensor]:
    return _unsharded_gradients(tiny.recipe)


@pytest.mark.parametrize(("world", "microbatch"), [(1, 4), (1, 3), (2, 1)])
def test_gradients_are_the_unsharded_models(tiny, expected, tmp_path, world, microbatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = tmp_path / "gradients.pt"
    mp.spawn(_first_gradients, args=(world, port, tiny.recipe, microbatch, result), nprocs=world)
    found = torch.load(result)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
