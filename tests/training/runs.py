"""What is compared between runs."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from composer.core import Callback
from torch import Tensor, nn
from torch.multiprocessing import ProcessExitedException

from rotary_foundry import Recipe, compile_plan, load_recipe
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.interop.checkpoint_weights import CheckpointWeights
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.runs.record_files import read_lines
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.runs.trained_state import find_trained_state
from rotary_foundry.training.first_weights import first_weights
from rotary_foundry.training.run import train
from rotary_foundry.training.sharding import fill, shard
from tests.ranks import on_ranks


def network_of(recipe: Recipe) -> nn.Module:
    """A recipe's network as its first update has it, not initialised."""
    return recipe.family.network(recipe.model.shape, compile_plan(recipe).at(0).knobs)


def records(run: Path) -> list[dict]:
    """An entry an update of the kept trajectory."""
    return RunFolder(run).records(RunFolder(run).metrics)


def column(run: Path, key: str) -> list:
    return [record[key] for record in records(run)]


def digests(run: Path) -> list[str]:
    """What rows and masks each update saw."""
    return column(run, "rows_digest")


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    state = find_trained_state(run)
    return dict(CheckpointWeights(state.checkpoint.folder, state.family))


def assert_same_run(run: Path, undisturbed: Path) -> None:
    """Rows, masks, losses, shares drawn, rollbacks, evaluations and final weights are the same, to the bit."""
    for key in ("rows_digest", "loss", "lr", "drawn"):
        assert column(run, key) == column(undisturbed, key), key
    for name in ("ledger", "evaluations"):
        files = getattr(RunFolder(run), name), getattr(RunFolder(undisturbed), name)
        assert {str(line) for line in read_lines(files[0])} == {str(line) for line in read_lines(files[1])}, name
    expected, found = final_weights(undisturbed), final_weights(run)
    assert expected.keys() == found.keys()
    for key, weight in expected.items():
        assert torch.equal(weight, found[key]), key


def assert_shards_have_the_whole_models_gradients(recipe: Recipe, loss: Callable[[nn.Module], Tensor]) -> None:
    """Compare the loss and the gradients of a recipe's network, sharded over these ranks, with the whole one's."""
    cpu = torch.device("cpu")
    with torch.device("meta"):
        network = network_of(recipe)
    shard(network, recipe, cpu)
    network.to_empty(device=cpu)
    whole, values = network_of(recipe), first_weights(recipe)
    fill(network, values)
    fill(whole, values)
    losses = [loss(one) for one in (network, whole)]
    for one in losses:
        one.backward()
    torch.testing.assert_close(*losses)
    expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in network.named_parameters():
        error = (parameter.grad.full_tensor() - expected[name]).norm()
        assert error <= 1e-5 * expected[name].norm(), name


class Kill(Callback):
    """Kills the process at the end of an update, before anything more is saved."""

    def __init__(self, update: int):
        self.update = update

    def batch_end(self, state, logger):
        if state.timestamp.batch.value == self.update:
            os.kill(os.getpid(), signal.SIGKILL)


class Slow(Callback):
    """Makes every update take longer."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def batch_end(self, state, logger):
        time.sleep(self.seconds)


def train_recipe(path: Path, overrides: list[str]) -> None:
    """Train a recipe to its end, on the rank of this process."""
    recipe = load_recipe(path, overrides)
    train(recipe, compile_stages(recipe), open_corpus(recipe))


def train_killed(path: Path, update: int, folder: Path) -> None:
    """Begin a recipe's run `killed` on one rank, which is killed after an update; `folder` is for the ranks."""
    kill = f"callbacks={json.dumps({f'{Kill.__module__}.{Kill.__name__}': {'update': update}})}"
    with pytest.raises(ProcessExitedException):
        on_ranks(1, folder, train_recipe, path, ["run_name=killed", kill])


def assert_killed_and_on_two_ranks_the_same(path: Path, whole: Path, update: int, folder: Path) -> None:
    """A run that is killed after an update ends as the undisturbed one, and two ranks see the rows of one."""
    train_killed(path, update, folder)
    on_ranks(1, folder, train_recipe, path, ["run_name=killed"])
    assert_same_run(whole.parent / "killed", whole)
    on_ranks(2, folder, train_recipe, path, ["run_name=two"])
    assert digests(whole.parent / "two") == digests(whole)
