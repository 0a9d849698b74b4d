"""How often ranks exchange parameters and gradients in an update, counted where torch calls the backend."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from composer.core import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.data.loaders import RunData
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.training.run import Start, build_trainer
from tests.ranks import on_ranks

MICROBATCHES = 4
UPDATE = [
    "stages.pretrain.global_train_batch_size=16",
    "stages.pretrain.batch_size_ramp={initial: 8, increment: 8, duration: 3072tok}",
    "stages.pretrain.device_train_microbatch_size=1",
]


class Counted(TorchDispatchMode):
    """Counts the collectives of parameters and gradients by name; what is gathered as an object is bytes."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d" and any(torch.is_tensor(given) and given.is_floating_point() for given in args):
            self.calls[func._schema.name.removeprefix("c10d::").strip("_")] += 1
        return func(*args, **(kwargs or {}))


class OneUpdate(Callback):
    def batch_end(self, state, logger):
        state.stop_training()


def _count(recipe_path: Path, settings: dict[str, list[str]], folder: Path) -> None:
    for name, overrides in settings.items():
        recipe = load_recipe(recipe_path, [*UPDATE, *overrides])
        data, start = RunData(recipe, open_corpus(recipe)), Start(compile_plan(recipe), [], None)
        trainer = build_trainer(recipe, data, RunFolder(folder), start)
        trainer.state.callbacks.append(OneUpdate())
        with Counted() as counted:
            trainer.fit()
        trainer.close()
        units = 1 + len(trainer.state.model.network.blocks)
        if torch.distributed.get_rank() == 0:
            torch.save((units, counted.calls), folder / f"{name}.pt")


@pytest.fixture(scope="module")
def calls(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("collectives")
    settings = {"whole": [], "resharded": ["fsdp_config.reshard_after_forward=true"]}
    on_ranks(2, folder, _count, tiny.recipe, settings, folder)
    return {name: torch.load(folder / f"{name}.pt") for name in settings}


def test_a_small_model_is_gathered_and_its_gradients_are_reduced_once_an_update(calls):
    units, counted = calls["whole"]
    assert counted["allgather_base"] == units
    assert counted["reduce_scatter_base"] == units


def test_a_model_that_is_resharded_is_gathered_twice_and_reduced_once_a_microbatch(calls):
    units, counted = calls["resharded"]
    assert counted["allgather_base"] == MICROBATCHES * (2 * units - 1)  # the root stays whole from forward to backward
    assert counted["reduce_scatter_base"] == MICROBATCHES * units
