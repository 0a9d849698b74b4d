"""The results of a suite: one JSON file, from which tables, pictures and comparisons are made.

If a number is the ratio of two sums over documents (a loss, an accuracy), its headline keeps these sums by document. So
two models that were measured on the same documents, even on different days, can be compared document by document. The
interval of the difference is then much narrower than the intervals of the two numbers.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from xxhash import xxh3_128

from rotary_foundry.runs.record_files import write_whole
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import parse_json

FOLDER, FILE, PICTURE = "evaluations", "result.json", "picture.png"
FEW = 10  # with fewer documents, bootstrap intervals are clearly too narrow


@dataclass(frozen=True)
class Measure:
    """A number and the ends of its 95 % interval; the ends are None if its uncertainty is unknown."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """Format the measure for tables: 5.591 [5.402, 5.774]."""
        there = [number for number in (self.value, self.low, self.high) if number is not None and math.isfinite(number)]
        decimals = 3 if max(map(abs, there), default=0) >= 0.1 else 4
        value, *ends = (_number(number, decimals) for number in (self.value, self.low, self.high) if number is not None)
        return f"{value} [{', '.join(ends)}]" if ends else value


@dataclass(frozen=True)
class Row:
    """A line of a suite's table."""

    labels: dict[str, str | int]  # the group and its counts: source, documents, …
    measures: dict[str, Measure]


@dataclass(frozen=True)
class Headline:
    """One number of a suite, used to compare models."""

    name: str  # with its unit
    measure: Measure
    lower_is_better: bool
    units: dict[str, tuple[float, float]] = field(default_factory=dict)  # numerator and denominator by document
    within: tuple[float, float] | None = None  # bounds of a document's ratio, such as 0 and 1


@dataclass
class Result:
    """One suite's result for one model."""

    suite: str
    title: str  # of the table, such as "masked-LM at 15 % of the tokens"
    model: dict  # `name` (used in tables), `path`, and further facts
    config: dict  # the suite's settings, with its seed
    data: dict  # a description of the data measured on
    rows: list[Row]
    headlines: list[Headline]
    notes: list[str] = field(default_factory=list)  # printed below the table: what was cut or left out
    facts: dict = field(default_factory=dict)  # further findings, for the picture and for programs
    asked: str = ""  # `digest` of the questions; results with the same digest are compared document by document
    grid: bool = False  # a row is a task at a length, with shares by depth: drawn as heat maps
    environment: dict = field(default_factory=dict)  # commit, packages, device; filled in by `evaluate`
    seconds: float = 0.0

    def write(self, folder: Path) -> Path:
        """Write `result.json` into a folder, which is created if necessary."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        write_whole(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> "Result":
        """Read a result from its file.

        Raises:
            DataError: the file is missing or is not a result.
        """
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            content["rows"] = [Row(row["labels"], _measures(row["measures"])) for row in content["rows"]]
            content["headlines"] = [
                Headline(
                    one["name"],
                    Measure(**one["measure"]),
                    one["lower_is_better"],
                    {unit: tuple(sums) for unit, sums in one["units"].items()},
                    one.get("within") and tuple(one["within"]),
                )
                for one in content["headlines"]
            ]
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: cannot be read as a result of `rotary-foundry evaluate`: {error!r}") from None

    def table(self) -> Table:
        """Make the table to print."""
        table = Table(title=f"{self.model['name']}: {self.title}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading, value in self.rows[0].labels.items() if self.rows else ():
            table.add_column(heading, justify="left" if isinstance(value, str) else "right", no_wrap=True)
        for heading in dict.fromkeys(name for row in self.rows for name in row.measures):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*self._cells(row))
        return table

    def _cells(self, row: Row) -> Iterator[str]:
        for label in row.labels.values():
            yield f"{label:,}" if isinstance(label, int) else str(label)
        for name in dict.fromkeys(name for one in self.rows for name in one.measures):
            yield str(row.measures[name]) if name in row.measures else "–"

    def show(self, console: Console) -> None:
        """Print the table and its notes."""
        print_whole(console, self.table())
        fewest = min((len(headline.units) for headline in self.headlines if headline.units), default=FEW)
        few = (
            [f"{fewest} {'prompts' if self.grid else 'documents'} only: true intervals are wider than these"]
            if fewest < FEW
            else []
        )
        for note in [*self.notes, *few]:
            console.print(f"  {note}", markup=False, highlight=False, soft_wrap=True)


def digest(questions: Iterable[bytes]) -> str:
    """Return a digest of the questions that a model is asked."""
    found = xxh3_128()
    for question in questions:
        found.update(len(question).to_bytes(8) + question)
    return found.hexdigest()


def results_folder(model: Path, out: str | None = None, variant: str | None = None, beside: Path | None = None) -> Path:
    """Return the folder of a model's results: in `<run>/evaluations` if it belongs to a run, else in `evaluations`.

    Args:
        out: the folder for all results; None: as above.
        variant: as in `name_of`.
        beside: the model that it is compared with; if they share no run, the folder is in `evaluations`.
    """
    if out is not None:
        return Path(out) / name_of(model, variant)
    run = run_of(model)
    if run is None or (beside is not None and run != run_of(beside)):
        return Path(FOLDER) / name_of(model, variant)
    return run / FOLDER / _with(model.resolve().name, variant)


def run_of(model: Path) -> Path | None:
    """Return the folder of the run that a model is or belongs to."""
    model = model.resolve()
    return next((path for path in (model, model.parent, model.parent.parent) if RunFolder(path).recipe.is_file()), None)


def name_of(model: Path, variant: str | None = None) -> str:
    """Return a model's name in tables: its folder's name, with its run's name before it for checkpoints and exports.

    A `variant` names the settings that differ from the model's own.
    """
    model = model.resolve()
    run = next((path for path in (model.parent, model.parent.parent) if RunFolder(path).recipe.is_file()), None)
    return _with(model.name if run is None else f"{run.name}-{model.name}", variant)


def positions_variant(
    rope_theta: float | None = None, rope_scaling: str | None = None, rope_factor: float | None = None
) -> str | None:
    """Return the variant of a model with changed positions, such as yarn-4 or theta-10000; None: not changed."""
    scaling = [] if rope_scaling is None else [rope_scaling]
    factor = [] if rope_factor is None else [f"{rope_factor:g}"]
    theta = [] if rope_theta is None else [f"theta-{rope_theta:g}"]
    return "-".join([*scaling, *factor, *theta]) or None


def _with(name: str, variant: str | None) -> str:
    return name if variant is None else f"{name}-{variant}"


def print_whole(console: Console, table: Table) -> None:
    """Print a table in its full width; a narrower terminal wraps lines instead of cutting figures off."""
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)


def _measures(content: dict) -> dict[str, Measure]:
    return {name: Measure(**measure) for name, measure in content.items()}


def _number(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:,.{decimals}f}" if math.isfinite(value) else "–"  # + 0.0 turns -0.0 into 0.0
