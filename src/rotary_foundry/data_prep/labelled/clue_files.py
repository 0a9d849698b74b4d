"""Read the tasks of CLUE (arXiv 2004.05986, cluebenchmarks.com) in the forms in which they are published.

Most files have one JSON object per line. A file of a reading task is one nested JSON document, which is first turned
into rows like those of the hub's data set `clue`, so that files and hub need only one function per task. A test file
has the same form without labels.

Every task is converted as in the published fine-tuning code of roformer-v2 (clue/):

- WSC: both spans are put in brackets, and the text is classified.
- CSL: the keywords, joined by ；, and the abstract are a pair.
- C3: passages are joined by ||; the choices are filled up to four.
- CHID: each blank is an example. Its candidates are put between the text before and the text after it. Other blanks
  become underscores.
- A pair is left out if the annotators did not agree on its class ("-").
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rotary_foundry.data_prep.labelled.labelled_example import Choices, Example, Span, json_lines, whole_json
from rotary_foundry.utils.errors import DataError

BLANK = re.compile(r"#idiom\d{6}#")
OTHER_BLANK = "_____"
C3_CHOICES = 4
NO_CHOICE = "无效答案"  # fills up the choices of C3
NO_MAJORITY = "-"
ANSWER = ""  # the kind of an answer's span
FILES = {"train": "train.json", "validation": "dev.json", "test": "test.json"}  # by the hub's split
HUB_SPLITS = {file: split for split, file in FILES.items()} | {"train.50k.json": "train"}


def find_folder(path: Path, name: str) -> Path:
    """Return the folder of a task: `path/<name>`, or `path/<name>_public` as CLUE's archives unpack."""
    return next((folder for of in (name, f"{name}_public") if (folder := path / of).is_dir()), path / name)


def find_files(file: Path) -> list[Path]:
    """Return the file or, as C3 is distributed, its parts, `m-train.json` and `d-train.json`."""
    return [file] if file.is_file() else sorted(file.parent.glob(f"?-{file.name}")) or [file]


def read_file(form: str, file: Path) -> Iterator[Example]:
    """Yield the examples of a file in the form of a CLUE task.

    Raises:
        DataError: a row does not have the task's form, or a span is outside its text; the message names file and row.
        OSError, UnicodeDecodeError: the file cannot be read.
    """
    yield from read_rows(form, NESTED.get(form, json_lines)(file))


def read_rows(form: str, rows: Iterable[tuple[str, dict]]) -> Iterator[Example]:
    """Yield the examples of rows, each with its location; rows have the form of the hub's data set `clue`.

    Raises:
        DataError: as `read_file`.
    """
    for where, row in rows:
        yield from FORMS[form](row, where)


def _field(row: dict, key: str, kind: type, where: str) -> Any:
    value = row.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = repr(value) if key in row else f"only {', '.join(map(str, row))}"
        raise DataError(f"{where}: expected the key '{key}' with {NAMES[kind]}, found {found}")
    return value


NAMES = {str: "a text", int: "an integer", list: "a list", dict: "an object"}


def _texts(row: dict, key: str, where: str) -> tuple[str, ...]:
    texts = _field(row, key, list, where)
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: expected the key '{key}' with a list of texts, found {texts!r}")
    return tuple(texts)


