"""Read questions about long texts from the files in which data sets are published.

Each reader takes one path and yields `Example`s, in the file's order:

- narrativeqa: a clone of google-deepmind/narrativeqa in which `download_stories.sh` was run: `qaps.csv`,
  `documents.csv` and `tmp/<document_id>.content`. Questions of the set `valid` about whole stories. A story is cut to
  the text between its `story_start` and its `story_end`.
- qasper: `qasper-{train,dev,test}-v0.3.json` of AllenAI's release. The paper is its title, abstract and sections. An
  answer is written as in Qasper's own scorer: Unanswerable, the spans with commas, the free form, Yes or No.
- quality: `QuALITY.v1.0.1.htmlstripped.{train,dev}` of nyu-mll/quality, JSONL. The four options follow the question,
  and the right answer is the text of one of them, as in SCROLLS.
- qmsum: `data/ALL/jsonl/{train,val,test}.jsonl` of Yale-LILY/QMSum. General and specific queries about a meeting.
- zeroscrolls: `<task>/validation.jsonl` of tau/zero_scrolls. The test sets have no answers. Rows with the same `id`
  are one question with several right answers.
- longbench: `data/<task>.jsonl` of THUDM/LongBench, for any of its 21 tasks.
- examples: the user's own JSONL, either with `context` (optional), `question` and `answers`, or with `messages`: one of
  a user, which is the question, and one of an assistant. Other keys are ignored.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import parse_json

TEXT = "a text"
LONGEST_FIELD = 2**30  # characters of a CSV file's field; Python's default is shorter than a story
HEADER = re.compile(r"\s*(Question|Query|Question and Possible Answers):\s*")  # of a query of ZeroSCROLLS
SUMMARY = "Summarize the text above."  # the question for data that ask for a summary and have no question


@dataclass(frozen=True)
class Example:
    """A question about a text, and its right answers."""

    name: str  # unique in its file
    document: str  # a name; examples of one document are never shots for each other
    context: str  # may be empty
    question: str
    answers: tuple[str, ...]


class Place(NamedTuple):
    """A mapping in a file and where it is, for errors."""

    where: str
    content: Mapping[str, Any]

    def get(self, key: str, kind: type, expected: str) -> Any:
        """Return the value of a key.

        Raises:
            DataError: the key is missing or its value is of another type; names file, line and key.
        """
        if key not in self.content:
            raise DataError(f"{self.where}: {key}: missing; expected {expected}")
        value = self.content[key]
        if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
            raise DataError(f"{self.where}: {key}: expected {expected}, found {value!r:.60}")
        return value

    def text(self, key: str) -> str:
        """Return the text of a key."""
        return self.get(key, str, TEXT)

    def number(self, key: str) -> int:
        """Return the integer of a key."""
        return self.get(key, int, "an integer")

    def texts(self, key: str) -> list[str]:
        """Return the list of texts of a key."""
        values = self.get(key, list, "a list of texts")
        if not all(isinstance(value, str) for value in values):
            raise DataError(f"{self.where}: {key}: expected a list of texts, found {values!r:.60}")
        return values

    def places(self, key: str) -> Iterator["Place"]:
        """Yield the mappings in the list of a key."""
        for index, value in enumerate(self.get(key, list, "a list of mappings")):
            if not isinstance(value, Mapping):
                raise DataError(f"{self.where}: {key}[{index}]: expected a mapping, found {value!r:.60}")
            yield Place(f"{self.where}: {key}[{index}]", value)

    def example(self, name: str, document: str, context: str, question: str, answers: Iterable[str]) -> Example:
        """Make an example from texts of this mapping.

        Raises:
            DataError: the question or the answers are missing.
        """
        answers = tuple(dict.fromkeys(stripped for answer in answers if (stripped := answer.strip())))
        if not answers or not question.strip():
            what = "an answer" if question.strip() else "a question"
            raise DataError(f"{self.where}: expected {what}, found none; remove the example")
        return Example(name, document, context.strip(), question.strip(), answers)


def read_examples(dataset: str, path: Path) -> list[Example]:
    """Read every example of a file.

    Args:
        dataset: a key of READERS.
        path: a file, or a folder for narrativeqa.

    Raises:
        DataError: the file is missing, damaged or of another form; names file, line and key.
    """
    try:
        examples = list(READERS[dataset](path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not examples:
        raise DataError(f"{path}: no example of {dataset}; expected at least one")
    names: set[str] = set()
    for example in examples:
        if example.name in names:
            raise DataError(f"{path}: two examples have the name '{example.name}'; give each its own")
        names.add(example.name)
    return examples


def _lines(path: Path) -> Iterator[Place]:
    """Yield the mappings of a JSONL file; empty lines are skipped."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parsed(line, f"{path}: line {number}")


