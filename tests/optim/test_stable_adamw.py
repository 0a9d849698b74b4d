"""StableAdamW is optimi's on whole tensors, and itself on shards."""

import torch
import torch.multiprocessing as mp
from optimi import StableAdamW as OptimiStableAdamW
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from encoder_foundry.optim.stable_adamw import StableAdamW, decay_groups

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}
SPIKE_AT = 30


def small_model() -> nn.Module:
    torch.manual_seed(0)
    # 5 and 3 do not divide by two: uneven shards
    return nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 50) -> list[torch.Tensor]:
    """The parameters after some steps on made-up gradients, with a spike that the clipping has to answer."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = SETTINGS["lr"] * min(1.0, (step + 1) / 10)
        for param in model.parameters():
            gradient = torch.randn(param.shape, generator=generator) * (100 if step == SPIKE_AT else 1)
            if isinstance(param, DTensor):
                gradient = distributed.tensor.distribute_tensor(gradient, param.device_mesh, param.placements)
            param.grad = gradient
        optimizer.step()
    whole = (param.full_tensor() if isinstance(param, DTensor) else param for param in model.parameters())
    return [param.detach().clone() for param in whole]


def test_equals_optimi_on_whole_tensors_through_a_spike():
    ours, theirs = small_model(), small_model()
    expected = train(
        theirs,
        OptimiStableAdamW(theirs.parameters(), **SETTINGS, decouple_lr=True, max_lr=SETTINGS["lr"], triton=False),
    )
    found = train(ours, StableAdamW(ours.parameters(), **SETTINGS))
    for ours_param, their_param in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_param, their_param, rtol=1e-6, atol=1e-6)


def test_norms_and_biases_do_not_decay():
    model = small_model()
    decaying, spared = decay_groups(model, 0.1)
    assert {id(param) for param in decaying["params"]} == {id(model[0].weight), id(model[2].weight)}
    assert decaying["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0
    assert len(spared["params"]) == 4


def _train_sharded(rank: int, world: int, store: str, expected: list[torch.Tensor]) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        model = fully_shard(small_model())
        found = train(model, StableAdamW(model.parameters(), **SETTINGS))
        for sharded, whole in zip(found, expected, strict=True):
            torch.testing.assert_close(sharded, whole, rtol=1e-6, atol=1e-6)
    finally:
        distributed.destroy_process_group()


def test_shards_of_two_ranks_take_the_steps_of_the_whole(tmp_path):
    model = small_model()
    expected = train(model, StableAdamW(model.parameters(), **SETTINGS))
    mp.spawn(_train_sharded, args=(2, str(tmp_path / "store"), expected), nprocs=2)
