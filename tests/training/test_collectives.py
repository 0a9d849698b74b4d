"""How often ranks exchange parameters and gradients in an update, counted where torch calls the backend."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from composer.core import Callback
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils._python_dispatch import TorchDispatchMode

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.data.loaders import RunData
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.training import sharding
from rotary_foundry.training.run import Start, build_trainer
from tests.ranks import on_ranks

MICROBATCHES, EXACT = 4, "all in float32"
UPDATE = [
    "stages.pretrain.global_train_batch_size=16",
    "stages.pretrain.batch_size_ramp={initial: 8, increment: 8, duration: 3072tok}",
    "stages.pretrain.device_train_microbatch_size=1",
]


class Counted(TorchDispatchMode):
    """Counts collectives by name, and their bytes. FSDP2's are `allgather_base` and `reduce_scatter_base`."""

    def __init__(self):
        super().__init__()
        self.calls, self.bytes = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::").strip("_")
            self.calls[name] += 1
            self.bytes[name] += max((given.nbytes for given in args if torch.is_tensor(given)), default=0)
        return func(*args, **(kwargs or {}))


class OneUpdate(Callback):
    def batch_end(self, state, logger):
        state.stop_training()


def _exactly(_: torch.dtype) -> MixedPrecisionPolicy:
    return MixedPrecisionPolicy(cast_forward_inputs=False)


def _count(recipe_path: Path, settings: dict[str, list[str]], folder: Path) -> None:
    gather_matrices_in = sharding.gather_matrices_in
    for name, overrides in settings.items():
        recipe = load_recipe(recipe_path, [*UPDATE, *overrides])
        data, start = RunData(recipe, open_corpus(recipe)), Start(compile_plan(recipe), [], None)
        sharding.gather_matrices_in = _exactly if name == EXACT else gather_matrices_in
        trainer = build_trainer(recipe, data, RunFolder(folder), start)
        trainer.state.callbacks.append(OneUpdate())
        with Counted() as counted:
            trainer.fit()
        trainer.close()
        network = trainer.state.model.network
        layers = [dict(block.named_parameters()).values() for block in network.blocks]
        found = {
            "units": 1 + len(network.blocks),
            "matrices": sum(param.numel() for params in layers for param in params if param.ndim > 1),
            "calls": counted.calls,
            "bytes": counted.bytes,
            "loss": trainer.state.total_loss_dict["loss/train/total"],
            "weights": [param.full_tensor() for param in network.parameters()],
        }
        if torch.distributed.get_rank() == 0:
            torch.save(found, folder / f"{name}.pt")


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("collectives")
    bf16 = ["precision=amp_bf16"]
    settings = {"whole": [], "resharded": ["fsdp_config.reshard_after_forward=true"], "bf16": bf16, EXACT: bf16}
    on_ranks(2, folder, _count, tiny.recipe, settings, folder)
    return {name: torch.load(folder / f"{name}.pt") for name in settings}


def test_a_small_model_is_gathered_and_its_gradients_are_reduced_once_an_update(found):
    calls, units = found["whole"]["calls"], found["whole"]["units"]
    assert calls["allgather_base"] == units
    assert calls["reduce_scatter_base"] == units


def test_a_model_that_is_resharded_is_gathered_twice_and_reduced_once_a_microbatch(found):
    calls, units = found["resharded"]["calls"], found["resharded"]["units"]
    assert calls["allgather_base"] == MICROBATCHES * (2 * units - 1)  # the root stays whole from forward to backward
    assert calls["reduce_scatter_base"] == MICROBATCHES * units


def test_matrices_of_layers_are_gathered_in_bfloat16_which_changes_nothing(found):
    """What autocast rounds anyway. Embeddings and norms' gains are gathered in float32, gradients are reduced in it."""
    bf16, exact = found["bf16"], found[EXACT]
    fewer = exact["bytes"]["allgather_base"] - bf16["bytes"]["allgather_base"]
    assert fewer == (2 * bf16["matrices"] if torch.__version__ >= "2.15" else 0)
    assert exact["bytes"]["reduce_scatter_base"] == bf16["bytes"]["reduce_scatter_base"]
    assert bf16["loss"] == exact["loss"]
    assert all(map(torch.equal, bf16["weights"], exact["weights"]))