def _parsed(text: str, where: str) -> Place:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise DataError(f"{where}: expected JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{where}: expected a mapping, found {content!r:.60}")
    return Place(where, content)


def _rows(path: Path) -> Iterator[Place]:
    """Yield the rows of a CSV file with a header."""
    with open(path, encoding="utf-8", newline="") as file:
        csv.field_size_limit(LONGEST_FIELD)
        reader = csv.DictReader(file)
        for row in reader:
            yield Place(
                f"{path}: line {reader.line_num}", {key: value for key, value in row.items() if value is not None}
            )


def read_narrativeqa(path: Path) -> Iterator[Example]:
    """Read the validation questions of a clone of NarrativeQA."""
    bounds = {}
    for row in _rows(path / "documents.csv"):
        if row.text("set") == "valid":
            bounds[row.text("document_id")] = row.text("story_start"), row.text("story_end")
    stories: dict[str, str] = {}
    for number, row in enumerate(_rows(path / "qaps.csv"), 1):
        if row.text("set") != "valid":
            continue
        document = row.text("document_id")
        if document not in bounds:
            raise DataError(f"{row.where}: document_id: {document} is not in documents.csv")
        if document not in stories:
            file = path / "tmp" / f"{document}.content"
            if not file.is_file():
                raise DataError(f"{file}: no such file; run download_stories.sh, which fetches the stories")
            stories = {document: _between(file.read_bytes().decode("utf-8", "replace"), *bounds[document])}
        answers = row.text("answer1"), row.text("answer2")
        yield row.example(str(number), document, stories[document], row.text("question"), answers)


def _between(story: str, start: str, end: str) -> str:
    """Cut a story to the text from passage `start` to passage `end`, both included, if it has these passages."""
    first, last = story.find(start), story.rfind(end)
    last = -1 if last < 0 else last + len(end)
    return story[max(first, 0) : last if last > first else len(story)].strip()


def read_qasper(path: Path) -> Iterator[Example]:
    """Read a JSON file of Qasper."""
    papers = _parsed(path.read_text(encoding="utf-8"), str(path))
    for document in papers.content:
        paper = Place(f"{path}: {document}", papers.get(document, dict, "a paper"))
        parts = [paper.text("title"), paper.text("abstract")]
        for section in paper.places("full_text"):
            unnamed = section.content.get("section_name") in (None, "")  # null in some papers
            heading = [] if unnamed else [section.text("section_name")]
            parts.append("\n".join([*heading, *section.texts("paragraphs")]))
        context = "\n\n".join(parts)
        for asked in paper.places("qas"):
            answers = [
                _answer_of_qasper(Place(f"{given.where}: answer", given.get("answer", dict, "a mapping")))
                for given in asked.places("answers")
            ]
            yield asked.example(asked.text("question_id"), document, context, asked.text("question"), answers)


def _answer_of_qasper(given: Place) -> str:
    if given.get("unanswerable", bool, "true or false"):
        return "Unanswerable"
    if spans := given.texts("extractive_spans"):
        return ", ".join(spans)
    if text := given.text("free_form_answer"):
        return text
    if given.content.get("yes_no") is None:
        raise DataError(f"{given.where}: expected a span, a free form, or yes_no, found none")
    return "Yes" if given.get("yes_no", bool, "true or false") else "No"


