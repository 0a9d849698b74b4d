"""base.yaml and large.yaml are ModernBERT's recipes: every number of arXiv 2412.13663, section 2.2 and its tables."""

from math import sqrt

import pytest

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.objectives.masked_lm import MaskedLM

STAGES = {"pretrain": 1_719_000_000_000, "extend": 250_000_000_000, "decay": 50_000_000_000}
LENGTHS = {"pretrain": 1024, "extend": 8192, "decay": 8192}
THETAS = {"pretrain": 10_000, "extend": 160_000, "decay": 160_000}


@pytest.fixture(params=["base", "large"])
def name(request) -> str:
    return request.param


@pytest.fixture
def recipe(name):
    return load_recipe(f"yamls/main/{name}.yaml")


@pytest.fixture
def plan(recipe):
    return compile_plan(recipe)


def test_stages_have_the_published_tokens_lengths_and_thetas(plan):
    for stage, tokens in STAGES.items():
        segments = [segment for segment in plan.segments if segment.stage == stage]
        trained = segments[-1].end_token - segments[0].start_token
        assert 0 <= tokens - trained < segments[-1].tokens_per_update
        assert {segment.row_length for segment in segments} == {LENGTHS[stage]}
        assert {segment.knobs_at(segment.start_token)["rope_theta"] for segment in segments} == {THETAS[stage]}


@pytest.mark.parametrize(
    ("name", "sizes", "updates"),
    [("base", range(768, 4608, 768), 4238), ("large", range(448, 4928, 448), 396)],
    indirect=["name"],
)
def test_every_ramp_size_gets_the_same_number_of_updates(plan, sizes, updates):
    ramp = plan.segments[: len(sizes)]
    assert [(segment.rows, segment.updates) for segment in ramp] == [(rows, updates) for rows in sizes]


@pytest.mark.parametrize(
    ("name", "rows", "microbatches"),
    [("base", [4608, 576, 576], [96, 12, 12]), ("large", [4928, 616, 624], [56, 7, 6])],
    indirect=["name"],
)
def test_batches_and_microbatches_on_eight_gpus(recipe, plan, rows, microbatches):
    assert [stage.global_train_batch_size for stage in recipe.stages.values()] == rows
    assert [stage.device_train_microbatch_size for stage in recipe.stages.values()] == microbatches
    for segment in plan.segments:
        on_each_of_8, uneven = divmod(segment.rows, 8)
        assert not uneven
        assert on_each_of_8 % recipe.stages[segment.stage].device_train_microbatch_size == 0


def test_an_update_has_the_same_tokens_on_both_sides_of_the_length_switch(plan):
    last = [segment for segment in plan.segments if segment.stage == "pretrain"][-1]
    first = next(segment for segment in plan.segments if segment.stage == "extend")
    assert last.tokens_per_update == first.tokens_per_update


def test_base_learning_rates():
    plan = compile_plan(load_recipe("yamls/main/base.yaml"))
    assert plan.at(0).lr == 0
    assert plan.at(1_500_000_000).lr == pytest.approx(4e-4)
    assert plan.at(3_000_000_000).lr == plan.at(1_700_000_000_000).lr == 8e-4
    assert plan.at(plan.stage_ends["pretrain"]).lr == plan.at(plan.stage_ends["extend"]).lr == 3e-4
    start, end = plan.stage_ends["extend"], plan.stage_ends["decay"]
    assert plan.at(end).lr == pytest.approx(3e-7)
    assert plan.at(start + (end - start) // 4).lr == pytest.approx(3e-7 + (3e-4 - 3e-7) * (1 - sqrt(0.25)), rel=1e-6)
    assert {segment.weight_decay for segment in plan.segments} == {1e-5}
    assert plan.abandoned == ()


def test_large_goes_back_once():
    plan = compile_plan(load_recipe("yamls/main/large.yaml"))
    assert plan.at(1_000_000_000).lr == pytest.approx(2.5e-4)
    assert (plan.at(899_000_000_000).lr, plan.at(899_000_000_000).weight_decay) == (5e-4, 1e-5)
    for token in (900_000_000_000, 1_718_000_000_000, 1_800_000_000_000):
        assert (plan.at(token).lr, plan.at(token).max_lr, plan.at(token).weight_decay) == (5e-5, 5e-5, 1e-6)
    assert plan.at(plan.total_tokens).lr == pytest.approx(5e-8)
    back, on = next(
        pair for pair in zip(plan.segments, plan.segments[1:], strict=False) if pair[1].weight_decay == 1e-6
    )
    assert 0 <= 900_000_000_000 - on.start_token < on.tokens_per_update
    assert (back.end_token, back.start_row + back.updates * back.rows) == (on.start_token, on.start_row)  # replayed
    (abandoned,) = plan.abandoned
    assert abandoned.start_token == on.start_token
    assert 0 <= abandoned.end_token - 1_200_000_000_000 < abandoned.tokens_per_update
    assert (abandoned.learning_rate.peak, abandoned.weight_decay) == (5e-4, 1e-5)


def test_shared_numbers(recipe):
    for stage in recipe.stages:
        assert recipe.objective_of(stage) == MaskedLM(0.3, eval_mlm_probability=0.15, mask_share=0.8, random_share=0.1)
    assert (recipe.optimizer.betas, recipe.optimizer.eps) == ((0.9, 0.98), 1e-6)
    assert (recipe.model.vocab_size, recipe.model.local_attention, recipe.knobs_of("decay")["attn_out_dropout"]) == (
        50_368,
        128,
        0.1,
    )


def test_large_is_grown_from_base():
    assert load_recipe("yamls/main/large.yaml").init_from == "runs/base"
