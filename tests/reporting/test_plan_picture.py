"""`plan --picture`: the plan over tokens as one picture, with its description."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rotary_foundry.recipe.compilation import with_set_rollback
from rotary_foundry.reporting.plan_picture import draw_plan
from rotary_foundry.runs.recipes import load_recipe_and_plan

REPOSITORY = Path(__file__).parents[2]


def drawn(recipe: str, path: Path) -> str:
    loaded, plan = load_recipe_and_plan(REPOSITORY / f"yamls/main/{recipe}.yaml", ())
    return draw_plan(with_set_rollback(loaded, plan), path)


def description(picture: Path) -> str | None:
    return ElementTree.parse(picture).findtext(".//{http://purl.org/dc/elements/1.1/}description")


def test_the_readmes_picture_is_of_the_recipe_as_it_is(tmp_path):
    said = drawn("base", tmp_path / "base.svg")
    assert description(REPOSITORY / "docs/base_plan.svg") == said
    assert (
        "768 to 4,608 rows per update, rows of 1,024 tokens, a learning rate of up to 8e-4, rope_theta 10,000" in said
    )


def test_a_picture_has_the_values_of_the_plan_and_what_a_rollback_abandons(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *given, **named: figures.append(figure) or save(figure, *given, **named)
    )
    said = drawn("large", tmp_path / "large.png")
    assert said.endswith("; a rollback abandons 300 B tokens.")
    assert Image.open(tmp_path / "large.png").info["Description"] == said
    (figure,) = figures
    _, plan = load_recipe_and_plan(REPOSITORY / "yamls/main/large.yaml", ())
    rows, length, rate, theta = ({line.get_linestyle(): line.get_data() for line in axes.lines} for axes in figure.axes)
    tokens, rates = rate[":"]
    assert tokens[[0, -1]] / 1e9 == pytest.approx([900, 1200], abs=0.01) and set(rates) == {5e-4}
    for panel, last in ((rows, 624), (length, 8192), (rate, 5e-8), (theta, 160_000)):
        tokens, values = panel["-"]
        assert np.all(np.diff(tokens) >= 0) and tokens[-1] == plan.total_tokens
        assert values[-1] == pytest.approx(last)


def test_the_same_plan_makes_the_same_file(tmp_path):
    for name in ("a.svg", "b.svg"):
        drawn("nano", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
