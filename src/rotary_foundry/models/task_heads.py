"""The heads of a multi-task stage: one for each labelled task, on the last hidden states of any encoder.

- Classification, regression and choice: a linear layer on a document's first token, as in the published code
  (roformer-v2, multi-task/). The loss is softmax over labels, the squared error, or softmax over a question's choices.
- Answer: GlobalPointer with one softmax over all spans of a window. Entities: EfficientGlobalPointer with a multi-label
  loss (layers/span_scores.py).

Targets and the lengths of documents are on the host, where every index is computed. The indices are copied to the GPU
asynchronously, so no head makes the host wait.

The heads are attached to the network, so Composer saves them with it, and FSDP2 shards each as a unit of its own.
`attach_heads` also gives the network the method `encode`. It is `hidden_states` under another name: FSDP2's hooks wrap
a method that is called from outside, and `forward` calls `hidden_states` itself. Both call
`network.on_output_gradient`, if it is set, with the gradient of the hidden states in the backward pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rotary_foundry.data.task_file import Task
from rotary_foundry.models.layers.cross_entropy import TokenLoss
from rotary_foundry.models.layers.span_scores import (
    EfficientGlobalPointer,
    GlobalPointer,
    many_spans_loss,
    one_span_loss,
)
from rotary_foundry.models.truncated_normal import parameter_generator, truncated_normal

HEADS = "heads."  # the prefix of their parameters' names in the network's state dict


class TaskHeads(nn.ModuleDict):
    """The heads of the labelled tasks.

    Args:
        tasks: the tasks by name; masked-LM tasks have no head.
        hidden_size: the network's.
    """

    def __init__(self, tasks: Mapping[str, Task], hidden_size: int):
        super().__init__()
        for name, task in tasks.items():
            if task.kind != "masked_lm":
                self[_key(name)] = KINDS[task.kind](hidden_size, max(1, len(task.labels)))

    def loss(self, network: nn.Module, batch: Mapping[str, Any]) -> TokenLoss:
        """Compute the loss of a batch of one task, as sums over its examples."""
        hidden = network.encode(batch["input_ids"], batch["cu_seqlens"], batch["row_length"])
        head = self[_key(batch["row_sources"][0])]
        return head(hidden, batch["lengths"], batch["targets"], batch["allowed"])

    def spans(self, network: nn.Module, batch: Mapping[str, Any]) -> tuple[int, int, int]:
        """Count the entities in a batch of one task: correctly predicted, predicted, and labelled."""
        hidden = network.encode(batch["input_ids"], batch["cu_seqlens"], batch["row_length"])
        head = self[_key(batch["row_sources"][0])]
        return head.spans(hidden, batch["lengths"], batch["targets"], batch["allowed"])

    def of(self, task: str) -> nn.Module | None:
        """Return a task's head; None for a masked-LM task."""
        return dict(self.items()).get(_key(task))


def attach_heads(network: nn.Module, tasks: Mapping[str, Task]) -> None:
    """Attach heads for tasks to a network before it is sharded; `head_value` returns their initial values."""
    network.heads = TaskHeads(tasks, network.shape.hidden_size)
    network.on_output_gradient = None
    hidden_states = network.hidden_states

    def observed(*inputs: Any) -> Tensor:
        hidden = hidden_states(*inputs)
        if network.on_output_gradient is not None and hidden.requires_grad:
            hidden.register_hook(network.on_output_gradient)
        return hidden

    network.hidden_states = network.encode = observed


def head_value(name: str, size: tuple[int, ...], seed: int) -> Tensor:
    """Return a head parameter's initial value: 0 for biases, `truncated_normal` with std fan_in ** -0.5 for matrices.

    Args:
        name: the parameter's name in the network's state dict.
        size: the shape of the whole tensor.
        seed: the run's seed.
    """
    if len(size) == 1:
        return torch.zeros(size)
    return truncated_normal(size, size[1] ** -0.5, parameter_generator(seed, name))


