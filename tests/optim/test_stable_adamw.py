"""StableAdamW is optimi's on whole tensors, and itself on the shards of any mesh."""

import warnings
from collections.abc import Iterable

import pytest
import torch
from optimi import StableAdamW as OptimiStableAdamW
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rotary_foundry.optim.decay_groups import decay_groups
from rotary_foundry.optim.stable_adamw import StableAdamW
from tests.optim.small_model import (
    SETTINGS,
    Metrics,
    assert_collectives_of_a_step,
    assert_same,
    recorded,
    sharded_model,
    small_model,
    weights,
)
from tests.ranks import on_ranks

STEPS, SPIKE_AT, NEW_PEAK_AT = 50, 30, 35


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int] = range(STEPS)) -> None:
    """Steps on made-up gradients, under a schedule with two peaks, with a spike for the clipping to answer."""
    for step in steps:
        peak = SETTINGS["lr"] * (0.6 if step >= NEW_PEAK_AT else 1)
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 10)
            group["max_lr"] = peak
        generator = torch.Generator().manual_seed(step)
        for index, param in enumerate(model.parameters()):
            gradient = torch.randn(param.shape, generator=generator) * (100 if step == SPIKE_AT else 1)
            if index == 3:
                gradient *= 1e-9  # below eps, in the spike as well
            if isinstance(param, DTensor):
                gradient = distribute_tensor(gradient, param.device_mesh, param.placements)
            param.grad = gradient
        optimizer.step()


def ours(model: nn.Module) -> StableAdamW:
    return StableAdamW(decay_groups(model, SETTINGS["weight_decay"]), **SETTINGS)


def sharded(mesh_shape: tuple[int, ...]) -> tuple[nn.Module, StableAdamW]:
    model = sharded_model(mesh_shape)
    return model, ours(model)


def test_equals_optimi_on_whole_tensors_through_a_spike():
    model, reference = small_model(), small_model()
    with warnings.catch_warnings(action="ignore"):  # of a high weight decay
        theirs = OptimiStableAdamW(
            decay_groups(reference, SETTINGS["weight_decay"]), **SETTINGS, decouple_lr=True, triton=False
        )
    train(model, ours(model))
    train(reference, theirs)
    assert_same(weights(model), weights(reference))


def recorded_run(model: nn.Module, optimizer: StableAdamW) -> tuple[list[torch.Tensor], Metrics]:
    return recorded(model, optimizer, train, STEPS, SPIKE_AT)


def _equal_on_shards(mesh_shapes: list[tuple[int, ...]], expected: tuple[list[torch.Tensor], Metrics]) -> None:
    for shape in mesh_shapes:
        found, metrics = recorded_run(*sharded(shape))
        assert_same(found, expected[0])
        torch.testing.assert_close(metrics, expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ranks", "mesh_shapes"), [(1, [(1,)]), (2, [(2,)]), pytest.param(4, [(4,), (2, 2)], marks=pytest.mark.long)]
)
def test_shards_take_the_steps_of_the_whole(tmp_path, ranks, mesh_shapes):
    model = small_model()
    on_ranks(ranks, tmp_path, _equal_on_shards, mesh_shapes, recorded_run(model, ours(model)))


def test_metrics_are_of_the_step_just_taken():
    model = small_model()
    optimizer = ours(model)
    train(model, optimizer, range(SPIKE_AT))
    assert optimizer.metrics is None
    before = weights(model)
    optimizer.record_metrics = True
    train(model, optimizer, [SPIKE_AT])
    step = optimizer.metrics
    after = {param: old for param, old in zip(model.parameters(), before, strict=True)}
    expected = {
        "grad": [param.grad.norm() for param in step.params],
        "param": [after[param].norm() for param in step.params],
        "moment": [optimizer.state[param]["exp_avg"].norm() for param in step.params],
        "update": [(param - after[param]).norm() for param in step.params],
    }
    for kind, norms in expected.items():
        torch.testing.assert_close(step.l2_norms[kind], torch.stack(norms).detach(), rtol=1e-4, atol=1e-8)
    assert (step.clipping > 1).sum() == 5  # all but the parameter with gradients below eps
    assert (step.clipping >= 1).all()


