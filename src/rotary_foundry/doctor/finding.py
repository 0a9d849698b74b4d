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
