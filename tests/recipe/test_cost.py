"""What a plan costs is what the real model, Composer's saver and the published figures say."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from composer.core import Event, Time, Timestamp
from composer.utils import create_interval_scheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.models.modernbert.network import ModernBert
from rotary_foundry.models.modernbert.shape import Shape
from rotary_foundry.optim.stable_adamw import StableAdamW
from rotary_foundry.recipe.cost import Machine, cost
from rotary_foundry.reporting.plan_table import checkpoints_line
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.wording import size
from tests.models.peers import KNOBS, SMALL, initialise, masked, pack


@pytest.mark.parametrize(("name", "published"), [("nano", 3.96e6), ("base", 149e6), ("large", 395e6)])
def test_parameters_are_those_of_the_model(name, published):
    shape = load_recipe(f"yamls/main/{name}.yaml").model.shape
    with torch.device("meta"):
        network = ModernBert(shape, KNOBS)
    assert shape.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert shape.parameters == pytest.approx(published, rel=0.005)


def test_matrix_products_are_those_that_torch_counts_in_a_training_step():
    shape = Shape(**SMALL)
    network = ModernBert(shape, KNOBS)
    initialise(network, seed=17)
    input_ids, cu_seqlens = pack(700, 61)
    labels = masked(input_ids)
    with FlopCounterMode(display=False) as counter:
        network(input_ids, cu_seqlens, labels=labels).cross_entropy.backward()
    products = (torch.ops.aten.mm, torch.ops.aten.addmm)
    counted = sum(counter.get_flop_counts()["Global"].get(product, 0) for product in products)
    assert shape.matmul_flops(len(input_ids), int((labels >= 0).sum())) == counted


@pytest.mark.parametrize("every", [1, 2, 3])
def test_attention_counts_the_pairs_of_tokens_that_see_each_other(every):
    shape = replace(Shape(**SMALL), global_attn_every_n_layers=every, local_attention=None if every == 1 else 16)
    lengths = (1, 5, 16, 17, 90)
    pairs = 0
    for layer in range(shape.num_hidden_layers):
        for length in lengths:
            away = (torch.arange(length)[:, None] - torch.arange(length)).abs()
            pairs += int((away <= (8 if layer % every else length)).sum())
    # two products, forward and twice as much back, and a multiplication and an addition at every hidden dimension
    assert shape.attention_flops(lengths) == 2 * 3 * 2 * shape.hidden_size * pairs


def test_an_abandoned_stretch_costs_what_it_trains():
    overrides = ["rollback.at={token: 600_000tok, to: 400_000tok, lr: 1e-4}"]
    plain, rolled_back = (load_recipe("yamls/main/nano.yaml", extra) for extra in ([], overrides))
    plan = compile_plan(rolled_back)
    before, after = cost(plain, compile_plan(plain)), cost(rolled_back, plan)
    tokens = sum(segment.updates * segment.tokens_per_update for segment in plan.abandoned)
    shape = plain.model.shape
    row = shape.matmul_flops(1024, 0.3 * 1024) + shape.attention_flops([1024])
    assert after.abandoned_flops == pytest.approx(tokens / 1024 * row)
    assert after.flops - before.flops == pytest.approx(after.abandoned_flops)


def test_hours_are_operations_over_the_rate_that_the_gpus_reach():
    assert Machine(8, "a100", 0.5).hours(8 * 312e12 * 3600) == pytest.approx(2)


NANO = load_recipe("yamls/main/nano.yaml")
PLAN = compile_plan(NANO)


def saved_tokens(recipe, plan=PLAN) -> list[int]:
    """Where a run of a recipe without a rollback would save, by Composer's own rule."""
    due = create_interval_scheduler(recipe.save_interval, include_end_of_training=False)
    now, saved = Timestamp(), []
    for segment in plan.segments:
        for _ in range(segment.updates):
            before, now = now, now.to_next_batch(samples=segment.rows, tokens=segment.tokens_per_update)
            state = SimpleNamespace(
                timestamp=now, previous_timestamp=before, get_elapsed_duration=lambda: Time.from_timestring("0.5dur")
            )
            if due(state, Event.BATCH_CHECKPOINT) or now.token.value in plan.stage_ends.values():
                saved.append(now.token.value)
    return saved


