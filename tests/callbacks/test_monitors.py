"""The monitors tell what really happened: time is counted once, operations are the model's, ranks are told apart."""

import random
import time
from types import SimpleNamespace

import pytest
import torch

from rotary_foundry import load_recipe
from rotary_foundry.callbacks import throughput
from rotary_foundry.callbacks.loss_spike import LossSpike
from rotary_foundry.callbacks.memory import Memory
from rotary_foundry.callbacks.step_time import StepTime
from rotary_foundry.callbacks.throughput import Throughput
from rotary_foundry.recipe.cost import PEAK_FLOPS, peak_flops
from tests.ranks import on_ranks


@pytest.mark.gpu
def test_a_gpus_time_is_counted_on_the_gpu_and_without_waiting_for_it():
    class Layer(torch.nn.Module):
        def forward(self, matrix):
            for _ in range(20):
                matrix = torch.tanh(matrix @ matrix)
            return matrix

    layer, matrix, monitor = Layer(), torch.randn(8192, 8192, device="cuda"), StepTime()
    monitor.fit_start(SimpleNamespace(model=SimpleNamespace(network=SimpleNamespace(blocks=[layer]))), None)
    for _ in range(2):  # the second time without the start of the library
        torch.cuda.synchronize()
        monitor.before_dataloader(None, None)
        monitor.after_dataloader(None, None)
        began = time.perf_counter()
        layer(matrix)
        issued = time.perf_counter() - began
        torch.cuda.synchronize()
        done = time.perf_counter() - began
    assert issued < 0.5 * done
    assert monitor.local(None)["work"] == pytest.approx(done, rel=0.1)


