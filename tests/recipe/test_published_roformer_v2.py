"""roformer_v2_*.yaml have the published numbers (ZhuiyiTechnology/roformer-v2, train_mlm.py and its README)."""

import pytest

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.recipe.rehearsal import rehearsal

POINTS = {0: 0, 4_000: 1, 40_000: 0.5, 160_000: 0.1, 320_000: 0.01}  # updates → factor of the peak
PARAMETERS = {"small": 15.23e6, "base": 94.15e6, "large": 314.28e6}


@pytest.fixture(params=PARAMETERS)
def size(request) -> str:
    return request.param


@pytest.fixture
def recipe(size):
    return load_recipe(f"yamls/main/roformer_v2_{size}.yaml")


def test_sizes_and_updates_are_the_published_ones(recipe, size):
    plan = compile_plan(recipe)
    assert recipe.model.shape.parameters == pytest.approx(PARAMETERS[size], rel=5e-4)
    assert plan.total_updates == 1_000_000
    (segment,) = plan.segments
    assert (segment.rows, segment.row_length) == (512, 512)


def test_the_learning_rate_turns_at_the_published_updates(recipe):
    plan = compile_plan(recipe)
    for update, factor in POINTS.items():
        assert plan.at(update * 512 * 512).lr == pytest.approx(1.76e-3 * factor)
    assert plan.at(plan.total_tokens - 1).lr == pytest.approx(1.76e-3 * 0.01)


def test_optimizer_and_masks_are_the_published_ones(recipe):
    optimizer, objective = recipe.optimizer, recipe.objective_of("pretrain")
    assert optimizer.name == "lamb"
    assert (tuple(optimizer.betas), optimizer.eps, optimizer.weight_decay) == ((0.9, 0.999), 1e-6, 0.01)
    assert (objective.mlm_probability, objective.mask_share, objective.random_share) == (0.15, 0.8, 0.1)
    assert objective.whole_words


def test_a_rehearsal_has_every_turn_of_the_learning_rate(recipe):
    small = rehearsal(recipe, compile_stages(recipe), 2)
    (segment,) = compile_plan(small).segments
    assert [factor for _, factor in segment.learning_rate.schedule] == list(POINTS.values())
