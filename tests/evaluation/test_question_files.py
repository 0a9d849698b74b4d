"""Questions are read from small files in the form in which data sets are published; errors name file, line and key."""

import csv
import json
from pathlib import Path

import pytest

from rotary_foundry.evaluation.question_files import READERS, Example, read_examples
from rotary_foundry.utils.errors import DataError

DOCUMENTS = "document_id,set,kind,story_url,story_file_size,wiki_url,wiki_title,story_word_count,story_start,story_end"
QUESTIONS = "document_id,set,question,answer1,answer2,question_tokenized,answer1_tokenized,answer2_tokenized"
PAPER = {
    "title": "Rotations",
    "abstract": "We rotate.",
    "full_text": [
        {"section_name": "Method", "paragraphs": ["First.", "Second."]},
        {"section_name": None, "paragraphs": ["Third."]},
    ],
    "qas": [],
    "figures_and_tables": [],
}
NO_ANSWER = {
    "unanswerable": False,
    "extractive_spans": [],
    "yes_no": None,
    "free_form_answer": "",
    "evidence": [],
    "highlighted_evidence": [],
}
ARTICLE = {
    "article_id": "7",
    "set_unique_id": "7_A",
    "article": "A long article.",
    "questions": [
        {
            "question": "Who?",
            "question_unique_id": "7_A_1",
            "options": ["She", "He ", "It", "They"],
            "writer_label": 2,
            "gold_label": 2,
            "difficult": 0,
        }
    ],
}
MEETING = {
    "topic_list": [],
    "general_query_list": [{"query": "Summarize the meeting.", "answer": "They met."}],
    "specific_query_list": [{"query": "What did B say?", "answer": "Hello.", "relevant_text_span": [["1", "1"]]}],
    "meeting_transcripts": [{"speaker": "A", "content": "Hi."}, {"speaker": "B", "content": "Hello."}],
}


def jsonl(path: Path, *lines: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def qasper(path: Path, *answers: dict) -> Path:
    asked = {"question": "How?", "question_id": "q1", "answers": [{"answer": NO_ANSWER | one} for one in answers]}
    path.write_text(json.dumps({"1909.00001": PAPER | {"qas": [asked]}}))
    return path


def zeroscrolls(before: str, document: str, query: str, after: str, **others) -> dict:
    text = before + document + query + after
    start, end = len(before), len(before) + len(document)
    bounds = {"document_start_index": start, "document_end_index": end}
    bounds |= {"query_start_index": end, "query_end_index": end + len(query)}
    return {"id": "z1", "pid": "z1_0", "input": text, **bounds, "truncation_seperator": "...", **others}


def narrativeqa(path: Path) -> Path:
    (path / "tmp").mkdir()
    (path / "documents.csv").write_text(
        f'{DOCUMENTS}\nd1,valid,gutenberg,u,1,u,t,9,"ONCE, upon","THE END"\nd2,train,movie,u,1,u,t,9,a,b\n'
    )
    with open(path / "qaps.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [
                QUESTIONS.split(","),
                ["d2", "train", "Not asked?", "no", "no", "", "", ""],
                ["d1", "valid", "Who came?", "A fox", "A fox", "", "", ""],
                ["d1", "valid", "Where to?", "Home", "The den", "", "", ""],
            ]
        )
    (path / "tmp/d1.content").write_bytes(b"licence ONCE, upon a time \xe9 THE END licence")
    return path


def test_narrativeqa(tmp_path):
    first, second = read_examples("narrativeqa", narrativeqa(tmp_path))
    assert first == Example("2", "d1", "ONCE, upon a time \ufffd THE END", "Who came?", ("A fox",))
    assert (second.question, second.answers, second.context) == ("Where to?", ("Home", "The den"), first.context)
    (tmp_path / "tmp/d1.content").unlink()
    with pytest.raises(DataError, match=r"tmp/d1\.content: no such file; run download_stories\.sh"):
        read_examples("narrativeqa", tmp_path)


def test_qasper(tmp_path):
    answers = (
        {"free_form_answer": "By turning"},
        {"extractive_spans": ["one", "two"]},
        {"yes_no": True},
        {"yes_no": False},
        {"unanswerable": True},
    )
    (example,) = read_examples("qasper", qasper(tmp_path / "dev.json", *answers))
    context = "Rotations\n\nWe rotate.\n\nMethod\nFirst.\nSecond.\n\nThird."
    assert example == Example(
        "q1", "1909.00001", context, "How?", ("By turning", "one, two", "Yes", "No", "Unanswerable")
    )


def test_quality(tmp_path):
    (example,) = read_examples("quality", jsonl(tmp_path / "dev", ARTICLE))
    assert example == Example("7_A_1", "7", "A long article.", "Who?\n(A) She\n(B) He\n(C) It\n(D) They", ("He",))


def test_qmsum(tmp_path):
    examples = read_examples("qmsum", jsonl(tmp_path / "val.jsonl", MEETING, MEETING))
    assert [one.name for one in examples] == ["1-general-0", "1-specific-0", "2-general-0", "2-specific-0"]
    assert examples[1] == Example("1-specific-0", "1", "A: Hi.\nB: Hello.", "What did B say?", ("Hello.",))


