"""Write predictions for unlabelled examples in the form that cluebenchmarks.com accepts.

classes, C3   a line for each example: {"id": "0", "label": "102"}; for C3 the number of the choice
CHID          one object: {"#idiom000000#": 3, …}
CMRC2018      one object: {"TRIAL_800_QUERY_0": "answer", …}
CLUENER       a line for each example: {"id": 0, "text": …, "label": {kind: {entity: [[first, last], …]}}}
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rotary_foundry.finetuning.head_models import ChoiceScores, TextEntities, WindowAnswer
from rotary_foundry.finetuning.metrics import best_answers, choose


def write_predictions(file: Path, form: str, predictions: list[Any], labels: list[str]) -> None:
    """Write the predictions of a split.

    Args:
        file: the file to write, atomically.
        form: the published form of the data.
        predictions: as `head_models.py` makes them; for classes: (id as JSON, number of the class).
        labels: the names of classes or kinds.
    """
    new = file.with_name(f"{file.name}.new")
    new.write_text(WRITERS.get(form, _classes)(predictions, labels), encoding="utf-8")
    new.rename(file)


def _lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _object(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False, indent=4) + "\n"


def _classes(predictions: list[tuple[str, int]], labels: list[str]) -> str:
    return _lines({"id": str(json.loads(id_)), "label": labels[number]} for id_, number in predictions)


def _c3(predictions: list[ChoiceScores], _: list[str]) -> str:
    chosen = zip(predictions, choose(predictions), strict=True)
    return _lines({"id": str(json.loads(row.id)), "label": str(choice)} for row, choice in chosen)


def _chid(predictions: list[ChoiceScores], _: list[str]) -> str:
    chosen = zip(predictions, choose(predictions), strict=True)
    return _object({json.loads(row.id): choice for row, choice in chosen})


def _cmrc2018(predictions: list[WindowAnswer], _: list[str]) -> str:
    return _object({json.loads(best.id): best.text for best in best_answers(predictions)})


def _cluener(predictions: list[TextEntities], labels: list[str]) -> str:
    """Write a line per text; CLUENER's spans include their last character."""
    rows = []
    for text in predictions:
        found: dict[str, dict[str, list]] = {}
        for kind, start, end in sorted(text.predicted):
            if 0 <= start < end:  # not at a special token
                of_kind = found.setdefault(labels[kind], {})
                of_kind.setdefault(text.text[start:end], []).append([start, end - 1])
        rows.append({"id": json.loads(text.id), "text": text.text, "label": found})
    return _lines(rows)


WRITERS: dict[str, Callable[[list, list[str]], str]] = {
    "c3": _c3,
    "chid": _chid,
    "cmrc2018": _cmrc2018,
    "cluener": _cluener,
}
