"""The command `compare`: results of `evaluate` in one table, and one picture for each suite with all models.

The table has a line for each headline of a suite and a column for each model. If two models were asked exactly the same
questions (token by token), a second line shows the difference from the first model, computed document by document.
The interval of this difference may exclude zero even if the intervals of both models overlap. If the questions differ,
a note says so.
"""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from rotary_foundry.evaluation import bootstrap
from rotary_foundry.evaluation.results import FILE, Headline, Result, print_whole
from rotary_foundry.evaluation.suite_pictures import draw
from rotary_foundry.evaluation.suites import MODULES
from rotary_foundry.utils.errors import ConfigurationError

MARKDOWN = "comparison.md"


def compare(paths: Sequence[Path], out: Path) -> None:
    """Print a table of the results in and below some folders, and write it with the pictures to `out`.

    Raises:
        ConfigurationError: the folders contain no result.
        DataError: a result cannot be read.
    """
    write_comparison(find_results(paths), out, Console(highlight=False))


def find_results(paths: Sequence[Path]) -> list[Result]:
    """Read the results in some files, or in and below some folders, in order.

    Raises:
        ConfigurationError: there is no result.
        DataError: a result cannot be read.
    """
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob(f"*/{FILE}")))]
    files = [file for file in files if file in paths or file.absolute().parent.name in MODULES]  # no fine-tuning's
    if not files:
        raise ConfigurationError(f"{', '.join(map(str, paths))}: no {FILE}; `rotary-foundry evaluate` writes them")
    return [Result.read(file) for file in files]


def write_comparison(results: Sequence[Result], out: Path, console: Console) -> None:
    """Print the table, and write it as Markdown and a picture for each suite.

    Raises:
        ConfigurationError: two models of one suite have the same name.
    """
    for result in results:
        same = [one.model["path"] for one in results if (one.suite, one.model["name"]) == _key(result)]
        if len(same) > 1:
            raise ConfigurationError(
                f"{result.suite}: {' and '.join(same)} are both called {result.model['name']}; give only one"
            )
    models = list(dict.fromkeys(result.model["name"] for result in results))
    lines = [line for suite in dict.fromkeys(result.suite for result in results) for line in _lines(suite, results)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("suite", ""):
        table.add_column(heading)
    for model in models:
        table.add_column(model, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    print_whole(console, table)
    for suite in dict.fromkeys(result.suite for result in results):
        first, *others = (result for result in results if result.suite == suite)
        for other in others:
            if any(headline.units for headline in other.headlines) and not _asked_the_same(other, first):
                console.print(
                    f"{suite}: {other.model['name']} and {first.model['name']} were asked different questions (another "
                    "tokenizer, length, corpus or setting), so no difference is shown",
                    markup=False,
                    soft_wrap=True,
                )
    out.mkdir(parents=True, exist_ok=True)
    rows = [["suite", "", *models], ["---", "---", *["---:"] * len(models)], *lines]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    for suite in dict.fromkeys(result.suite for result in results):
        words = draw([result for result in results if result.suite == suite], out / f"{suite}.png")
        text += f"\n![{words}]({suite}.png)\n"
    (out / MARKDOWN).write_text(text, encoding="utf-8")
    console.print(f"written to {out}", markup=False, soft_wrap=True)


def _lines(suite: str, results: Sequence[Result]) -> list[list[str]]:
    """Return, for each headline of a suite, a line of measures and a line of differences from the first model."""
    models = list(dict.fromkeys(result.model["name"] for result in results))
    of_suite = {result.model["name"]: result for result in results if result.suite == suite}
    names = dict.fromkeys(headline.name for result in of_suite.values() for headline in result.headlines)
    lines = []
    for name in names:
        found = {model: _headline(result, name) for model, result in of_suite.items()}
        lines.append([suite, name, *(str(found[m].measure) if found.get(m) else "–" for m in models)])
        first = next(model for model in models if found.get(model))
        differences = {
            model: difference
            for model, headline in found.items()
            if model != first and headline and (difference := _difference(headline, found[first], of_suite[first]))
            if _asked_the_same(of_suite[model], of_suite[first])
        }
        if differences:
            lines.append(["", f"… less {first}'s", *(differences.get(model, "") for model in models)])
    return lines


def _asked_the_same(ours: Result, theirs: Result) -> bool:
    """Return whether two results have the same questions; False for results of old versions, which have no digest."""
    return ours.asked == theirs.asked != ""


def _key(result: Result) -> tuple[str, str]:
    return result.suite, result.model["name"]


def _headline(result: Result, name: str) -> Headline | None:
    return next((headline for headline in result.headlines if headline.name == name), None)


def _difference(ours: Headline, theirs: Headline, result: Result) -> str | None:
    if not ours.units or not theirs.units:
        return None
    config = result.config
    measure = bootstrap.difference(ours.units, theirs.units, config["resamples"], config["seed"], ours.within)
    return None if measure is None else str(measure)
