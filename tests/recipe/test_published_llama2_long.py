"""llama2_long_*.yaml have the numbers of arXiv 2309.16039, and its count of operations comes out."""

import pytest

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.recipe.cost import megatron_flops

UPDATE = 2**22  # tokens
PARAMETERS = {"7b": 6_738_415_616, "13b": 13_015_864_320, "34b": 33_743_970_304, "70b": 68_976_648_192}
CURRICULUM = {0: "3.783e+22", 20: "3.405e+22", 40: "3.026e+22", 80: "2.270e+22"}  # table 11


@pytest.mark.parametrize("size", PARAMETERS)
def test_rows_updates_theta_and_rates_are_the_published_ones(size):
    recipe = load_recipe(f"yamls/main/llama2_long_{size}.yaml")
    plan = compile_plan(recipe)
    (segment,) = plan.segments
    large = size in ("34b", "70b")
    assert recipe.model.shape.parameters == PARAMETERS[size]
    assert (segment.rows, segment.row_length) == ((256, 16_384) if large else (128, 32_768))
    assert (plan.total_updates, segment.tokens_per_update) == (100_000, UPDATE)
    peak = 1e-5 if large else 2e-5
    assert [plan.at(update * UPDATE).lr for update in (0, 1000, 2000)] == pytest.approx([0, peak / 2, peak])
    assert plan.at(51_000 * UPDATE).lr == pytest.approx(0.55 * peak)  # half of the cosine
    assert plan.at(plan.total_tokens - 1).lr == pytest.approx(0.1 * peak)
    assert plan.at(0).knobs["rope_theta"] == 500_000
    optimizer = recipe.optimizer
    assert (tuple(optimizer.betas), optimizer.weight_decay, optimizer.max_grad_norm) == ((0.9, 0.95), 0.1, 1.0)


@pytest.mark.parametrize("share", CURRICULUM)
def test_the_curriculum_counts_the_published_operations(share):
    recipe = load_recipe(f"yamls/main/llama2_long_curriculum_{share}.yaml")
    plan = compile_plan(recipe)
    assert {segment.tokens_per_update for segment in plan.segments} == {UPDATE}
    assert plan.total_updates == 100_000
    assert sum(segment.updates for segment in plan.segments if segment.row_length == 4096) == 1000 * share
    assert f"{megatron_flops(recipe, plan):.3e}" == CURRICULUM[share]
