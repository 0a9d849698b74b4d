"""Loss and gradient of an update are the unsharded model's, for any split into ranks and microbatches, any sharding.

Gradients and not losses: gloo sums where FSDP2 asks for the mean, and neither the loss nor Adam would show it. All
updates of one world size are made one after another by the same processes, since a Trainer's imports take longer than
its first update.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from composer.core import Callback
from torch._inductor import config as inductor_config

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.data.loaders import RunData
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.training.run import Start, build_trainer
from tests.models.peers import initialise
from tests.ranks import on_ranks

FIRST_UPDATE = [  # 8 rows, without dropout, whose randomness is the rank's own
    "model.attn_out_dropout=0",
    "stages.pretrain.global_train_batch_size=16",
    "stages.pretrain.batch_size_ramp={initial: 8, increment: 8, duration: 3072tok}",
]
RECOMPUTED = "fsdp_config.activation_checkpointing=true"
COMPILED = "compile_config={dynamic: true}"
TRACED = "compile_config={dynamic: true, backend: aot_eager}"  # all of torch.compile but the generated code
BF16 = "precision=amp_bf16"
NOTHING = "nothing to predict"
ONE_RANK, HARDLY = "something to predict on one rank", "objective.mlm_probability=0.003"
DETERMINISTIC = "deterministic_mode=true"
TWO_REPLICAS = "fsdp_config.data_parallel_replicate_degree=2"


def microbatch(rows: int) -> str:
    return f"stages.pretrain.device_train_microbatch_size={rows}"


UPDATES = {  # by world size
    1: {
        "all rows at once": [microbatch(8)],
        "uneven microbatches": [microbatch(3)],
        "compiled": [microbatch(4), COMPILED],
        "compiled, in bf16": [microbatch(4), COMPILED, BF16],
    },
    2: {
        "microbatches": [microbatch(2)],
        "microbatches, in bf16": [microbatch(2), BF16],
        "recomputed": [microbatch(4), RECOMPUTED],
        "traced and recomputed": [microbatch(4), TRACED, RECOMPUTED],
        "resharded": [microbatch(2), "fsdp_config.reshard_after_forward=true"],
        "replicas": [microbatch(4), TWO_REPLICAS],
        NOTHING: [microbatch(2), "objective.mlm_probability=1e-12"],
        ONE_RANK: [microbatch(2), HARDLY],
        # the last: Composer turns it on for the rest of the process
        "microbatches, deterministic": [microbatch(2), DETERMINISTIC],
    },
    # two ranks have three rows and one has two: no rows for the last microbatch, or one less
    3: {
        "ranks that differ by a row": [microbatch(1)],
        "and in the last microbatch": [microbatch(2)],
        "and are filled for compiled layers": [microbatch(2), "compile_config={dynamic: false, backend: eager}"],
    },
    4: {"shards": [microbatch(2)], "replicas of shards, recomputed": [microbatch(1), TWO_REPLICAS, RECOMPUTED]},
    **{ranks: {"ranks that differ by a row": [microbatch(1)]} for ranks in (5, 7)},
}
LONG = (*UPDATES[1], "traced and recomputed")  # tests/models/test_compiled.py compiles layers, too


class SaveGradients(Callback):
    """Saves the first update's loss and whole gradients on rank 0, and ends training."""

    def __init__(self, file: Path):
        self.file = file

    def after_train_batch(self, state, logger):
        parameters = state.model.network.named_parameters()
        self.gradients = {name: param.grad.full_tensor() for name, param in parameters}

    def batch_end(self, state, logger):
        if torch.distributed.get_rank() == 0:
            torch.save((state.total_loss_dict["loss/train/total"], self.gradients), self.file)
        state.stop_training()


