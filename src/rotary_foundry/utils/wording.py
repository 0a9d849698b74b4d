"""Format numbers and errors for printing and drawing."""

import difflib
from collections.abc import Iterable

WIDTH = 100  # columns of a printed table; a narrower terminal wraps its lines, and no figure is cut off


def count(value: float) -> str:
    """Format a number of tokens or rows with its unit, in up to four digits: 1.5 M."""
    for suffix, power in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= power:
            return f"{value / power:.4g} {suffix}"
    return f"{value:g}"


def size(count: float) -> str:
    """Format a number of bytes in three digits: 4.75 GB."""
    for unit, power in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= power:
            return f"{count / power:.3g} {unit}"
    return f"{count:.0f} bytes"


def power(exponent: int) -> str:
    """Format a power of 2 as a length of text: 512, 1k, 8k."""
    for suffix, of in (("G", 30), ("M", 20), ("k", 10)):
        if exponent >= of:
            return f"{1 << exponent - of}{suffix}"
    return f"{1 << exponent}"


def number(value: float) -> str:
    """Format a learning rate or a similar number in three digits, as in a YAML: 8e-4, 0.05, 0."""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def knob(value: float) -> str:
    """Format a knob's value: 160,000, or 0.3."""
    return f"{value:,.0f}" if value >= 1000 else number(value)


def one_line(error: BaseException) -> str:
    """Return an error's message without line breaks; its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def not_opened(error: BaseException) -> str:
    """Return in one line why transformers could not open a directory; in our words if it asks for code to be run."""
    if "trust_remote_code" in str(error):
        return "it needs code of its own, which is never run here; choose one whose class transformers has"
    return one_line(error)


def nearest(name: object, known: Iterable[str]) -> str:
    """Return "did you mean …?" if a known name is near, else the known names."""
    if not (known := list(known)):
        return "none is known here"
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known here are {', '.join(known)}"
