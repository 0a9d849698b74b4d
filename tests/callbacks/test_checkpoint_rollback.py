"""A run goes back in the update that ruins its weights, not in the next one, whose checkpoint would hold them."""

from types import SimpleNamespace

import pytest
import torch

from rotary_foundry.callbacks.checkpoint_rollback import CheckpointRollback
from rotary_foundry.callbacks.loss_watch import LossWatch
from rotary_foundry.optim.optimizers import CLASSES
from rotary_foundry.recipe.schema import RollbackConfig
from rotary_foundry.runs.trouble import RollbackDue


def after_a_step(gradient: float, name: str) -> SimpleNamespace:
    """What the callback sees of Composer's State after a step with a finite loss."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = CLASSES[name]([param], lr=0.1, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    optimizer.record_metrics = True
    param.grad = torch.tensor([0.1, gradient, 0.1])
    optimizer.step()
    return SimpleNamespace(
        optimizers=[optimizer],
        dataloader_label="pretrain",
        timestamp=SimpleNamespace(token=SimpleNamespace(value=300)),
        previous_timestamp=SimpleNamespace(token=SimpleNamespace(value=200)),
        total_loss_dict={"loss/train/total": 5.0},
    )


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("gradient", [float("inf"), float("nan"), 1e30])  # the last one's square is infinite
def test_a_gradient_that_is_no_number_is_trouble_though_the_loss_is_one(gradient, name):
    with pytest.raises(RollbackDue, match=r"the gradient's norm is (inf|nan)") as due:
        CheckpointRollback(LossWatch(RollbackConfig()), None).batch_end(after_a_step(gradient, name), None)
    assert (due.value.trouble.trigger, due.value.trouble.since_token) == ("non_finite", 200)


@pytest.mark.parametrize("name", CLASSES)
def test_a_step_like_any_other_is_none(name):
    CheckpointRollback(LossWatch(RollbackConfig()), None).batch_end(after_a_step(0.1, name), None)
