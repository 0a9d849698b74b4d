"""The share of long documents as a key of a stage."""

import io

import pytest
from rich.console import Console

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.recipe.mixtures import long_share
from rotary_foundry.reporting.plan_table import print_plan
from rotary_foundry.utils.errors import ConfigurationError

RECIPE = "yamls/main/llama_nano_instruct.yaml"
SOURCES = "data.sources=[chat_below_1024,chat_from_1024,books_from_1024,code]"


def mixture(*overrides: str) -> dict[str, float] | None:
    return load_recipe(RECIPE, ["init_from=null", "data.local=nowhere", *overrides]).stages["tune"].mixture


def test_a_share_of_long_documents_is_a_mixture_over_bands_of_length():
    assert mixture() == {"questions_below_1024": 0.25, "questions_from_1024": 0.75}
    expected = {"chat_below_1024": 0.45, "chat_from_1024": 0.05, "books_from_1024": 0.05, "code": 0.45}
    assert mixture(SOURCES, "stages.tune.long_share=0.1") == pytest.approx(expected)
    weights = "stages.tune.mixture={chat_below_1024: 3, code: 1, books_from_1024: 7}"
    expected = {"chat_below_1024": 0.675, "code": 0.225, "books_from_1024": 0.1}
    assert mixture(SOURCES, weights, "stages.tune.long_share=0.1") == pytest.approx(expected)
    assert mixture(SOURCES, "stages.tune.long_share=null") is None
    assert long_share({"a_from_9": 1, "b": 3}) == 0.25 and long_share({"a_from_x": 1}) is None


def test_the_plan_says_it():
    recipe = load_recipe(RECIPE, ["init_from=null", "data.local=nowhere"])
    output = Console(file=io.StringIO(), width=160)
    print_plan(recipe, compile_plan(recipe), console=output)
    assert "questions_from_1024 0.75; 75.0% of the rows are of long documents" in output.file.getvalue()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["stages.tune.long_share=1"], r"'stages\.tune\.long_share': 1\.0 is not between 0 and 1"),
        (["data.sources=[a,b]"], r"'stages\.tune\.long_share': expected sources named \*_from_<tokens>.*found a, b"),
        (["data.sources=[a_from_8]"], r"'stages\.tune\.long_share': expected sources named"),
    ],
)
def test_a_share_that_no_source_can_give_is_refused(overrides, says):
    with pytest.raises(ConfigurationError, match=says):
        mixture(*overrides)