def _measured_run(slow_rank: int, sleep: float) -> None:
    from composer import Trainer
    from composer.core import Callback
    from composer.models import ComposerClassifier
    from composer.utils import dist
    from composer.utils.parallelism import FSDP2Config
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from rotary_foundry.optim.decay_groups import decay_groups
    from rotary_foundry.optim.stable_adamw import StableAdamW

    class Slow(nn.Module):
        def forward(self, value):
            if dist.get_global_rank() == slow_rank:
                time.sleep(sleep)
            return value

    class Gathered(Callback):
        """Does RunRecords' part, and times every update from outside."""

        def __init__(self):
            self.step_time = StepTime()
            self.records, self.walls = [], []

        def before_dataloader(self, state, logger):
            self.began = time.perf_counter()

        def batch_end(self, state, logger):
            own = self.step_time.local(state)
            self.walls.append(time.perf_counter() - self.began)
            self.records.append(self.step_time.measured(state, dist.all_gather_object(own)))

    model = ComposerClassifier(nn.Sequential(nn.Linear(7, 5), Slow(), nn.Linear(5, 3)), num_classes=3)
    model.network = SimpleNamespace(blocks=list(model.module))
    data = TensorDataset(torch.randn(24, 7), torch.randint(3, (24,)))
    gathered = Gathered()
    trainer = Trainer(
        model=model,
        optimizers=StableAdamW(decay_groups(model, 0.1), lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1),
        train_dataloader=DataLoader(data, batch_size=2, sampler=dist.get_sampler(data)),
        max_duration="5ba",
        parallelism_config={"fsdp": FSDP2Config()},
        callbacks=[gathered.step_time, gathered],
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    for record, wall in list(zip(gathered.records, gathered.walls, strict=True))[1:]:
        assert 0 < record["data_seconds"] < record["step_seconds"]
        assert record["step_seconds"] == pytest.approx(wall, abs=0.2 * sleep)
        assert record["slowest_rank"] == slow_rank
        assert record["slowest_lag"] > 0.5


@pytest.mark.long
def test_the_rank_that_the_others_wait_for_is_named(tmp_path):
    on_ranks(2, tmp_path, _measured_run, 1, 1.0)  # seconds, beside which what a busy machine adds is little


def test_operations_count_the_documents_as_long_as_they_are(monkeypatch):
    recipe = load_recipe("yamls/main/base.yaml")
    monitor = Throughput(recipe)
    monitor.peak = 1e12
    now = 0.0
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now)
    monitor.fit_start(None, None)

    def mfu(lengths: list[int], masked: int) -> float:
        batch = {"row_tokens": [sum(lengths)], "row_labels": [masked], "lengths": lengths}
        nonlocal now
        monitor.batch_start(SimpleNamespace(batch=batch), None)
        now += 1.5
        monitor.eval_start(None, None)
        now += 100
        monitor.eval_end(None, None)
        now += 0.5
        local = monitor.local(None)
        measured = monitor.measured(None, [local, local])
        assert measured["tokens_per_second"] == 2 * sum(lengths) / 2.0
        return measured["mfu"]

    model = recipe.model
    layer = 4 * model.hidden_size**2 + 3 * model.hidden_size * model.intermediate_size
    head = model.hidden_size**2 + model.hidden_size * model.vocab_size
    lengths, masked = [600, 40], 200
    pairs = 0
    for layer_index in range(model.num_hidden_layers):
        for length in lengths:
            places = torch.arange(length)
            distance = (places[:, None] - places).abs()
            is_global = layer_index % model.global_attn_every_n_layers == 0
            pairs += length**2 if is_global else int((distance <= model.local_attention // 2).sum())
    flops = 6 * (sum(lengths) * model.num_hidden_layers * layer + masked * head) + 12 * model.hidden_size * pairs
    assert mfu(lengths, masked) == pytest.approx(flops / (2.0 * 1e12))
    assert mfu([640], masked) > mfu(lengths, masked) > mfu([64] * 10, masked)


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA B200", "b200"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_devices_peak_is_known_or_there_is_none(device, kind):
    assert peak_flops(device) == PEAK_FLOPS.get(kind)


def test_there_is_no_mfu_on_a_device_without_a_known_peak():
    monitor = Throughput(load_recipe("yamls/main/base.yaml"))
    monitor.peak = None
    assert monitor.measured(None, [{"tokens": 8, "flops": 1e9, "seconds": 1.0}]) == {
        "tokens_per_second": 8,
        "mfu": None,
    }


def test_the_memory_is_that_of_the_rank_that_takes_most():
    monitor = Memory()
    own = monitor.local(None)
    assert 1e8 < own["bytes"] < 1e11
    assert monitor.measured(None, [own, {"bytes": 2e11}]) == {"memory_gb": 200.0}


def scores(monitor: LossSpike, losses: list[float], stage: str = "pretrain") -> list[float | None]:
    states = [SimpleNamespace(dataloader_label=stage, total_loss_dict={"loss/train/total": loss}) for loss in losses]
    return [monitor.measured(state, [])["loss_spike_score"] for state in states]


def noisy(count: int) -> list[float]:
    generator = random.Random(0)
    return [5 + generator.gauss(0, 0.05) for _ in range(count)]


def test_a_spike_stands_out_by_its_robust_deviations_and_noise_does_not():
    found = scores(LossSpike(), [*noisy(400), 6.0, float("nan"), *noisy(3)])
    assert found[:16] == [None] * 16
    assert max(abs(score) for score in found[16:400]) < 6
    assert found[400] == pytest.approx(1.0 / 0.05, rel=0.25)
    assert found[401] is None
    assert abs(found[402]) < 6


def test_a_new_stage_begins_anew_and_a_resumed_run_goes_on_with_the_scores_it_would_have_had():
    losses = noisy(60)
    undisturbed, resumed = LossSpike(), LossSpike()
    expected = scores(undisturbed, losses)
    resumed.resume([{"stage": "pretrain", "loss": loss} for loss in losses[:40]])
    assert scores(resumed, losses[40:]) == expected[40:]
    assert scores(resumed, losses[:3], "extend") == [None] * 3
