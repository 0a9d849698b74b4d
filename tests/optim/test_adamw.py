"""AdamW is torch's on whole tensors, clipping included, and itself on the shards of any mesh."""

import inspect
from collections.abc import Iterable
from dataclasses import fields

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

from rotary_foundry.optim.adamw import AdamW
from rotary_foundry.optim.decay_groups import decay_groups
from rotary_foundry.optim.optimizers import CLASSES, build_optimizer
from rotary_foundry.recipe.optimizer_settings import OPTIMIZERS
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

MAX_GRAD_NORM = 2.0
STEPS, SPIKE_AT = 20, 12


def set_gradients(model: nn.Module, step: int) -> None:
    """Made-up gradients, the same on every mesh, with a norm of about 8, and one of 0.8 at every third step."""
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        gradient = torch.randn(param.shape, generator=generator)
        gradient *= 100 if step == SPIKE_AT else 0.1 if step % 3 == 0 else 1
        if isinstance(param, DTensor):
            gradient = distribute_tensor(gradient, param.device_mesh, param.placements)
        param.grad = gradient


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int] = range(STEPS)) -> None:
    for step in steps:
        set_gradients(model, step)
        optimizer.step()


def ours(model: nn.Module, max_grad_norm: float | None = MAX_GRAD_NORM) -> AdamW:
    return AdamW(decay_groups(model, SETTINGS["weight_decay"]), **SETTINGS, max_grad_norm=max_grad_norm)


def sharded(mesh_shape: tuple[int, ...], max_grad_norm: float | None = MAX_GRAD_NORM) -> tuple[nn.Module, AdamW]:
    model = sharded_model(mesh_shape)
    return model, ours(model, max_grad_norm)


def torchs_weights(max_grad_norm: float | None) -> list[torch.Tensor]:
    """What torch's AdamW and torch's clipping make of the whole tensors."""
    model = small_model()
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in decay_groups(model, 0.1)]
    optimizer = torch.optim.AdamW(groups, **SETTINGS)
    for step in range(STEPS):
        set_gradients(model, step)
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
    return weights(model)


@pytest.mark.parametrize("max_grad_norm", [None, MAX_GRAD_NORM])
def test_equals_torchs_on_whole_tensors(max_grad_norm):
    model = small_model()
    train(model, ours(model, max_grad_norm))
    assert_same(weights(model), torchs_weights(max_grad_norm))


def test_clips_the_gradients_of_what_the_closure_computes():
    model, expected = small_model(), small_model()
    ours(model).step(lambda: set_gradients(model, SPIKE_AT))
    set_gradients(expected, SPIKE_AT)
    torch.nn.utils.clip_grad_norm_(expected.parameters(), MAX_GRAD_NORM)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def recorded_run(model: nn.Module, optimizer: AdamW) -> tuple[list[torch.Tensor], Metrics]:
    return recorded(model, optimizer, train, STEPS, SPIKE_AT)


def _equal_on_shards(mesh_shapes: list[tuple[int, ...]], max_grad_norm: float | None) -> None:
    model = small_model()
    expected = recorded_run(model, ours(model, max_grad_norm))
    for shape in mesh_shapes:
        found, metrics = recorded_run(*sharded(shape, max_grad_norm))
        assert_same(found, torchs_weights(max_grad_norm))
        torch.testing.assert_close(metrics, expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ranks", "mesh_shapes"), [(1, [(1,)]), (2, [(2,)]), pytest.param(4, [(4,), (2, 2)], marks=pytest.mark.long)]
)
def test_shards_take_the_steps_of_the_whole(tmp_path, ranks, mesh_shapes):
    on_ranks(ranks, tmp_path, _equal_on_shards, mesh_shapes, MAX_GRAD_NORM)
    if ranks == 2:
        on_ranks(ranks, tmp_path, _equal_on_shards, mesh_shapes, None)