def read_quality(path: Path) -> Iterator[Example]:
    """Read a JSONL file of QuALITY."""
    for line in _lines(path):
        document, article = line.text("article_id"), line.text("article")
        for asked in line.places("questions"):
            options = [option.strip() for option in asked.texts("options")]
            right = asked.get("gold_label", int, "the number of the right option; the test set has none")
            if not 1 <= right <= len(options):
                raise DataError(f"{asked.where}: gold_label: expected from 1 to {len(options)}, found {right}")
            listed = "\n".join(f"({letter}) {option}" for letter, option in zip("ABCDEFGH", options, strict=False))
            question = f"{asked.text('question').strip()}\n{listed}"
            yield asked.example(asked.text("question_unique_id"), document, article, question, [options[right - 1]])


def read_qmsum(path: Path) -> Iterator[Example]:
    """Read a JSONL file of QMSum."""
    for number, meeting in enumerate(_lines(path), 1):
        turns = meeting.places("meeting_transcripts")
        transcript = "\n".join(f"{turn.text('speaker')}: {turn.text('content')}" for turn in turns).strip()
        for kind in ("general_query_list", "specific_query_list"):
            for index, asked in enumerate(meeting.places(kind)):
                name = f"{number}-{kind.split('_')[0]}-{index}"
                yield asked.example(name, str(number), transcript, asked.text("query"), [asked.text("answer")])


def read_zeroscrolls(path: Path) -> Iterator[Example]:
    """Read a JSONL file of ZeroSCROLLS. Without a query, the instruction before the document is the question."""
    found: dict[str, Example] = {}
    for line in _lines(path):
        text, name = line.text("input"), line.text("id")
        bounds = [line.number(f"{part}_{end}_index") for part in ("document", "query") for end in ("start", "end")]
        if not all(0 <= bound <= len(text) for bound in bounds):
            raise DataError(
                f"{line.where}: expected indices of document and query from 0 to {len(text):,}, found {bounds}"
            )
        context, query = text[bounds[0] : bounds[1]], HEADER.sub("", text[bounds[2] : bounds[3]], count=1)
        answer = line.get("output", str, "an answer; the test sets have none, take validation.jsonl")
        example = line.example(name, name, context, query if query.strip() else text[: bounds[0]], [answer])
        if name in found:
            answers = dict.fromkeys([*found[name].answers, *example.answers])
            example = replace(found[name], answers=tuple(answers))
        found[name] = example
    yield from found.values()


def read_longbench(path: Path) -> Iterator[Example]:
    """Read a JSONL file of LongBench. Tasks without an input ask for a summary."""
    for line in _lines(path):
        name, context = line.text("_id"), line.text("context")
        yield line.example(name, name, context, line.text("input").strip() or SUMMARY, line.texts("answers"))


def read_own(path: Path) -> Iterator[Example]:
    """Read the user's own examples or conversations, in JSONL."""
    for number, line in enumerate(_lines(path), 1):
        if "messages" in line.content:
            turns = list(line.places("messages"))
            roles = [turn.text("role") for turn in turns]
            if roles != ["user", "assistant"]:
                raise DataError(
                    f"{line.where}: messages: expected one of a user and one of an assistant, found {', '.join(roles)}"
                )
            context, (question, answer) = "", (turn.text("content") for turn in turns)
            answers = [answer]
        else:
            context = line.text("context") if "context" in line.content else ""
            question, answers = line.text("question"), line.texts("answers")
        yield line.example(str(number), context or str(number), context, question, answers)


READERS: dict[str, Callable[[Path], Iterator[Example]]] = {
    "narrativeqa": read_narrativeqa,
    "qasper": read_qasper,
    "quality": read_quality,
    "qmsum": read_qmsum,
    "zeroscrolls": read_zeroscrolls,
    "longbench": read_longbench,
    "examples": read_own,
}