def _make_updates(recipe_path: Path, updates: dict[str, list[str]], folder: Path) -> None:
    """Under Composer and FSDP2, each by a Trainer of its own."""
    inductor_config.cpp.vec_isa_ok = True  # to try the processor's vector instructions takes longer than to compile
    inductor_config.compile_threads = 1  # more are processes, which import torch first
    for name, overrides in updates.items():
        recipe = load_recipe(recipe_path, [*FIRST_UPDATE, *overrides])
        try:
            trainer = build_trainer(
                recipe, RunData(recipe, open_corpus(recipe)), RunFolder(folder), Start(compile_plan(recipe), [], None)
            )
            assert torch.are_deterministic_algorithms_enabled() == recipe.deterministic_mode
            trainer.state.callbacks.append(SaveGradients(folder / f"{name}.pt"))
            trainer.fit()
            trainer.close()
        except Exception as error:
            error.add_note(f"in the update '{name}'")
            raise


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """The loss and the gradients of an update, by world size and name."""
    folders: dict[tuple[int, bool], Path] = {}

    def load(world: int, name: str) -> tuple[float, dict[str, torch.Tensor]]:
        made_together = world, name in LONG
        if made_together not in folders:
            folder = folders[made_together] = tmp_path_factory.mktemp(f"{world}-ranks")
            updates = {other: of for other, of in UPDATES[world].items() if (other in LONG) == (name in LONG)}
            on_ranks(world, folder, _make_updates, tiny.recipe, updates, folder)
        return torch.load(folders[made_together] / f"{name}.pt")

    return load


@pytest.fixture(scope="module")
def expected(tiny) -> tuple[float, dict[str, torch.Tensor]]:
    return by_autograd(tiny)[:2]


def by_autograd(tiny, *overrides: str) -> tuple[float, dict[str, torch.Tensor], list[int]]:
    """The same update by plain autograd: the sum of the loss over all masked tokens, divided by their number.

    The last is the number of masked tokens of each row.
    """
    recipe = load_recipe(tiny.recipe, [*FIRST_UPDATE, *overrides])
    data = RunData(recipe, open_corpus(recipe))
    batch = next(iter(data.train_loader(compile_plan(recipe), 0)))
    assert len(batch["row_tokens"]) == 8
    network = recipe.family.network(recipe.model.shape, compile_plan(recipe).at(0).knobs)
    initialise(network, recipe.seed)
    logits = network(batch["input_ids"], batch["cu_seqlens"], batch["row_length"])
    loss = F.cross_entropy(logits, batch["labels"], ignore_index=-100)
    loss.backward()
    masked = [int((row != -100).sum()) for row in batch["labels"].split(batch["row_tokens"])]
    return loss.item(), {name: param.grad for name, param in network.named_parameters()}, masked


@pytest.mark.parametrize(
    ("world", "name"),
    [
        pytest.param(world, name, marks=[pytest.mark.long] if name in LONG else [])
        for world, updates in UPDATES.items()
        for name in updates
        if name not in (NOTHING, ONE_RANK)
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value} ranks",
)
def test_loss_and_gradients_are_the_unsharded_models(made, expected, world, name):
    """Microbatches of 1, 2, 3 (the last one ragged), 4 and 8 rows.

    In transformers the loss of an update was multiplied by its microbatches (transformers#38982).
    """
    loss, gradients = made(world, name)
    expected_loss, expected_gradients = expected
    loss_error, gradient_error = (1e-3, 5e-2) if "bf16" in name else (1e-5, 1e-5)
    assert loss == pytest.approx(expected_loss, rel=loss_error)
    assert gradients.keys() == expected_gradients.keys()
    for parameter, gradient in expected_gradients.items():
        assert (gradients[parameter] - gradient).norm() <= gradient_error * gradient.norm(), parameter


def test_an_update_with_nothing_to_predict_on_any_rank_changes_nothing_and_is_no_nan(made):
    loss, gradients = made(2, NOTHING)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients.values())


def test_a_rank_and_a_microbatch_with_nothing_to_predict_count_for_nothing(made, tiny):
    """A short text may get no mask, and a rank's rows none at all (tokenizers#1193)."""
    expected_loss, expected_gradients, masked = by_autograd(tiny, HARDLY)
    assert [sum(masked[row : row + 2]) for row in range(0, 8, 2)] == [0, 0, 0, 3]  # the second rank's second microbatch
    loss, gradients = made(2, ONE_RANK)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for parameter, gradient in expected_gradients.items():
        assert (gradients[parameter] - gradient).norm() <= 1e-5 * gradient.norm(), parameter


def test_deterministic_mode_changes_no_number_on_cpu(made):
    loss, gradients = made(2, "microbatches")
    same_loss, same_gradients = made(2, "microbatches, deterministic")
    assert same_loss == loss
    assert all(torch.equal(same_gradients[parameter], gradient) for parameter, gradient in gradients.items())