def test_metrics_are_of_the_step_just_taken():
    model = small_model()
    optimizer = ours(model)
    train(model, optimizer, range(SPIKE_AT))
    assert optimizer.metrics is None
    before = weights(model)
    set_gradients(model, SPIKE_AT)
    gradients = [param.grad.clone() for param in model.parameters()]
    optimizer.record_metrics = True
    optimizer.step()
    step = optimizer.metrics
    old = {param: (value, grad) for param, value, grad in zip(model.parameters(), before, gradients, strict=True)}
    expected = {
        "grad": [old[param][1].norm() for param in step.params],  # as it was before clipping
        "param": [old[param][0].norm() for param in step.params],
        "moment": [optimizer.state[param]["exp_avg"].norm() for param in step.params],
        "update": [(param - old[param][0]).norm() for param in step.params],
    }
    for kind, norms in expected.items():
        torch.testing.assert_close(step.l2_norms[kind], torch.stack(norms).detach(), rtol=1e-5, atol=1e-8)
    norm = torch.cat([grad.flatten() for grad in gradients]).norm().item()
    assert step.clipping.tolist() == pytest.approx([norm / MAX_GRAD_NORM] * 6, 1e-5)
    assert step.totals["grad"] == pytest.approx(norm, 1e-5)
    assert step.totals["clipping"] == pytest.approx(norm / MAX_GRAD_NORM, 1e-5)
    train(model, optimizer, [15])  # of norm 0.8
    assert optimizer.metrics.clipping.tolist() == [1.0] * 6


def _collectives_of_a_step() -> None:
    for max_grad_norm, record, expected in ((None, False, 0), (2.0, False, 1), (None, True, 1), (2.0, True, 2)):
        model, optimizer = sharded((2,), max_grad_norm)
        optimizer.record_metrics = record
        train(model, optimizer, [0])  # gradients and state are there
        assert_collectives_of_a_step(optimizer, expected)


def test_the_norm_of_all_gradients_is_one_collective(tmp_path):
    on_ranks(2, tmp_path, _collectives_of_a_step)


def _one_layer_whole() -> None:
    model = small_model()
    fully_shard(model[0])
    train(model, ours(model))
    assert_same(weights(model), torchs_weights(MAX_GRAD_NORM))


def test_whole_parameters_beside_sharded_ones_count_once(tmp_path):
    on_ranks(2, tmp_path, _one_layer_whole)


def _checkpoint(model: nn.Module, optimizer: AdamW) -> dict:
    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}


def _save_at_the_spike(folder) -> None:
    model, optimizer = sharded((2,))
    train(model, optimizer, range(SPIKE_AT + 1))
    checkpoint.save(_checkpoint(model, optimizer), checkpoint_id=folder)
    train(model, optimizer, range(SPIKE_AT + 1, STEPS))
    torch.save(weights(model), folder / "undisturbed.pt")


def _continue(folder, mesh_shape: tuple[int, ...] | None) -> None:
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
    assert_same(weights(model), torchs_weights(MAX_GRAD_NORM))
    if mesh_shape == (2,):
        for one, other in zip(weights(model), torch.load(folder / "undisturbed.pt"), strict=True):
            assert torch.equal(one, other)


def test_a_checkpoint_of_two_ranks_goes_on_with_any_number_of_them_and_bit_identically_with_two(tmp_path):
    folder = tmp_path / "checkpoint"
    on_ranks(2, tmp_path, _save_at_the_spike, folder)
    _continue(folder, None)
    for ranks in (1, 2, 4):
        on_ranks(ranks, tmp_path, _continue, folder, (ranks,))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1e-3),
        ("betas", (0.9, 1.0)),
        ("eps", 0.0),
        ("weight_decay", -1e-5),
        ("max_grad_norm", 0.0),
        ("lr", float("nan")),
    ],
)
def test_impossible_settings_are_refused_with_their_value(name, value):
    with pytest.raises(ValueError, match=rf"{name}.*{value}".replace("(", r"\(").replace(")", r"\)")):
        AdamW([nn.Parameter(torch.ones(1))], **SETTINGS | {name: value})


def test_every_optimizer_of_a_recipe_has_a_class_that_takes_its_arguments():
    assert CLASSES.keys() == OPTIMIZERS.keys()
    for name, config in OPTIMIZERS.items():
        declared = {field.name for field in fields(config)} - {"name"}
        assert declared == inspect.signature(CLASSES[name]).parameters.keys() - {"params", "lr", "max_lr"}
        assert set(config.per_stage) <= declared
        settings = config(name=name, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
        optimizer = build_optimizer(settings, small_model(), 0.5)
        assert settings.scheduled().items() <= optimizer.param_groups[0].items()
