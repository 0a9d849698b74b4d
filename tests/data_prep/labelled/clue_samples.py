"""Made samples of CLUE's tasks, in the forms of its files."""

import json
from pathlib import Path

WSC = {"span1_index": 0, "span1_text": "李明", "span2_index": 6, "span2_text": "他"}
ROWS = {  # of the files with a JSON object a line
    "afqmc": {"sentence1": "花呗怎么还", "sentence2": "如何还花呗", "label": "1"},
    "tnews": {"label": "102", "label_desc": "news_entertainment", "sentence": "江疏影的甜品店", "keywords": "江疏影"},
    "iflytek": {"label": "11", "label_des": "薅羊毛", "sentence": "打车软件"},
    "cmnli": {"sentence1": "他在跑", "sentence2": "他在动", "label": "entailment"},
    "ocnli": {"level": "medium", "sentence1": "下雨了", "sentence2": "天晴", "label": "contradiction", "id": 3},
    "wsc": {"target": WSC, "idx": 0, "label": "true", "text": "李明说，因为他病了"},
    "csl": {"id": 7, "abst": "本文研究水稻的抗旱性", "keyword": ["水稻", "抗旱性"], "label": "0"},
    "cluener": {
        "text": "浙商银行企业信贷部叶老桂说",
        "label": {"name": {"叶老桂": [[9, 11]]}, "company": {"浙商银行": [[0, 3]]}},
    },
}
CMRC2018 = {
    "version": "v1.0",
    "data": [
        {
            "paragraphs": [
                {
                    "id": "D1",
                    "context": "长江全长6397千米，是亚洲第一长河。长江流经上海。",
                    "qas": [
                        {
                            "question": "长江多长？",
                            "id": "D1_Q0",
                            "answers": [{"text": "6397千米", "answer_start": 4}],
                        },
                        {
                            "question": "什么河流经上海？",
                            "id": "D1_Q1",
                            "answers": [{"text": "长江", "answer_start": 17}, {"text": "长江", "answer_start": 19}],
                        },
                    ],
                }
            ],
            "title": "长江",
        }
    ],
}
C3 = [
    [
        ["女：你去哪儿？", "男：去书店。"],
        [{"question": "男的去哪儿？", "choice": ["书店", "学校", "医院"], "answer": "书店", "id": 5}],
        "25-1",
    ]
]
CHID_CANDIDATES = ["一丝不苟", "画蛇添足", "守株待兔", "亡羊补牢", "刻舟求剑"] + [f"成语{index}" for index in range(5)]
CHID = {
    "groupNo": 1,
    "candidates": CHID_CANDIDATES,
    "content": ["他做事#idiom000000#，从不#idiom000001#。", "现在#idiom000002#还不晚。"],
    "realCount": 3,
}
CHID_ANSWERS = {"#idiom000000#": 0, "#idiom000001#": 1, "#idiom000002#": 3}
UNLABELLED = ("label", "label_desc", "label_des", "answers", "answer")


def write_clue(folder: Path, copies: int = 1) -> Path:
    """Write every task's train, dev and test file as CLUE distributes them; a line is repeated `copies` times."""
    for name, row in ROWS.items():
        place = folder / {"wsc": "cluewsc2020_public"}.get(name, name)
        place.mkdir(parents=True)
        labelled = json.dumps(row, ensure_ascii=False) + "\n"
        test = {"id": 3} | {key: value for key, value in row.items() if key not in UNLABELLED}
        write(place, labelled * copies, json.dumps(test) + "\n")
    (folder / "ocnli/train.json").rename(folder / "ocnli/train.50k.json")
    for name in ("cmrc2018_public", "c3", "chid"):
        (folder / name).mkdir()
    test = json.loads(json.dumps(CMRC2018))
    for question in test["data"][0]["paragraphs"][0]["qas"]:
        question["answers"] = [{"text": "", "answer_start": -1}]
    write(folder / "cmrc2018_public", json.dumps(CMRC2018), json.dumps(test))
    test = json.loads(json.dumps(C3))
    del test[0][1][0]["answer"]
    for split in ("train", "dev"):
        for part in "md":
            (folder / f"c3/{part}-{split}.json").write_text(json.dumps(C3))
        (folder / f"chid/{split}_answer.json").write_text(json.dumps(CHID_ANSWERS))
    write(folder / "chid", json.dumps(CHID) + "\n", json.dumps(CHID) + "\n")
    for version in ("test1.0.json", "test1.1.json"):
        (folder / "c3" / version).write_text(json.dumps(test))
        (folder / "chid" / version).write_text(json.dumps(CHID) + "\n")
    return folder


def write(folder: Path, labelled: str, test: str) -> None:
    for split in ("train", "dev"):
        (folder / f"{split}.json").write_text(labelled, encoding="utf-8")
    (folder / "test.json").write_text(test, encoding="utf-8")
