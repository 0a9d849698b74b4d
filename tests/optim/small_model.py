"""A model small enough for every rank count, and what the tests of all optimizers do with it."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}
Metrics = dict[str, torch.Tensor]


def small_model() -> nn.Module:
    torch.manual_seed(0)
    # 5 rows on two ranks are 3 and 2, on four 2, 2, 1 and none
    return nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def sharded_model(mesh_shape: tuple[int, ...]) -> nn.Module:
    model = small_model()
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("replicate", "shard")[-len(mesh_shape) :])
    fully_shard(model, mesh=mesh)
    return model


def weights(model: nn.Module) -> list[torch.Tensor]:
    whole = (param.full_tensor() if isinstance(param, DTensor) else param for param in model.parameters())
    return [param.detach().clone() for param in whole]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def assert_collectives_of_a_step(optimizer: torch.optim.Optimizer, expected: int) -> None:
    with CommDebugMode() as communication:
        optimizer.step()
    assert communication.get_total_counts() == expected, communication.get_comm_counts()


def recorded(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Callable[[nn.Module, torch.optim.Optimizer, Iterable[int]], None],
    steps: int,
    at: int,
) -> tuple[list[torch.Tensor], Metrics]:
    """Train, and return the final weights and the metrics of step `at`, in the order of the model's parameters."""
    train(model, optimizer, range(at))
    optimizer.record_metrics = True
    train(model, optimizer, [at])
    optimizer.record_metrics = False
    step = optimizer.metrics
    order = [next(i for i, own in enumerate(step.params) if own is param) for param in model.parameters()]
    metrics = {kind: values[order] for kind, values in (step.l2_norms | {"clipping": step.clipping}).items()}
    train(model, optimizer, range(at + 1, steps))
    return weights(model), metrics
