"""What is compared between runs."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from rotary_foundry import Recipe, compile_plan
from rotary_foundry.interop.checkpoint_weights import CheckpointWeights
from rotary_foundry.runs.run_folder import RunFolder, read_lines
from rotary_foundry.runs.trained_state import find_trained_state
from rotary_foundry.training.first_weights import first_weights
from rotary_foundry.training.sharding import fill, shard


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