def _object(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object, found {value!r}")
    return value


def _id(row: dict) -> Any:
    return row.get("id", row.get("idx"))


def _label(row: dict) -> Any:
    return None if row.get("label") == -1 else row.get("label")  # -1: on the hub


def _classified(*columns: str) -> Callable[[dict, str], Iterator[Example]]:
    def examples(row: dict, where: str) -> Iterator[Example]:
        texts = tuple(_field(row, column, str, where) for column in columns)
        if row.get("label") != NO_MAJORITY:
            yield Example(where, texts if texts[1:] else texts[0], _label(row), _id(row))

    return examples


def _csl(row: dict, where: str) -> Iterator[Example]:
    keywords = "；".join(_texts(row, "keyword", where))
    yield Example(where, (keywords, _field(row, "abst", str, where)), _label(row), _id(row))


def _wsc(row: dict, where: str) -> Iterator[Example]:
    text, target = _field(row, "text", str, where), _field(row, "target", dict, where)
    spans = []
    for name in ("span1", "span2"):
        start, words = _field(target, f"{name}_index", int, where), _field(target, f"{name}_text", str, where)
        spans.append(_check(text, Span(name, start, start + len(words)), words, where))
    first, second = sorted(spans, key=lambda span: span.start)
    if first.end > second.start:
        raise DataError(f"{where}: span1 and span2 overlap; correct their index")
    for span in (second, first):
        text = f"{text[: span.start]}[[{text[span.start : span.end]}]]{text[span.end :]}"
    yield Example(where, text, _label(row), _id(row))


def _check(text: str, span: Span, words: str, where: str) -> Span:
    """Return a span after checking it.

    Raises:
        DataError: the span is outside the text, or the text has other words there.
    """
    found = text[span.start : span.end] if 0 <= span.start < span.end <= len(text) else None
    if found != words or not words:
        there = "lies outside" if found is None else f"is {found!r} in"
        raise DataError(
            f"{where}: the {span.kind} {words!r} at {span.start} to {span.end} {there} the text of {len(text)} "
            "characters; correct its index or its text"
        )
    return span


def _cmrc2018(row: dict, where: str) -> Iterator[Example]:
    passage, answers = _field(row, "context", str, where), _field(row, "answers", dict, where)
    there = f"{where}: answers"
    texts, starts = _texts(answers, "text", there), _field(answers, "answer_start", list, there)
    if len(starts) != len(texts) or not all(type(start) is int for start in starts):
        raise DataError(f"{there}: expected {len(texts)} integers as 'answer_start', one per 'text', found {starts!r}")
    # a test file has an empty answer at -1
    spans = [place_of_answer(passage, text, start, where) for text, start in zip(texts, starts, strict=True) if text]
    yield Example(where, (_field(row, "question", str, where), passage), spans or None, _id(row))


def place_of_answer(passage: str, answer: str, start: int, where: str) -> Span:
    """Return the occurrence of an answer that is nearest to its stated start; some starts in CMRC2018 are wrong.

    Raises:
        DataError: the passage does not contain the answer.
    """
    places = [match.start() for match in re.finditer(f"(?={re.escape(answer)})", passage)]
    if not places:
        raise DataError(f"{where}: the answer {answer!r} is not in the passage; correct it, or leave the question out")
    nearest = min(places, key=lambda place: abs(place - start))
    return Span(ANSWER, nearest, nearest + len(answer))


def _cmrc2018_rows(file: Path) -> Iterator[tuple[str, dict]]:
    for document in _field(whole_json(file, dict), "data", list, str(file)):
        for paragraph in _field(_object(document, f"{file}: data"), "paragraphs", list, str(file)):
            for question in _field(_object(paragraph, f"{file}: paragraphs"), "qas", list, str(file)):
                where = f"{file}: question {_object(question, f'{file}: qas').get('id')}"
                answers = _field(question, "answers", list, where) if "answers" in question else []
                answers = [_object(answer, f"{where}: answers") for answer in answers]
                columns = {
                    "text": [_field(answer, "text", str, where) for answer in answers],
                    "answer_start": [_field(answer, "answer_start", int, where) for answer in answers],
                }
                yield where, {**question, "context": paragraph.get("context"), "answers": columns}


def _c3(row: dict, where: str) -> Iterator[Example]:
    choices = _texts(row, "choice", where)
    if not 2 <= len(choices) <= C3_CHOICES:
        raise DataError(f"{where}: expected 2 to {C3_CHOICES} choices, found {len(choices)}")
    answer = row.get("answer") or None
    if answer is not None and answer not in choices:
        raise DataError(f"{where}: the answer {answer!r} is not among the choices ({', '.join(choices)})")
    before = "||".join(_texts(row, "context", where)), _field(row, "question", str, where)
    filled = (*choices, *[NO_CHOICE] * (C3_CHOICES - len(choices)))
    yield Example(
        where, Choices(before, filled), None if answer is None else choices.index(answer), _id(row), group=where
    )


def _c3_rows(file: Path) -> Iterator[tuple[str, dict]]:
    for number, entry in enumerate(whole_json(file, list)):
        where = f"{file}: entry {number}"
        if not isinstance(entry, list) or len(entry) < 2 or not isinstance(entry[1], list):
            raise DataError(f"{where}: expected a list of passages, of questions, and an id")
        for index, question in enumerate(entry[1]):
            place = f"{where}: question {index}"
            yield place, {**_object(question, place), "context": entry[0]}


def _chid(row: dict, where: str) -> Iterator[Example]:
    """Yield an example for each blank; `answers` holds the right candidates in the order of the blanks."""
    candidates, passages = _texts(row, "candidates", where), _texts(row, "content", where)
    blanks = [(passage, blank) for passage in passages for blank in BLANK.finditer(passage)]
    if len(blanks) > len(candidates):
        raise DataError(f"{where}: {len(blanks)} blanks, but only {len(candidates)} candidates")
    answers = _field(row, "answers", dict, where) if row.get("answers") is not None else {}
    right = _field(answers, "candidate_id", list, f"{where}: answers") if answers else []
    if right and len(right) != len(blanks):
        raise DataError(f"{where}: answers: expected {len(blanks)} 'candidate_id', one per blank, found {len(right)}")
    for (passage, blank), index in zip(blanks, right or [None] * len(blanks), strict=True):
        name = blank.group()
        if right and (type(index) is not int or index not in range(len(candidates))):
            raise DataError(f"{where}: {name}: expected an answer from 0 to {len(candidates) - 1}, found {index!r}")
        before, after = (BLANK.sub(OTHER_BLANK, part) for part in (passage[: blank.start()], passage[blank.end() :]))
        yield Example(where, Choices((before,), candidates, (after,)), index, name, group=where)


def _chid_rows(file: Path) -> Iterator[tuple[str, dict]]:
    """Yield the rows of a file; their answers are in another, `train_answer.json` beside `train.json`."""
    beside = file.with_name(f"{file.stem}_answer.json")
    right = whole_json(beside, dict) if beside.is_file() else None
    for where, row in json_lines(file):
        if right is not None:
            names = [name for passage in _texts(row, "content", where) for name in BLANK.findall(passage)]
            row = {**row, "answers": {"candidate_id": [right.get(name) for name in names]}}
        yield where, row


def _cluener(row: dict, where: str) -> Iterator[Example]:
    """Yield an example. CLUENER's spans end with their last character; ours end after it."""
    text, spans = _field(row, "text", str, where), None
    if "label" in row:
        spans = []
        label = _field(row, "label", dict, where)
        for kind in label:
            for words, places in _field(label, kind, dict, where).items():
                if not isinstance(places, list) or not all(map(_is_pair, places)):
                    raise DataError(f"{where}: {words}: expected a list of [first, last] character, found {places!r}")
                spans += [_check(text, Span(kind, first, last + 1), words, where) for first, last in places]
    yield Example(where, text, spans, _id(row))


def _is_pair(place: Any) -> bool:
    return isinstance(place, list) and len(place) == 2 and all(type(index) is int for index in place)


FORMS: dict[str, Callable[[dict, str], Iterator[Example]]] = {
    "afqmc": _classified("sentence1", "sentence2"),
    "tnews": _classified("sentence"),
    "iflytek": _classified("sentence"),
    "cmnli": _classified("sentence1", "sentence2"),
    "ocnli": _classified("sentence1", "sentence2"),
    "wsc": _wsc,
    "csl": _csl,
    "cmrc2018": _cmrc2018,
    "c3": _c3,
    "chid": _chid,
    "cluener": _cluener,
}
NESTED: dict[str, Callable[[Path], Iterator[tuple[str, dict]]]] = {
    "cmrc2018": _cmrc2018_rows,
    "c3": _c3_rows,
    "chid": _chid_rows,
}
