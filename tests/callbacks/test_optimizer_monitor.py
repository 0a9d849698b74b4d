"""OptimizerMonitor logs, under FSDP2, the norms of the whole parameters."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rotary_foundry.callbacks import checkpoint_rollback
from rotary_foundry.callbacks.optimizer_monitor import OptimizerMonitor
from rotary_foundry.optim.optimizers import RecipeOptimizer, build_optimizer
from rotary_foundry.recipe.optimizer_settings import OPTIMIZERS as SETTINGS
from tests.ranks import on_ranks

OPTIMIZERS = [("stable_adamw", {}), ("adamw", {}), ("adamw", {"max_grad_norm": 0.5})]


def optimizer_of(name: str, model: nn.Module, **arguments: float) -> RecipeOptimizer:
    config = SETTINGS[name](name=name, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, **arguments)
    return build_optimizer(config, model, max_lr=1e-2)


def _monitored_run(name: str, arguments: dict[str, float]) -> None:
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

        def after_backward(self, state, logger):  # the one microbatch's; the optimizer may clip them in its step
            self.gradients.append({name: p.grad.full_tensor().clone() for name, p in state.model.named_parameters()})

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
        optimizers=optimizer_of(name, model, **arguments),
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


@pytest.mark.parametrize(("name", "arguments"), OPTIMIZERS)
def test_norms_are_of_whole_parameters_under_fsdp2(tmp_path, name, arguments):
    on_ranks(2, tmp_path, _monitored_run, name, arguments)


@pytest.mark.long  # the same, on five processes
def test_norms_are_right_where_ranks_have_no_element_of_a_parameter(tmp_path):
    """mosaicml/composer#3920, #3921: of three rows, two of five ranks have none."""
    on_ranks(5, tmp_path, _monitored_run, *OPTIMIZERS[0])


@pytest.mark.parametrize(("name", "arguments"), OPTIMIZERS)
@pytest.mark.parametrize("records_first", [True, False])
def test_the_record_the_loggers_and_the_rollback_have_the_same_norms_which_are_taken_once(
    monkeypatch, records_first, name, arguments
):
    model = nn.Linear(3, 2)
    optimizer = optimizer_of(name, model, **arguments)
    state, monitor = SimpleNamespace(optimizers=[optimizer]), OptimizerMonitor()
    logged, taken, norm = [], [], torch.Tensor.norm
    logger = SimpleNamespace(log_metrics=logged.append)
    for _ in range(2):
        monitor.batch_start(state, logger)
        optimizer.zero_grad()
        model(torch.randn(4, 3)).sum().backward()
        grad = torch.cat([param.grad.flatten() for param in model.parameters()]).norm().item()
        optimizer.step()
        with monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "norm", lambda *given, **named: taken.append(1) or norm(*given, **named))
            if not records_first:
                monitor.batch_end(state, logger)
            record = monitor.measured(state, [])
            if records_first:
                monitor.batch_end(state, logger)
            watched = checkpoint_rollback.norms_of(optimizer)
        assert record["grad_norm"] == logged[-1]["optim/l2_norm/grad/global"] == pytest.approx(grad)
        assert record["update_norm"] == logged[-1]["optim/l2_norm/update/global"]
        assert list(watched.values()) == [record["grad_norm"], record["update_norm"]]
    assert len(logged) == len(taken) == 2