def test_zeroscrolls(tmp_path):
    path = jsonl(
        tmp_path / "qasper/validation.jsonl",
        zeroscrolls("Answer.\n\nArticle:\n", "The text.", "\n\nQuestion:\nWhy?", "\n\nAnswer:\n", output="Because"),
        zeroscrolls("Answer.\n\nArticle:\n", "The text.", "\n\nQuestion:\nWhy?", "\n\nAnswer:\n", output="So"),
        zeroscrolls("Write a summary.\n\nReport:\n", "It.", "", "\n\nSummary:\n", output="Short", id="z2"),
    )
    assert read_examples("zeroscrolls", path) == [
        Example("z1", "z1", "The text.", "Why?", ("Because", "So")),
        Example("z2", "z2", "It.", "Write a summary.\n\nReport:", ("Short",)),
    ]


def test_longbench(tmp_path):
    line = {"input": "Where?", "context": "There it is.", "answers": ["There", "there"], "length": 3, "_id": "l1"}
    line |= {"dataset": "narrativeqa", "language": "en", "all_classes": None}
    path = jsonl(tmp_path / "narrativeqa.jsonl", line, line | {"input": "", "_id": "l2"})
    assert read_examples("longbench", path) == [
        Example("l1", "l1", "There it is.", "Where?", ("There", "there")),
        Example("l2", "l2", "There it is.", "Summarize the text above.", ("There", "there")),
    ]


def test_examples_of_ones_own(tmp_path):
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "She"}]
    path = jsonl(
        tmp_path / "own.jsonl",
        {"context": "A text", "question": "What?", "answers": ["It"], "source": "ignored"},
        {"messages": chat},
    )
    assert read_examples("examples", path) == [
        Example("1", "A text", "A text", "What?", ("It",)),
        Example("2", "2", "", "Who?", ("She",)),
    ]


SYSTEM = {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who?"}]}
WRONG = {  # name → data set, lines, and what is said after the file's name
    "no JSON": ("qmsum", ['{"topic_list": '], r"line 1: expected JSON: "),
    "no mapping": ("quality", ["", "[]"], r"line 2: expected a mapping, found \[\]"),
    "no key": ("quality", [{"article_id": "7"}], r"line 1: article: missing; expected a text"),
    "no answers in a test set": (
        "quality",
        [ARTICLE | {"questions": [{"question": "W?", "question_unique_id": "1", "options": ["a", "b"]}]}],
        r"line 1: questions\[0\]: gold_label: missing; expected the number of the right option; the test set has none",
    ),
    "an option that is not there": (
        "quality",
        [ARTICLE | {"questions": [ARTICLE["questions"][0] | {"gold_label": 5}]}],
        r"line 1: questions\[0\]: gold_label: expected from 1 to 4, found 5",
    ),
    "a turn without a speaker": (
        "qmsum",
        [MEETING, MEETING | {"meeting_transcripts": [{"content": "Hi."}]}],
        r"line 2: meeting_transcripts\[0\]: speaker: missing; expected a text",
    ),
    "a hidden answer": (
        "zeroscrolls",
        [zeroscrolls("Q\n", "doc", "\n\nWhy?", "", output=None)],
        r"line 1: output: expected an answer; the test sets have none, take validation\.jsonl, found None",
    ),
    "an index outside": (
        "zeroscrolls",
        [zeroscrolls("Q\n", "doc", "\n\nWhy?", "", output="a") | {"query_end_index": 99}],
        r"line 1: expected indices of document and query from 0 to 11, found \[2, 5, 5, 99\]",
    ),
    "answers of another type": (
        "longbench",
        [{"_id": "1", "context": "a", "input": "b", "answers": [1]}],
        r"line 1: answers: expected a list of texts, found \[1\]",
    ),
    "a heading of another type": (
        "qasper",
        [{"1": {"title": "T", "abstract": "A", "full_text": [{"section_name": [], "paragraphs": ["p"]}], "qas": []}}],
        r"1: full_text\[0\]: section_name: expected a text, found \[\]",
    ),
    "an empty answer": (
        "examples",
        [{"question": "Who?", "answers": [" "]}],
        r"line 1: expected an answer, found none; remove the example",
    ),
    "roles": ("examples", [SYSTEM], r"line 1: messages: expected one of a user and one of an assistant, found system,"),
    "nothing": ("examples", [], r"no example of examples; expected at least one"),
    "twice": (
        "longbench",
        [{"_id": "1", "context": "a", "input": "b", "answers": ["c"]}] * 2,
        r"two examples have the name '1'; give each its own",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_by_file_line_and_key(name, tmp_path):
    dataset, lines, said = WRONG[name]
    path = tmp_path / "data.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    with pytest.raises(DataError, match=rf"data\.jsonl: {said}"):
        read_examples(dataset, path)


def test_an_answer_of_qasper_without_any_form_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(
        DataError, match=r"1909\.00001: qas\[0\]: answers\[0\]: answer: expected a span, a free form, or"
    ):
        read_examples("qasper", qasper(tmp_path / "dev.json", {}))
    for dataset in READERS:
        with pytest.raises(DataError, match=r"none: cannot be read: .*No such file|none/documents\.csv"):
            read_examples(dataset, tmp_path / "none")