def head_prefix(task: str) -> str:
    """Return the prefix of a task's parameter names in the network's state dict."""
    return f"{HEADS}{_key(task)}."


def _key(task: str) -> str:
    """Return the name of a task's head. A module's name must not have a '.' or equal a method's name of ModuleDict."""
    return f"of_{task.replace('.', ':')}"


def task_of_head(name: str) -> str:
    """Return the task to whose head a parameter belongs, from its name in the network's state dict."""
    return name.removeprefix(HEADS).partition(".")[0].removeprefix("of_").replace(":", ".")


class Classifier(nn.Linear):
    """Softmax over labels."""

    def forward(self, hidden: Tensor, lengths: Sequence[int], targets: NDArray, allowed: Tensor) -> TokenLoss:
        """Compute the loss as sums over examples.

        Args:
            hidden: [tokens, hidden].
            lengths: the tokens of each document.
            targets: float64 [targets, 4], as in `task_file.py`; documents are indices into `lengths`.
            allowed: uint8 [tokens], 1 where a span may lie.
        """
        documents, labels = targets[:, :2].astype(np.int64).T
        logits = super().forward(_first_tokens(hidden, lengths, documents)).float()  # [examples, labels]
        labels = _copied(labels, hidden)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return TokenLoss(loss, (logits.argmax(1) == labels).sum(), len(targets))


class Regressor(nn.Linear):
    """The squared error; a prediction counts as right if its error is below 0.5."""

    def forward(self, hidden: Tensor, lengths: Sequence[int], targets: NDArray, allowed: Tensor) -> TokenLoss:
        """Compute the loss; arguments as in Classifier.forward."""
        documents, right = targets[:, 0].astype(np.int64), targets[:, 1].astype(np.float32)
        numbers = super().forward(_first_tokens(hidden, lengths, documents)).float().squeeze(1)  # [examples]
        errors = numbers - _copied(right, hidden)
        return TokenLoss(errors.square().sum(), (errors.abs() < 0.5).sum(), len(targets))


class Chooser(nn.Linear):
    """Softmax over the choices of a question."""

    def forward(self, hidden: Tensor, lengths: Sequence[int], targets: NDArray, allowed: Tensor) -> TokenLoss:
        """Compute the loss; arguments as in Classifier.forward."""
        documents = np.arange(len(lengths))
        scores = super().forward(_first_tokens(hidden, lengths, documents)).float().squeeze(1)  # [documents]
        first, choices, right = targets[:, :3].astype(np.int64).T
        places = np.arange(choices.max(initial=1))
        of_question = np.minimum(first[:, None] + places, len(lengths) - 1)  # [questions, most choices]
        scores = scores[_copied(of_question, hidden)]
        scores = scores.masked_fill(_copied(places >= choices[:, None], hidden), -torch.inf)
        right = _copied(right, hidden)
        loss = F.cross_entropy(scores, right, reduction="sum")
        return TokenLoss(loss, (scores.argmax(1) == right).sum(), len(targets))


class AnswerFinder(GlobalPointer):
    """Softmax over the spans of a window."""

    def forward(self, hidden: Tensor, lengths: Sequence[int], targets: NDArray, allowed: Tensor) -> TokenLoss:
        """Compute the loss; arguments as in Classifier.forward."""
        total, correct = hidden.new_zeros((), dtype=torch.float32), hidden.new_zeros((), dtype=torch.int64)
        spans = targets.astype(np.int64)
        for examples, *inputs in _padded(spans[:, 0], hidden, lengths, allowed):
            scores = super().forward(*inputs).float()  # [examples, 1, tokens, tokens]
            right = _copied(spans[examples, 1:3], hidden)
            total = total + one_span_loss(scores, right) * len(examples)
            likeliest = scores.flatten(1).argmax(1)
            correct = correct + (likeliest == right[:, 0] * scores.shape[-1] + right[:, 1]).sum()
        return TokenLoss(total, correct, len(targets))


