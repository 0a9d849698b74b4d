"""A finding of the doctor: one printed line."""

from dataclasses import dataclass

GOOD, DOUBTFUL, BAD = "✓", "!", "✗"


@dataclass(frozen=True)
class Finding:
    """A finding about one subject. `remedy` is empty only if there is nothing to do."""

    mark: str  # GOOD; DOUBTFUL: may be intended; BAD: a run would fail or give wrong results
    subject: str
    said: str
    remedy: str = ""


def good(subject: str, said: str) -> Finding:
    return Finding(GOOD, subject, said)


def doubtful(subject: str, said: str, remedy: str) -> Finding:
    return Finding(DOUBTFUL, subject, said, remedy)


def bad(subject: str, said: str, remedy: str) -> Finding:
    return Finding(BAD, subject, said, remedy)