@settings(max_examples=25)
@given(st.one_of(st.integers(1, 300).map("{}ba".format), st.integers(1, 400_000).map("{}tok".format)))
def test_as_many_checkpoints_are_written_as_composer_finds_due(save_interval):
    recipe = replace(NANO, save_interval=save_interval)
    costs = cost(recipe, PLAN)
    assert costs.checkpoints_written == costs.checkpoints_kept == len(saved_tokens(recipe))


@pytest.mark.parametrize("save_interval", ["1sp", "3sp", "100sp"])
def test_intervals_in_rows_count_likewise(save_interval):
    recipe = replace(NANO, save_interval=save_interval)
    assert cost(recipe, PLAN).checkpoints_written == len(saved_tokens(recipe))


def test_of_checkpoints_by_the_clock_those_at_tokens_are_counted_and_no_more_kept_than_asked():
    plain = replace(NANO, save_interval="1h")
    assert cost(plain, PLAN).checkpoints_written == len(PLAN.stage_ends)
    assert (cost(plain, PLAN).checkpoints_kept, cost(plain, PLAN).save_seconds) == (None, 3600)
    overrides = ["save_interval=1h", "save_num_checkpoints_to_keep=4"]
    assert cost(load_recipe("yamls/main/nano.yaml", overrides), PLAN).checkpoints_kept == 4
    overrides.append("rollback.at={token: 700_000tok, to: 300_000tok, lr: 1e-4}")
    back = load_recipe("yamls/main/nano.yaml", overrides)
    assert cost(back, compile_plan(back)).checkpoints_kept == 2 * (4 + 1)  # in abandoned/ as well


def test_a_plan_says_how_many_checkpoints_the_hours_make():
    costs = cost(replace(NANO, save_interval="30m", save_num_checkpoints_to_keep=4), PLAN)
    assert checkpoints_line(costs).startswith("3 and one every 30 minutes of training, of ")
    assert checkpoints_line(costs).endswith(f"at most 4 kept, {size(4 * costs.checkpoint_bytes)}")
    assert "about 23 in all" in checkpoints_line(costs, hours=10)


def test_a_rollback_writes_anew_what_it_abandoned_and_keeps_what_it_names():
    overrides = ["rollback.at={token: 700_000tok, to: 300_000tok, lr: 1e-4}", "save_num_checkpoints_to_keep=2"]
    plain, recipe = (load_recipe("yamls/main/nano.yaml", extra) for extra in ([], overrides))
    plan, costs = compile_plan(recipe), cost(recipe, compile_plan(recipe))
    back, end = plan.abandoned[0].start_token, plan.abandoned[-1].end_token
    saved = sorted({*saved_tokens(plain), back})
    in_abandoned = [token for token in saved if back < token < end]
    assert costs.checkpoints_written == len(saved) + len(in_abandoned)
    # two of the abandoned stretch in abandoned/, the one gone back to, and the last two
    assert costs.checkpoints_kept == 2 + 1 + 2


def test_a_checkpoint_is_as_large_as_weights_and_optimizer_state():
    recipe = load_recipe("yamls/main/nano.yaml")
    network = ModernBert(recipe.model.shape, KNOBS)
    optimizer = StableAdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [tensor for values in optimizer.state.values() for tensor in values.values()]
    size = sum(tensor.nbytes for tensor in [*network.parameters(), *state])
    assert cost(recipe, compile_plan(recipe)).checkpoint_bytes == pytest.approx(size, rel=1e-4)


def test_an_absurd_number_of_checkpoints_is_refused_and_not_counted_out():
    recipe = load_recipe("yamls/main/nano.yaml", ["stages.pretrain.duration=1_000_000_000_000_000_000tok"])
    with pytest.raises(ConfigurationError, match="'save_interval': 50ba makes more than 1_000_000 checkpoints"):
        cost(recipe, compile_plan(recipe))
