"""A rollback amends a plan: as it was up to where it goes back to, otherwise from there on."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.recipe.plan import Rollback

NANO = load_recipe("yamls/main/nano.yaml")
PLAN = compile_plan(NANO)  # without a rollback
STARTS = [
    segment.start_token + update * segment.tokens_per_update
    for segment in PLAN.segments
    for update in range(segment.updates)
]


def rollback(token: int, to_token: int, **keys) -> Rollback:
    return Rollback("spike", "", token, to_token, **({"lr": None, "weight_decay": None, "data": "replay"} | keys))


@st.composite
def rollbacks(draw) -> Rollback:
    to, at = sorted(draw(st.lists(st.integers(0, len(STARTS) - 1), min_size=2, max_size=2, unique=True)))
    lr = draw(st.sampled_from([None, 1e-5]))
    weight_decay = draw(st.sampled_from([None, 1e-3]))
    data = draw(st.sampled_from(["replay", "advance"]))
    return rollback(STARTS[at], STARTS[to], lr=lr, weight_decay=weight_decay, data=data)


@settings(max_examples=60)
@given(st.lists(rollbacks(), max_size=3))
def test_any_rollbacks_leave_the_clock_and_the_shape_of_every_update_as_they_were(ledger):
    plan = PLAN.after(ledger)
    assert (plan.total_tokens, plan.total_updates, plan.stage_ends) == (
        PLAN.total_tokens,
        PLAN.total_updates,
        PLAN.stage_ends,
    )
    for before, after in pairwise(plan.segments):
        assert before.end_token == after.start_token
        assert before.start_update + before.updates == after.start_update
    for token in STARTS[::7]:
        was, now = PLAN.at(token), plan.at(token)
        assert (now.update, now.rows, now.row_length, now.knobs, now.stage) == (
            was.update,
            was.rows,
            was.row_length,
            was.knobs,
            was.stage,
        )
    first = min((entry.to_token for entry in ledger), default=PLAN.total_tokens)
    assert plan.between(0, first) == PLAN.between(0, first)


@settings(max_examples=60)
@given(rollbacks())
def test_replay_draws_the_same_rows_again_and_advance_those_after_them(entry):
    plan = PLAN.rolled_back(entry)
    skipped = dict.fromkeys(PLAN.stage_ends, 0)
    for segment in plan.abandoned:
        skipped[segment.stage] += segment.updates * segment.rows
    for token in STARTS[::5]:
        expected = PLAN.at(token).rows_drawn_in_stage
        if token >= entry.to_token and entry.data == "advance":
            expected += skipped[PLAN.at(token).stage]
        assert plan.at(token).rows_drawn_in_stage == expected
    assert sum(segment.updates for segment in plan.abandoned) == (
        PLAN.at(entry.token).update - PLAN.at(entry.to_token).update
    )


def test_a_new_learning_rate_is_the_peak_of_the_stages_gone_back_over_and_of_no_other():
    pretrain, extend, _ = PLAN.stage_ends.values()
    entry = rollback(extend, PLAN.boundary_before(pretrain - 1), lr=1e-4, weight_decay=1e-3)
    plan = PLAN.rolled_back(entry)
    assert plan.at(entry.to_token).lr == plan.at(entry.to_token).max_lr == plan.at(pretrain).lr == 1e-4
    assert plan.at(extend).lr == NANO.stages["decay"].lr
    assert plan.at(extend + 1).weight_decay == 1e-3
    assert plan.at(entry.to_token - 1).weight_decay == NANO.optimizer.weight_decay


def test_a_warm_up_gone_back_into_has_its_shape_and_the_new_peak():
    entry = rollback(STARTS[40], STARTS[10], lr=NANO.stages["pretrain"].lr / 2)
    assert PLAN.rolled_back(entry).at(STARTS[12]).lr * 2 == PLAN.at(STARTS[12]).lr


def test_a_set_rollback_is_in_the_recipes_plan_and_in_force_only_once_it_has_been_made():
    recipe = load_recipe(
        "yamls/main/nano.yaml", ["rollback.at={token: 500_000tok, to: 400_000tok, lr: 1e-4, weight_decay: 0.1}"]
    )
    planned = compile_plan(recipe)
    assert planned.at(450_000).lr == 1e-4
    assert planned.abandoned[0].learning_rate.peak == NANO.stages["pretrain"].lr
    assert compile_stages(recipe) == replace(PLAN)


@settings(max_examples=60)
@given(st.lists(rollbacks(), min_size=2, max_size=3))
def test_rows_that_an_advance_left_behind_are_never_drawn_again(ledger):
    ledger = [replace(entry, data="advance") for entry in ledger]
    plan = PLAN.after(ledger)
    gone_last = abandoned_last(ledger)
    for segment in plan.between(ledger[-1].to_token, plan.total_tokens):
        for gone in gone_last:
            if gone.stage == segment.stage:
                assert segment.start_row >= gone.start_row + gone.updates * gone.rows


def abandoned_last(ledger):
    """What the last rollback abandons."""
    return PLAN.after(ledger[:-1]).between(ledger[-1].to_token, ledger[-1].token)
