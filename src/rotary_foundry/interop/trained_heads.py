"""The trained head of a task, for an export that predicts.

The directory has the form that fine-tuning writes for such a task. A head of classification, regression or choice is a
linear map of the first token's last hidden state. It becomes the classifier of the family's class for sequences; for a
choice it has one label, the score of one choice. Heads of answers and entities score spans, which no class of
transformers does. Then the directory has the language model, with the head in POINTER beside it.

In both cases the directory has PREDICT. It encodes texts as in training, and computes the head in plain Python.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rotary_foundry.data.task_file import Task
from rotary_foundry.models.family import Family

POINTER = "pointer.safetensors"
PREDICT = Path(__file__).with_name("predict.py")
SPANS = ("answer", "entities")  # kinds whose head is in POINTER
PIPELINE_TAGS = {
    "classification": "text-classification",
    "regression": "text-classification",
    "choice": "multiple-choice",
    "answer": "question-answering",
    "entities": "token-classification",
}
CALLS = {
    "classification": ('predict("A text.")  # or a pair of texts', "the probability of each label"),
    "regression": ('predict("A text.")  # or a pair of texts', "a number"),
    "choice": ('predict("A question?", choices=["one", "another"])', "the probability of each choice"),
    "answer": ('predict("A question?", "A passage.")', "the answer and its place in the passage, or None"),
    "entities": ('predict("A text.")', "the entities, each with its label and its place in the text"),
}
USAGE = """from predict import Predictor  # predict.py of this directory

predict = Predictor("the path of this directory"{trust})
{call}
"""
OTHERWISE = {  # transformers' classes for such tasks; they compute another function
    "answer": "`AutoModelForQuestionAnswering`",
    "entities": "`AutoModelForTokenClassification`",
}


@dataclass(frozen=True)
class TrainedHead:
    """The head of a task, in place of a new classifier."""

    name: str
    task: Task
    weights: Mapping[str, Tensor]  # of the head, by their names in it
    row_length: int  # of the stage that trained it, in tokens: the longest text in its training

    @property
    def pipeline_tag(self) -> str:
        """Hugging Face's name for the task."""
        return PIPELINE_TAGS[self.task.kind]

    @property
    def _of_spans(self) -> bool:
        return self.task.kind in SPANS

    def settings(self, family: Family) -> dict:
        """Return the head's settings for config.json: the labels, and `task_kind`, which predict.py reads."""
        labels = self.task.labels or ("LABEL_0",)  # transformers' name for the label of a regression
        settings = {
            "task_kind": self.task.kind,
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
        }
        if self._of_spans:
            return settings
        problem = {"classification": "single_label_classification", "regression": "regression"}
        return settings | {
            "architectures": [family.huggingface.classifiers["sequence"]],
            "problem_type": problem.get(self.task.kind),
            **family.huggingface.linear_classifier,
        }

    def in_place_of_output(self, family: Family, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return a network's parameters with the head as the classifier; unchanged for a head of spans."""
        if self._of_spans:
            return state
        weight = self.weights["weight"]
        bias = self.weights.get("bias", torch.zeros(len(weight)))
        return family.huggingface.with_linear_classifier(state, weight, bias)

    def write_files(self, directory: Path) -> None:
        """Write predict.py, and the weights of a span head."""
        shutil.copyfile(PREDICT, directory / PREDICT.name)
        if self._of_spans:
            save_file(dict(self.weights), directory / POINTER, metadata={"format": "pt"})
            (directory / POINTER).chmod(0o644)  # safetensors makes files that only the owner can read

    def usage(self, family: Family) -> Iterator[str]:
        """Yield the paragraphs of a model card: what the head is, how to predict, and what transformers computes."""
        kind, labels = self.task.kind, self.task.labels
        of_labels = f", with the labels {', '.join(labels)}" if labels else ""
        yield f"With the trained head of the task `{self.name}` (`{kind}`{of_labels})."
        call, returns = CALLS[kind]
        trust = ", trust_remote_code=True" if family.huggingface.code else ""
        yield f"```python\n{USAGE.format(call=call, trust=trust)}```"
        yield f"This returns {returns}. It needs torch, transformers and safetensors only."
        if self._of_spans:
            yield (
                "No class of transformers computes this head, which scores all spans (GlobalPointer): `predict.py` "
                f"does, from `{POINTER}` and the hidden states of `AutoModel`. {OTHERWISE[kind]} would give it a new, "
                "random classifier."
            )
        elif kind == "choice":
            yield (
                "`AutoModelForSequenceClassification` computes the same: one number for each choice, joined with the "
                "question."
            )
        else:
            yield "`AutoModelForSequenceClassification` computes the same."
