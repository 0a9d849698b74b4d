"""One line of what the doctor says."""

from dataclasses import dataclass

GOOD, DOUBTFUL, BAD = "✓", "!", "✗"


@dataclass(frozen=True)
class Finding:
    """What was found of one subject. `remedy` is empty only where nothing is to be done."""

    mark: str  # GOOD; DOUBTFUL: it may be meant so; BAD: a run would fail, or must not be trusted
    subject: str
    said: str
    remedy: str = ""


def good(subject: str, said: str) -> Finding:
    return Finding(GOOD, subject, said)


def doubtful(subject: str, said: str, remedy: str) -> Finding:
    return Finding(DOUBTFUL, subject, said, remedy)


def bad(subject: str, said: str, remedy: str) -> Finding:
    return Finding(BAD, subject, said, remedy)


def size(count: float) -> str:
    """Bytes, as one reads them."""
    for unit, power in (("TB", 4), ("GB", 3), ("MB", 2), ("kB", 1)):
        if count >= 1000**power:
            return f"{count / 1000**power:.3g} {unit}"
    return f"{count:.0f} bytes"


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
