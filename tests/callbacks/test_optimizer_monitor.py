"""OptimizerMonitor logs, under FSDP2, the norms of the whole parameters."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rotary_foundry.callbacks import checkpoint_rollback
from rotary_foundry.callbacks.optimizer_monitor import OptimizerMonitor
from rotary_foundry.optim.decay_groups import decay_groups
from rotary_foundry.optim.stable_adamw import StableAdamW
from tests.ranks import on_ranks


def _monitored_run() -> None:
    from composer import Trainer
    from composer.core import Callback
    from composer.loggers import InMemoryLogger
    from composer.models import ComposerClassifier
    from composer.utils import dist
    from composer.utils.parallelism import FSDP2Config
    from torch.utils.data import DataLoader, TensorDataset

    from rotary_foundry.callbacks.optimizer_monitor import OptimizerMonitor

    class Whole(Callback):
        """Gathers what the monitor is to know."""

        def __init__(self):
            self.gradients, self.weights, self.clipping = [], [], []

        def batch_start(self, state, logger):
            self.weights.append({name: p.full_tensor().clone() for name, p in state.model.named_parameters()})

        def after_train_batch(self, state, logger):
            self.gradients.append({name: p.grad.full_tensor() for name, p in state.model.named_parameters()})

        def batch_end(self, state, logger):
            self.clipping.append(state.optimizers[0].metrics.clipping.max().item())

        def fit_end(self, state, logger):
            self.batch_start(state, logger)

    torch.manual_seed(0)
    model = ComposerClassifier(nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3)), num_classes=3)
    data = TensorDataset(torch.randn(24, 7), torch.randint(3, (24,)))
    whole, memory = Whole(), InMemoryLogger()
    Trainer(
        model=model,
        optimizers=StableAdamW(decay_groups(model, 0.1), lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1),
        train_dataloader=DataLoader(data, batch_size=2, sampler=dist.get_sampler(data)),
        max_duration="5ba",
        parallelism_config={"fsdp": FSDP2Config()},
        callbacks=[whole, OptimizerMonitor()],
        loggers=memory,
        progress_bar=False,
    ).fit()

    def logged(key: str) -> list[float]:
        return [value for _, value in memory.data[f"optim/{key}"]]

    def norms(updates: list[dict[str, torch.Tensor]]) -> list[float]:
        return [torch.cat([tensor.flatten() for tensor in update.values()]).norm().item() for update in updates]

    steps = [
        {name: after[name] - before[name] for name in before} for before, after in itertools.pairwise(whole.weights)
    ]
    assert logged("l2_norm/grad/global") == pytest.approx(norms(whole.gradients), 1e-5)
    assert logged("l2_norm/param/global") == pytest.approx(norms(whole.weights[:-1]), 1e-5)
    assert logged("l2_norm/update/global") == pytest.approx(norms(steps), 1e-4)
    assert logged("clipping/max") == whole.clipping


def test_norms_are_of_whole_parameters_under_fsdp2(tmp_path):
    on_ranks(2, tmp_path, _monitored_run)


@pytest.mark.parametrize("records_first", [True, False])
def test_the_record_the_loggers_and_the_rollback_have_the_same_norms_which_are_taken_once(monkeypatch, records_first):
    model = nn.Linear(3, 2)
    optimizer = StableAdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    state, monitor = SimpleNamespace(optimizers=[optimizer]), OptimizerMonitor()
    logged, taken, norm = [], [], torch.Tensor.norm
    logger = SimpleNamespace(log_metrics=logged.append)
    for _ in range(2):
        monitor.batch_start(state, logger)
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        with monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "norm", lambda *given, **named: taken.append(1) or norm(*given, **named))
            if not records_first:
                monitor.batch_end(state, logger)
            record = monitor.measured(state, [])
            if records_first:
                monitor.batch_end(state, logger)
            watched = checkpoint_rollback.norms_of(optimizer)
        grad = torch.cat([param.grad.flatten() for param in model.parameters()]).norm().item()
        assert record["grad_norm"] == logged[-1]["optim/l2_norm/grad/global"] == pytest.approx(grad)
        assert record["update_norm"] == logged[-1]["optim/l2_norm/update/global"]
        assert list(watched.values()) == [record["grad_norm"], record["update_norm"]]
    assert len(logged) == len(taken) == 2
