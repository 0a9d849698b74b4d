"""roformer_v2_*.yaml have the published numbers (ZhuiyiTechnology/roformer-v2: README, train_mlm.py, multi-task/)."""

import pytest
from omegaconf import OmegaConf

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.recipe.rehearsal import rehearsal

POINTS = {0: 0, 4_000: 1, 40_000: 0.5, 160_000: 0.1, 320_000: 0.01}  # updates → factor of the peak
PARAMETERS = {"small": 15.23e6, "base": 94.15e6, "large": 314.28e6}
UPDATES_WITH_TASKS = {"small": 750_000, "base": 750_000, "large": 500_000}


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


@pytest.mark.parametrize(("size", "updates"), UPDATES_WITH_TASKS.items())
def test_the_stage_of_tasks_has_the_published_updates_microbatches_noise_and_a_tenth_of_the_rate(size, updates):
    recipe = load_recipe(f"yamls/main/roformer_v2_multi_task_{size}.yaml")
    plan = compile_plan(recipe)
    (segment,) = plan.segments
    objective = recipe.objective_of("tasks")
    assert (plan.total_updates, segment.rows, segment.row_length) == (updates, 512, 512)
    assert objective.block_size == recipe.stages["tasks"].device_train_microbatch_size == 512 // 8
    assert (objective.input_noise, objective.mlm_probability, objective.whole_words) == (0.15, 0.15, True)
    for update, factor in POINTS.items():
        assert plan.at(update * 512 * 512).lr == pytest.approx(1.76e-4 * factor)
    before = load_recipe(f"yamls/main/roformer_v2_{size}.yaml")
    assert recipe.init_from == f"{before.runs_folder}/{before.run_name}"
    assert (recipe.model.shape, recipe.optimizer) == (before.model.shape, before.optimizer)
    assert plan.at(0).knobs["residual_scale"] == compile_plan(before).at(0).knobs["residual_scale"]


@pytest.mark.parametrize(("recipe", "tasks"), [("multi_task_base", "roformer_v2"), ("nano_multi_task", "nano")])
def test_a_recipe_draws_every_task_that_its_data_yaml_prepares(recipe, tasks):
    data = OmegaConf.load(f"yamls/tasks/{tasks}.yaml")
    recipe = load_recipe(f"yamls/main/roformer_v2_{recipe}.yaml")
    assert recipe.data.sources == list(data.tasks)
    assert recipe.data.local == data.out


def test_the_nano_stage_of_tasks_goes_on_from_the_nano_of_text():
    before, recipe = (load_recipe(f"yamls/main/roformer_v2_{name}.yaml") for name in ("nano", "nano_multi_task"))
    assert recipe.init_from == f"{before.runs_folder}/{before.run_name}"
    assert recipe.model.shape == before.model.shape
    assert compile_plan(recipe).at(0).knobs["residual_scale"] == before.stages["pretrain"].residual_scale["end"]