class EntityFinder(EfficientGlobalPointer):
    """A score above 0 for every entity and below 0 for every other span; a text is right if all its scores are."""

    def forward(self, hidden: Tensor, lengths: Sequence[int], targets: NDArray, allowed: Tensor) -> TokenLoss:
        """Compute the loss; arguments as in Classifier.forward."""
        total, correct = hidden.new_zeros((), dtype=torch.float32), hidden.new_zeros((), dtype=torch.int64)
        for scores, right in self._scored(hidden, lengths, targets, allowed):
            total = total + many_spans_loss(scores, right) * len(scores)
            correct = correct + ((scores > 0) == right).flatten(1).all(1).sum()
        return TokenLoss(total, correct, len(np.unique(targets[:, 0])))

    def spans(self, hidden: Tensor, lengths: Sequence[int], targets: NDArray, allowed: Tensor) -> tuple[int, int, int]:
        """Count correct, predicted and labelled entities; waits for a GPU. Arguments are as in Classifier.forward."""
        counts = [0, 0, 0]
        for scores, right in self._scored(hidden, lengths, targets, allowed):
            found = scores > 0
            counts = [count + int(of.sum()) for count, of in zip(counts, (found & right, found, right), strict=True)]
        return tuple(counts)

    def _scored(
        self, hidden: Tensor, lengths: Sequence[int], targets: NDArray, allowed: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the scores of spans [texts, kinds, tokens, tokens] and which are right, by groups of similar length."""
        targets = targets.astype(np.int64)
        texts, text_of = np.unique(targets[:, 0], return_inverse=True)
        for examples, *inputs in _padded(texts, hidden, lengths, allowed):
            scores = super().forward(*inputs).float()
            rows = np.full(len(texts), -1)
            rows[examples] = np.arange(len(examples))
            here = (rows[text_of] >= 0) & (targets[:, 1] >= 0)
            places = np.ravel_multi_index((rows[text_of[here]], *targets[here, 1:].T), scores.shape)
            right = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
            yield scores, right.index_fill_(0, _copied(places, hidden), True).view_as(scores)


KINDS = {
    "classification": Classifier,
    "regression": Regressor,  # one number
    "choice": lambda hidden_size, _: Chooser(hidden_size, 1, bias=False),  # softmax ignores a common bias
    "answer": AnswerFinder,
    "entities": EntityFinder,
}


def _padded(
    documents: NDArray[np.int64], hidden: Tensor, lengths: Sequence[int], allowed: Tensor
) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
    """Yield documents in groups of similar length: their indices in `documents`, hidden states and `allowed`, padded.

    The scores of all spans need memory quadratic in the longest document. So documents of at most 16, 32, 64, … tokens
    form groups. The padding repeats the last token; in the padding, `allowed` is 0.
    """
    starts, sizes = _starts(lengths)[documents], np.array(lengths)[documents]
    by_length: dict[int, list[int]] = {}
    for place, size in enumerate(sizes.tolist()):
        by_length.setdefault(max(4, (size - 1).bit_length()), []).append(place)
    for _, places in sorted(by_length.items()):
        start, size = (_copied(each[places], hidden).unsqueeze(1) for each in (starts, sizes))  # [documents, 1]
        place = torch.arange(sizes[places].max(), device=hidden.device)
        tokens = start + place.minimum(size - 1)  # [documents, most tokens]
        of_tokens = hidden.index_select(0, tokens.flatten()).unflatten(0, tokens.shape)
        yield np.array(places), of_tokens, allowed[tokens].bool() & (place < size)


def _first_tokens(hidden: Tensor, lengths: Sequence[int], documents: NDArray[np.int64]) -> Tensor:
    """Return the hidden states of the documents' first tokens. [documents, hidden]"""
    return hidden.index_select(0, _copied(_starts(lengths)[documents], hidden))


def _starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Return the index of each document's first token."""
    return np.cumsum(lengths, dtype=np.int64) - lengths


def _copied(numbers: NDArray, beside: Tensor) -> Tensor:
    """Copy numbers to the device of another tensor, without waiting for it."""
    return torch.tensor(numbers).to(beside.device, non_blocking=True)
