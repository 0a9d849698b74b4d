"""The plan says what a recipe does at every token."""

import subprocess
import sys
from dataclasses import replace
from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.recipe.plan import Rollback
from rotary_foundry.recipe.schema import BatchSizeRamp

NANO = "yamls/main/nano.yaml"
RECIPE = load_recipe(NANO)


def plan_of(*overrides: str):
    return compile_plan(load_recipe(NANO, overrides))


def plan_of_one_stage(**keys):
    common = {"row_length": 1024, "rope_theta": 10_000, "device_train_microbatch_size": 1, "lr": 8e-4}
    stage = type(RECIPE.stages["pretrain"])  # with nano's knobs
    return compile_plan(replace(RECIPE, stages={"only": stage(**common | keys)}))


@pytest.mark.parametrize(
    ("first", "last", "ramp", "updates"),
    [(768, 4608, "50_000_000_000tok", 4238), (448, 4928, "10_000_000_000tok", 396)],
    ids=["base", "large"],
)
def test_every_ramp_size_gets_the_published_number_of_updates(first, last, ramp, updates):
    plan = plan_of_one_stage(
        duration="1_719_000_000_000tok",
        global_train_batch_size=last,
        batch_size_ramp=BatchSizeRamp(first, first, ramp),
    )
    *rungs, rest = plan.segments
    assert [segment.rows for segment in rungs] == list(range(first, last, first))
    assert {segment.updates for segment in rungs} == {updates}
    assert rest.rows == last
    assert 0 <= 1_719_000_000_000 - plan.total_tokens < last * 1024


def test_warm_up_constant_and_decay_follow_the_published_formula():
    tokens = 100 * 16 * 1024
    plan = plan_of_one_stage(
        duration=f"{tokens}tok", global_train_batch_size=16, t_warmup="0.1dur", t_decay="0.5dur", alpha_f=0.001
    )
    assert plan.at(0).lr == 0
    assert plan.at(tokens // 20).lr == pytest.approx(4e-4)
    assert plan.at(tokens // 10).lr == plan.at(tokens // 2).lr == 8e-4
    end = 0.001 * 8e-4
    assert plan.at(tokens * 3 // 4).lr == pytest.approx(end + (8e-4 - end) * (1 - sqrt(0.5)))
    assert plan.at(tokens).lr == pytest.approx(end)


def test_a_schedule_of_points_is_known_at_every_token_and_a_rollbacks_peak_scales_what_follows():
    update = 512 * 512
    plan = plan_of_one_stage(
        duration=f"{1_000_000 * update}tok",
        row_length=512,
        global_train_batch_size=512,
        lr=1.76e-3,
        lr_schedule=[["0tok", 0], [f"{4_000 * update}tok", 1], ["0.04dur", 0.5], [f"{160_000 * update}tok", 0.1]],
    )
    assert plan.at(0).lr == 0
    assert (plan.at(4_000 * update).lr, plan.at(4_000 * update).max_lr) == (1.76e-3, 1.76e-3)
    assert plan.at(40_000 * update).lr == 1.76e-3 * 0.5
    assert plan.at(100_000 * update).lr == pytest.approx(1.76e-3 * 0.3)
    assert plan.at(160_000 * update).lr == plan.at(plan.total_tokens).lr == pytest.approx(1.76e-4)
    back = plan.rolled_back(Rollback("spike", "", 90_000 * update, 40_000 * update, 1e-3, None, "replay"))
    assert back.at(39_999 * update).lr == plan.at(39_999 * update).lr
    assert back.at(40_000 * update).lr == 1e-3 * 0.5


def test_nano_is_the_whole_recipe_in_small():
    plan = plan_of()
    lengths = {segment.stage: segment.row_length for segment in plan.segments}
    thetas = {segment.stage: segment.knobs_at(segment.start_token)["rope_theta"] for segment in plan.segments}
    assert list(lengths.values()) == [1024, 8192, 8192]
    assert list(thetas.values()) == [10_000, 160_000, 160_000]
    *rungs, _ = [segment for segment in plan.segments if segment.stage == "pretrain"]
    assert len(rungs) >= 2
    assert len({segment.updates for segment in rungs}) == 1
    assert plan.segments[-1].mixture != plan.segments[-2].mixture
    assert 1_000_000 <= plan.total_tokens <= 2_000_000


def test_a_boundary_belongs_to_the_segment_that_starts_there_and_the_end_to_the_last():
    plan = plan_of()
    for index, segment in enumerate(plan.segments):
        assert plan.at(segment.start_token).segment == index
        assert plan.at(segment.end_token - 1).segment == index
    end = plan.at(plan.total_tokens)
    assert (end.segment, end.update) == (len(plan.segments) - 1, plan.total_updates)
    with pytest.raises(ValueError, match="outside the plan"):
        plan.at(plan.total_tokens + 1)


@settings(max_examples=50)
@given(
    initial=st.integers(1, 6),
    steps=st.integers(1, 5),
    updates=st.integers(1, 7),
    rest=st.integers(1, 50),
    spare=st.integers(0, 1023),
)
def test_updates_follow_each_other_without_gap_in_tokens_updates_and_rows(initial, steps, updates, rest, spare):
    sizes = [initial * (step + 1) for step in range(steps)]
    last = initial * (steps + 1)
    ramp = updates * sum(sizes) * 1024
    plan = plan_of_one_stage(
        duration=f"{ramp + rest * last * 1024 + spare}tok",
        global_train_batch_size=last,
        batch_size_ramp=BatchSizeRamp(initial, initial, f"{ramp}tok"),
    )
    token = update = rows = 0
    while token < plan.total_tokens:
        position = plan.at(token)
        assert (position.update, position.rows_drawn_in_stage) == (update, rows)
        token, update, rows = token + position.rows * 1024, update + 1, rows + position.rows
    assert update == plan.total_updates == updates * steps + rest


def test_a_plan_is_compiled_without_importing_torch():
    program = (
        "import sys; from rotary_foundry import compile_plan, load_recipe; "
        f"compile_plan(load_recipe('{NANO}')); "
        "print([name for name in ('torch', 'composer', 'streaming') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
