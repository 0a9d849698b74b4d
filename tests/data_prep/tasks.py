"""A small multi-task corpus of the tests' own: every kind of task, in files that differ between the splits."""

import csv
import json
from pathlib import Path

from rotary_foundry.data_prep.corpus_config import CorpusConfig, TokenizerConfig, TrainTokenizer
from rotary_foundry.data_prep.labelled.data_config import DataConfig
from rotary_foundry.data_prep.readers import SourceConfig
from rotary_foundry.data_prep.task_config import TaskConfig
from tests.data_prep.small_corpus import sentences, write_jsonl

ROW_LENGTH = 256
FIRST = {"train": 0, "dev": 90}  # the number of a split's first example
COUNT = {"train": 24, "dev": 6}
PASSAGE = "长江全长6397千米，是亚洲第一长河。长江流经上海。"
NAMES = "浙商银行企业信贷部叶老桂说"


def numbers(split: str) -> range:
    return range(FIRST[split], FIRST[split] + COUNT[split])


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_files(folder: Path) -> Path:
    """Write the files of all tasks: classes, pairs and numbers in our forms, and the rest in CLUE's."""
    for split in FIRST:
        rows = [{"text": f"the film {n} was {mood(n)}", "label": mood(n), "score": n / 2} for n in numbers(split)]
        write_lines(folder / f"mood-{split}.jsonl", rows)
        with (folder / f"pairs-{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([["a", "b", "same"], *([f"book {n}", f"song {n}", n % 3 // 2] for n in numbers(split))])
        passages = [(f"D{n}", f"{n:02d}{PASSAGE}") for n in numbers(split)]
        answers = [{"text": "6397千米", "answer_start": 6}]
        paragraphs = [
            {"id": name, "context": context, "qas": [{"question": "长江多长？", "id": name, "answers": answers}]}
            for name, context in passages
        ]
        write_json(folder / f"cmrc2018/{split}.json", {"data": [{"paragraphs": paragraphs, "title": ""}]})
        questions = [
            [[f"{n}女：你去哪儿？"], [{"question": "去哪儿？", "choice": ["书店", "学校"], "answer": "学校"}], str(n)]
            for n in numbers(split)
        ]
        write_json(folder / f"c3/{split}.json", questions)
        label = {"name": {"叶老桂": [[11, 13]]}, "company": {"浙商银行": [[2, 5]]}}
        rows = [{"text": f"{n:02d}{NAMES}", "label": label if n % 2 else {}} for n in numbers(split)]
        write_lines(folder / f"cluener/{split}.json", rows)
    return folder


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def mood(number: int) -> str:
    return ("bad", "good")[number % 2]


def in_files(folder: Path, name: str, **columns) -> DataConfig:
    train, dev = (next(folder.glob(f"{name}-{split}.*")) for split in FIRST)
    return DataConfig(train=str(train), validation=[str(dev)], **columns)


def tasks(folder: Path) -> dict[str, TaskConfig]:
    clue = {form: DataConfig(path=str(folder), form=form) for form in ("cmrc2018", "c3", "cluener")}
    return {
        "text": TaskConfig("masked_lm", weight=6.0),
        "mood": TaskConfig("classification", in_files(folder, "mood"), weight=2.0),
        "pairs": TaskConfig("classification", in_files(folder, "pairs", text=["a", "b"], label="same"), ["0", "1"]),
        "score": TaskConfig("regression", in_files(folder, "mood", label="score"), max_seq_len=12),
        "reading": TaskConfig("answer", clue["cmrc2018"], max_seq_len=64),
        "dialogues": TaskConfig("choice", clue["c3"]),
        "names": TaskConfig("entities", clue["cluener"]),
    }


def task_corpus(tmp_path: Path) -> CorpusConfig:
    """Two sources of text in one task of masked LM, and a task of every other kind."""
    files = write_files(tmp_path / "files")
    some, others = (
        SourceConfig("jsonl", str(write_jsonl(tmp_path / f"{name}.jsonl", sentences(seed, 40))))
        for seed, name in enumerate(("some", "others"))
    )
    return CorpusConfig(
        sources={"some": some, "others": others},
        tokenizer=TokenizerConfig(train=TrainTokenizer(320)),
        row_lengths=[ROW_LENGTH],
        validation=0.2,
        out=str(tmp_path / "out"),
        executor={"local": {"workers": 1}},
        tasks=tasks(files),
    )
