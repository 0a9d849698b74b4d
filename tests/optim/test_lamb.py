"""LAMB takes the published steps on whole tensors, and the same on the shards of any mesh."""

from collections.abc import Iterable

import pytest
import torch
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
from rotary_foundry.optim.lamb import LAMB
from rotary_foundry.optim.optimizers import build_optimizer
from rotary_foundry.recipe.optimizer_settings import LAMBConfig
from tests.optim.small_model import (
    assert_collectives_of_a_step,
    assert_same,
    recorded,
    sharded_model,
    small_model,
    weights,
)
from tests.ranks import on_ranks

BETAS, EPS, DECAY, PEAK = (0.9, 0.999), 1e-6, 0.01, 1e-2
STEPS, SAVED_AT = 50, 30
ZERO_GRADIENT, ZERO_WEIGHT = 2, 3  # parameters of the small model: the norm's gain, which gets none, and its bias


def rate(step: int) -> float:
    return PEAK * min(1.0, (step + 1) / 10)


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    made = [torch.randn(param.shape, generator=generator) * 10 ** (step % 3) for param in small_model().parameters()]
    made[ZERO_GRADIENT].zero_()
    return made


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int] = range(STEPS)) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        for param, gradient in zip(model.parameters(), gradients(step), strict=True):
            if isinstance(param, DTensor):
                gradient = distribute_tensor(gradient, param.device_mesh, param.placements)
            param.grad = gradient
        optimizer.step()


def ours(model: nn.Module) -> LAMB:
    return build_optimizer(LAMBConfig("lamb", BETAS, EPS, DECAY), model, PEAK)


def published() -> list[torch.Tensor]:
    """The steps written down plainly, one whole tensor after the other, in float64."""
    values = [value.double() for value in weights(small_model())]
    moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in values]
    for step in range(STEPS):
        for value, (first, second), gradient in zip(values, moments, gradients(step), strict=True):
            first.mul_(BETAS[0]).add_((1 - BETAS[0]) * gradient)
            second.mul_(BETAS[1]).add_((1 - BETAS[1]) * gradient.double() ** 2)
            update = first / (second.sqrt() + EPS) + DECAY * value
            ratio = value.norm() / update.norm() if value.norm() > 0 and update.norm() > 0 else 1.0
            value.sub_(rate(step) * ratio * update)
    return [value.float() for value in values]


def test_equals_the_published_steps_on_whole_tensors():
    model = small_model()
    assert not model[1].bias.any()
    train(model, ours(model))
    assert_same(weights(model), published())
    assert model[1].bias.all()  # has left zero
    kept = torch.tensor([1 - rate(step) for step in range(STEPS)]).prod()
    torch.testing.assert_close(model[1].weight, kept.expand(5), rtol=1e-5, atol=0)  # no gradient: shrinks by lr


def _equal_on_shards(mesh_shapes: list[tuple[int, ...]], expected: tuple) -> None:
    for shape in mesh_shapes:
        model = sharded_model(shape)
        found, metrics = recorded(model, ours(model), train, STEPS, SAVED_AT)
        assert_same(found, expected[0])
        torch.testing.assert_close(metrics, expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ranks", "mesh_shapes"), [(1, [(1,)]), (2, [(2,)]), pytest.param(4, [(4,), (2, 2)], marks=pytest.mark.long)]
)
def test_shards_take_the_steps_of_the_whole(tmp_path, ranks, mesh_shapes):
    model = small_model()
    _, metrics = recorded(model, ours(model), train, STEPS, SAVED_AT)
    on_ranks(ranks, tmp_path, _equal_on_shards, mesh_shapes, (published(), metrics))


def test_metrics_are_of_the_step_just_taken():
    model = small_model()
    optimizer = ours(model)
    train(model, optimizer, range(SAVED_AT))
    before = weights(model)
    optimizer.record_metrics = True
    train(model, optimizer, [SAVED_AT])
    step = optimizer.metrics
    expected = {
        "grad": [param.grad.norm() for param in step.params],
        "param": [value.norm() for value in before],
        "moment": [optimizer.state[param]["exp_avg"].norm() for param in step.params],
        "update": [(param - value).norm() for param, value in zip(step.params, before, strict=True)],
    }
    for kind, norms in expected.items():
        torch.testing.assert_close(step.l2_norms[kind], torch.stack(norms).detach(), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(step.l2_norms["update"], PEAK * step.l2_norms["param"], rtol=1e-4, atol=0)
    assert step.clipping.tolist() == [1.0] * 6


def _collectives_of_a_step() -> None:
    model = sharded_model((2,))
    optimizer = ours(model)
    for record in (False, True):
        optimizer.record_metrics = record
        train(model, optimizer, [0])  # gradients and state are there
        assert_collectives_of_a_step(optimizer, 1)


def test_a_step_is_one_collective_with_and_without_metrics(tmp_path):
    on_ranks(2, tmp_path, _collectives_of_a_step)


def _one_layer_whole(expected: list[torch.Tensor]) -> None:
    model = small_model()
    fully_shard(model[0])
    train(model, ours(model))
    assert_same(weights(model), expected)


def test_whole_parameters_beside_sharded_ones_count_once(tmp_path):
    on_ranks(2, tmp_path, _one_layer_whole, published())


def _checkpoint(model: nn.Module, optimizer: LAMB) -> dict:
    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}


def _save(folder) -> None:
    model = sharded_model((2,))
    optimizer = ours(model)
    train(model, optimizer, range(SAVED_AT))
    checkpoint.save(_checkpoint(model, optimizer), checkpoint_id=folder)


def _continue(folder, mesh_shape: tuple[int, ...] | None, expected: list[torch.Tensor]) -> None:
    model = small_model() if mesh_shape is None else sharded_model(mesh_shape)
    optimizer = ours(model)
    state = _checkpoint(model, optimizer)
    checkpoint.load(state, checkpoint_id=folder, no_dist=mesh_shape is None)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    assert {state["step"].item() for state in optimizer.state.values()} == {SAVED_AT}
    assert [group["decays"] for group in optimizer.param_groups] == [True]
    train(model, optimizer, range(SAVED_AT, STEPS))
    assert_same(weights(model), expected)


def test_a_checkpoint_of_two_ranks_goes_on_with_any_number_of_them(tmp_path):
    folder = tmp_path / "checkpoint"
    on_ranks(2, tmp_path, _save, folder)
    _continue(folder, None, published())
    on_ranks(1, tmp_path, _continue, folder, (1,), published())
    on_ranks(4, tmp_path, _continue, folder, (4,), published())


def test_every_tensor_decays_and_a_model_of_matrices_has_one_group_with_any_optimizer():
    (group,) = ours(small_model()).param_groups
    assert (len(group["params"]), group["weight_decay"]) == (6, DECAY)
    (group,) = decay_groups(nn.Linear(3, 2, bias=False), 0.1)
    assert group["decays"] is True


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1e-3), ("betas", (0.9, 1.0)), ("eps", 0.0), ("weight_decay", -1e-5), ("lr", float("nan"))],
)
def test_impossible_settings_are_refused_with_their_value(name, value):
    settings = {"lr": PEAK, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
    with pytest.raises(ValueError, match=rf"{name}.*{value}".replace("(", r"\(").replace(")", r"\)")):
        LAMB([nn.Parameter(torch.ones(1))], **settings | {name: value})