def _groups_rebuilt_by_composer(expected: list[torch.Tensor]) -> None:
    from composer.distributed.fsdp2_utils import update_optimizer_modules  # slow to import: only here

    model = small_model()
    optimizer = ours(model)
    names = {param: name for name, param in model.named_parameters()}
    fully_shard(model)
    update_optimizer_modules(optimizer, model, names)
    train(model, optimizer)
    assert_same(weights(model), expected)


def test_composer_may_shard_the_model_under_the_optimizer(tmp_path):
    model = small_model()
    train(model, ours(model))
    on_ranks(1, tmp_path, _groups_rebuilt_by_composer, weights(model))


def _collectives_of_a_step() -> None:
    model, optimizer = sharded((2,))
    for record in (False, True):
        optimizer.record_metrics = record
        train(model, optimizer, [0])  # gradients and state are there
        assert_collectives_of_a_step(optimizer, 1)


def test_a_step_is_one_collective_with_and_without_metrics(tmp_path):
    on_ranks(2, tmp_path, _collectives_of_a_step)


def _one_layer_whole(expected: tuple[list[torch.Tensor], Metrics]) -> None:
    model = small_model()
    fully_shard(model[0])
    found, metrics = recorded_run(model, ours(model))
    assert_same(found, expected[0])
    torch.testing.assert_close(metrics, expected[1], rtol=1e-5, atol=1e-6)


def test_whole_parameters_beside_sharded_ones_count_once(tmp_path):
    model = small_model()
    on_ranks(2, tmp_path, _one_layer_whole, recorded_run(model, ours(model)))


def _checkpoint(model: nn.Module, optimizer: StableAdamW) -> dict:
    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}


def _save_at_the_spike(folder) -> None:
    model, optimizer = sharded((2,))
    train(model, optimizer, range(SPIKE_AT + 1))
    checkpoint.save(_checkpoint(model, optimizer), checkpoint_id=folder)


def _continue(folder, mesh_shape: tuple[int, ...] | None, expected: list[torch.Tensor]) -> None:
    if mesh_shape is None:
        model = small_model()
        optimizer = ours(model)
    else:
        model, optimizer = sharded(mesh_shape)
    state = _checkpoint(model, optimizer)
    checkpoint.load(state, checkpoint_id=folder, no_dist=mesh_shape is None)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    assert {state["step"].item() for state in optimizer.state.values()} == {SPIKE_AT + 1}
    train(model, optimizer, range(SPIKE_AT + 1, STEPS))
    assert_same(weights(model), expected)


def test_a_checkpoint_of_two_ranks_goes_on_with_any_number_of_them(tmp_path):
    model = small_model()
    train(model, ours(model))
    folder = tmp_path / "checkpoint"
    on_ranks(2, tmp_path, _save_at_the_spike, folder)
    _continue(folder, None, weights(model))
    on_ranks(1, tmp_path, _continue, folder, (1,), weights(model))
    on_ranks(4, tmp_path, _continue, folder, (4,), weights(model))


def test_a_parameter_that_joins_late_is_debiased_from_its_own_first_step():
    alone, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    always = nn.Parameter(torch.ones(3))
    optimizer = StableAdamW([always, late], **SETTINGS)
    always.grad = torch.ones(3)
    optimizer.step()
    late.grad = alone.grad = torch.tensor([1.0, -2.0, 3.0])
    optimizer.step()
    StableAdamW([alone], **SETTINGS).step()
    torch.testing.assert_close(late, alone)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1e-3),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.98)),
        ("eps", 0.0),
        ("weight_decay", -1e-5),
        ("max_lr", 0.0),
        ("lr", float("nan")),
    ],
)
def test_impossible_settings_are_refused_with_their_value(name, value):
    with pytest.raises(ValueError, match=rf"{name}.*{value}".replace("(", r"\(").replace(")", r"\)")):
        StableAdamW([nn.Parameter(torch.ones(1))], **SETTINGS | {name: value})


def test_norms_and_biases_do_not_decay():
    model = small_model()
    decaying, spared = decay_groups(model, 0.1)
    assert {id(param) for param in decaying["params"]} == {id(model[0].weight), id(model[2].weight)}
    assert decaying["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0
    assert len(spared["params"]) == 4
