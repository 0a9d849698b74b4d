"""A rehearsal has every transition of its recipe, in minutes instead of weeks."""

import pytest

from rotary_foundry import Recipe, compile_plan, load_recipe
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.recipe.rehearsal import rehearsal
from rotary_foundry.recipe.validation import problems
from rotary_foundry.utils.errors import ConfigurationError


def rehearsed(recipe: Recipe, world: int) -> Recipe:
    return rehearsal(recipe, compile_stages(recipe), world)


@pytest.fixture(params=["base", "large", "nano"])
def recipe(request):
    return load_recipe(f"yamls/main/{request.param}.yaml")


@pytest.mark.parametrize("world", [1, 2, 8])
def test_it_is_a_recipe_that_so_many_processes_can_run(recipe, world):
    small = rehearsed(recipe, world)
    assert not list(problems(small))
    for segment in compile_plan(small).segments:
        assert segment.rows % world == 0


def test_every_segment_is_there_with_all_that_a_plan_says_of_it_but_its_size(recipe):
    full, small = compile_plan(recipe), compile_plan(rehearsed(recipe, 2))

    def told(plan):
        return [
            (
                segment.stage,
                segment.row_length,
                segment.knobs_at(segment.start_token)["rope_theta"],
                segment.mixture,
                segment.learning_rate.peak,
                segment.learning_rate.decay_shape,
                segment.learning_rate.alpha_f,
                segment.weight_decay,
            )
            for segment in plan.segments
        ]

    assert told(small) == told(full)
    assert len(small.abandoned) == len(full.abandoned)
    assert small.total_tokens < 1_000_000


def test_the_rungs_of_the_ramp_keep_their_ratios(recipe):
    full, small = (compile_stages(each).segments for each in (recipe, rehearsed(recipe, 2)))
    rungs = [pair for pair in zip(full, small, strict=True) if pair[0].stage == "pretrain"]
    assert {big.rows * rungs[0][1].rows for big, _ in rungs} == {little.rows * rungs[0][0].rows for _, little in rungs}
    assert len({little.updates for _, little in rungs[:-1]}) == 1


def test_what_happens_inside_a_segment_happens_in_proportion():
    full, small = load_recipe("yamls/main/large.yaml"), rehearsed(load_recipe("yamls/main/large.yaml"), 2)
    plans = [compile_stages(recipe) for recipe in (full, small)]
    warmed_up = [int(recipe.stages["pretrain"].t_warmup.removesuffix("tok")) for recipe in (full, small)]
    segments = [plan.at(token).segment for plan, token in zip(plans, warmed_up, strict=True)]
    assert segments[0] == segments[1]
    inside = [
        (token - plan.segments[index].start_token) / (plan.segments[index].end_token - plan.segments[index].start_token)
        for plan, token, index in zip(plans, warmed_up, segments, strict=True)
    ]
    assert inside[0] == pytest.approx(inside[1], abs=1e-3)


def test_triggers_that_count_updates_are_kept_and_a_plateau_is_not():
    overrides = [
        "save_interval=2000ba",  # base's is by the clock, which no such rollback goes with
        "rollback.spike={z_score: 6, patience: 3, lr: 1e-5, to: 1_000_000tok}",
        "rollback.plateau={window: 9tok, min_delta: 1, lr: 1e-5}",
    ]
    small = rehearsed(load_recipe("yamls/main/base.yaml", overrides), 2).rollback
    assert (small.spike.patience, small.plateau) == (3, None)
    assert 0 <= int(small.spike.to.removesuffix("tok")) < 1_000_000


def test_the_model_is_nanos():
    nano, base = (load_recipe(f"yamls/main/{name}.yaml").model.shape for name in ("nano", "base"))
    small = rehearsed(load_recipe("yamls/main/base.yaml"), 2).model.shape
    assert small == base.rehearsal()
    assert {key: getattr(small, key) for key in nano.sizes} == {key: getattr(nano, key) for key in nano.sizes}


def test_times_in_tokens_that_are_no_whole_updates_stay_within_their_stage():
    recipe = load_recipe("yamls/main/base.yaml", ["stages.decay.t_decay=50_000_000_000tok"])
    decay = rehearsed(recipe, 2).stages["decay"]
    assert decay.t_decay == decay.duration


def test_a_rollback_into_the_first_update_is_rehearsed_behind_it():
    overrides = ["stages.pretrain.batch_size_ramp=null"]
    overrides += ["rollback.at={token: 500_000tok, to: 100_000tok, lr: 1e-4}"]
    (abandoned,) = compile_plan(rehearsed(load_recipe("yamls/main/nano.yaml", overrides), 2)).abandoned
    assert abandoned.start_token > 0


def test_a_ramp_of_a_thousand_sizes_is_too_long_to_rehearse():
    overrides = ["stages.pretrain.batch_size_ramp={initial: 2, increment: 2, duration: 1_000_000_000_000tok}"]
    with pytest.raises(ConfigurationError, match="a ramp with fewer sizes"):
        rehearsed(load_recipe("yamls/main/large.yaml", overrides), 2)


def test_a_knob_that_moves_over_a_duration_moves_over_the_same_share_of_its_segment():
    full = load_recipe("yamls/main/base.yaml", ["stages.extend.rope_theta={start: 1, end: 3, duration: 0.25dur}"])
    small = rehearsed(full, 2)
    for recipe in (full, small):
        (segment,) = [segment for segment in compile_plan(recipe).segments if segment.stage == "extend"]
        tokens = segment.end_token - segment.start_token
        schedule = segment.knobs["rope_theta"]
        assert schedule.end_token - segment.start_token == pytest.approx(tokens / 4, rel=1e-3)


SCHEDULE = ["stages.pretrain.t_warmup=0tok", "stages.pretrain.lr_schedule=[[0tok, 0], [0.1dur, 1], [0.9dur, 0.5]]"]


def test_the_points_of_a_learning_rates_schedule_keep_their_places_in_their_segments():
    full = load_recipe("yamls/main/nano.yaml", SCHEDULE)
    plans = compile_stages(full), compile_stages(rehearsed(full, 2))
    schedules = [plan.segments[0].learning_rate.schedule for plan in plans]
    assert [factor for _, factor in schedules[1]] == [0, 1, 0.5]
    for (token, _), (small_token, _) in zip(*schedules, strict=True):
        segments = [plan.segment_at(at) for plan, at in zip(plans, (token, small_token), strict=True)]
        assert len({plan.segments.index(each) for plan, each in zip(plans, segments, strict=True)}) == 1
        inside = [
            (at - segment.start_token) / (segment.end_token - segment.start_token)
            for at, segment in zip((token, small_token), segments, strict=True)
        ]
        assert inside[0] == pytest.approx(inside[1], abs=1e-3)


def test_points_that_meet_in_a_rehearsal_are_one_with_the_later_factor():
    schedule = "stages.pretrain.lr_schedule=[[0tok, 1], [1_000_000tok, 0.5], [1_000_001tok, 0.2], [1dur, 0.1]]"
    small = rehearsed(load_recipe("yamls/main/nano.yaml", [SCHEDULE[0], schedule]), 2)
    assert [factor for _, factor in small.stages["pretrain"].lr_schedule] == [1, 0.2, 0.1]
