"""`rotary-foundry report`: one HTML file that needs nothing else, and the pictures as PNG.

Own SVG, not plotly: its script alone is 4.8 MB in every page (the Python package carries no smaller one), and what
makes this page has to be written beside it anyway (one zoom and one cursor for all charts, stages and abandoned
stretches behind the lines, legends that tell the values under a finger). Lines, bands and axes in SVG are 420 lines of
script; the whole page's script and style are 45 kB. Colours are CSS, so light and dark need no drawing anew. The PNGs
are matplotlib's, which needs no browser.

The page's content policy forbids it every address: it cannot load anything, nor send what it shows.
"""

import json
import math
from importlib.resources import files
from pathlib import Path

from rotary_foundry.reporting.charts import report
from rotary_foundry.reporting.pictures import draw
from rotary_foundry.reporting.records import Run
from rotary_foundry.reporting.reference import find_reference
from rotary_foundry.utils.errors import ConfigurationError

PAGE = "report.html"
PICTURES = "report"  # folder


def write_report(paths: list[Path], out: Path | None = None, reference: Path | None = None) -> Path:
    """Write the page, and the pictures into a folder beside it; where the page is.

    Args:
        paths: of the runs' folders.
        out: the folder for the page; by default a single run's own, else the current one.
        reference: a file of `write_reference`; by default the one that is known here for the runs' recipe, if any.

    Raises:
        ConfigurationError: there is no run in a folder, the page cannot be written, or the reference is another's.
        DataError: a file of a run is broken.
    """
    runs = [Run(path) for path in paths]
    content = report(runs, find_reference(runs, reference))
    out = out or (paths[0] if len(paths) == 1 else Path())
    try:
        (out / PICTURES).mkdir(parents=True, exist_ok=True)
        (out / PAGE).write_text(page(content), encoding="utf-8")
        draw(content, out / PICTURES)
    except OSError as error:
        raise ConfigurationError(f"{out / PAGE} cannot be written: {error}") from error
    return out / PAGE


def page(content: dict, watch_seconds: float | None = None) -> str:
    """The page, whole. If it watches, it asks the server that it came from for what is new."""
    folder = files(__package__) / "page"
    parts = {
        "STYLE": (folder / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": "\n".join((folder / name).read_text(encoding="utf-8") for name in ("chart.js", "page.js")),
        "CONNECT": "'none'" if watch_seconds is None else "'self'",
        "WATCH": "0" if watch_seconds is None else f"{watch_seconds:g}",
        "CONTENT": as_json(content).replace("<", "\\u003c"),  # a name that holds </script> ends no script
    }
    text = (folder / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"/*{name}*/", part)
    return text


def as_json(content: dict) -> str:
    """The content for the page's script: strict JSON, so null for what is no number."""
    return json.dumps(_strict(content), separators=(",", ":"), default=str, allow_nan=False)


def _strict(content: object) -> object:
    if isinstance(content, dict):
        return {str(key): _strict(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_strict(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
