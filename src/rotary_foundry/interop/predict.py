"""Predict with the model in this directory: its network and the head of one task.

It needs torch, transformers and safetensors. In Python:

    from predict import Predictor

    predict = Predictor("the path of this directory")
    predict("A text.")                                  # classification, regression or entities
    predict("A question?", "A passage.")                # answer; or classification of a pair
    predict("A question?", choices=["one", "another"])  # choice

Or `python predict.py "A text."`, which prints the prediction; choices follow `--choices`.

A model that transformers does not have needs the modeling file of this directory. transformers runs it only with
`Predictor(…, trust_remote_code=True)`, or with `--trust-remote-code` as the first argument.

Texts are encoded as in training: [CLS] part [SEP] part [SEP], and all tokens are of segment 0. An example that is too
long loses tokens of its longest part, but never of a choice. A passage is divided into windows instead.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

SPANS = ("answer", "entities")  # kinds whose head is in pointer.safetensors
HEAD_SIZE, THETA = 64, 10_000.0  # of a span head
STRIDE = 128  # tokens from one window of a passage to the next
WINDOWS = 8  # computed at a time


class Predictor:
    """The network, the head and the tokenizer of a directory, on the CPU.

    trust_remote_code: whether transformers may run the modeling file of the directory.
    """

    def __init__(self, directory, trust_remote_code=False):
        given = {"trust_remote_code": trust_remote_code, "local_files_only": True}
        config = AutoConfig.from_pretrained(directory, **given)
        self.kind = config.task_kind
        self.labels = [config.id2label[number] for number in range(config.num_labels)]
        self.limit = config.max_position_embeddings
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        self.text = as_text(self.tokenizer)
        model_class = AutoModel if self.kind in SPANS else AutoModelForSequenceClassification
        self.model = model_class.from_pretrained(directory, config=config, **given).eval()
        self.pointer = load_file(Path(directory) / "pointer.safetensors") if self.kind in SPANS else None

    def __call__(self, *texts, choices=(), after=()):
        """Predict for one example.

        Args:
            texts: its parts: a text, a pair, a question and its passage, or the parts before a choice.
            choices: for the kind choice: the choices.
            after: for the kind choice: the parts after a choice.

        Returns:
            classification: {label: probability}. regression: a number. choice: a probability for each choice.
            answer: {text, start, end} in characters of the passage, or None if it has no answer.
            entities: a list of {label, text, start, end}.
        """
        parts = 2 if self.kind == "answer" else 1
        if len(texts) < parts or bool(choices) != (self.kind == "choice"):
            needed = {"choice": "texts and choices", "answer": "a question and a passage"}.get(self.kind, "texts only")
            raise ValueError(f"a model for {self.kind} takes {needed}")
        if self.kind == "choice":
            return self._choose(texts, choices, after)
        if self.kind == "answer":
            return self._answer(*texts)
        if self.kind == "entities":
            return self._entities(*texts)
        return self._classify(texts)

    @torch.no_grad()
    def scores(self, rows, allowed=None):
        """Compute the head's output for encoded texts.

        Args:
            rows: lists of token ids, with [CLS] and [SEP].
            allowed: for a span head: a list for each row, with 1 for each token where a span may begin or end.

        Returns:
            logits [rows, labels]; for a span head: scores [rows, kinds, first token, last token], -inf for no span.
        """
        input_ids = padded(rows, self.tokenizer.pad_token_id)
        attention_mask = padded([[1] * len(row) for row in rows], 0)
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        if self.pointer is None:
            return output.logits
        return span_scores(output.last_hidden_state, padded(allowed, 0).bool(), self.pointer)

    def _classify(self, texts):
        parts = [self._tokens(text)[0] for text in texts]
        while sum(map(len, parts)) > self.limit - 1 - len(parts):
            max(parts, key=len).pop()
        (logits,) = self.scores([self._join(*parts)])
        if self.kind == "regression":
            return logits.item()
        return dict(zip(self.labels, logits.softmax(0).tolist(), strict=True))

    def _choose(self, before, choices, after):
        before, after = ([self._tokens(text)[0] for text in texts] for texts in (before, after))
        choices = [self._tokens(choice)[0] for choice in choices]
        room = self.limit - 2 - len(before) - len(after) - max(map(len, choices))
        if room < 1:
            raise ValueError(f"the choices alone are over the {self.limit:,} tokens that the model takes")
        while sum(map(len, before + after)) > room:
            longest = max(before + after, key=len)
            longest.pop(0 if after and longest is before[-1] else -1)  # inside a text: the end far from the choice
        scores = self.scores([self._join(*before, choice, *after) for choice in choices])
        return scores[:, 0].softmax(0).tolist()

    def _answer(self, question, passage):
        question = self._tokens(question)[0][: self.limit // 2]
        tokens, places = self._tokens(passage)
        first, room = len(question) + 2, self.limit - 3 - len(question)  # of the passage in a window
        step = min(STRIDE, max(room // 2, 1))
        starts = range(0, max(len(tokens) - room, 0) + step, step)
        windows = [tokens[start : start + room] for start in starts]
        rows = [self._join(question, window) for window in windows]
        allowed = [[1, *[0] * (first - 1), *[1] * len(window), 0] for window in windows]
        found = None
        for number in range(0, len(rows), WINDOWS):
            scores = self.scores(rows[number : number + WINDOWS], allowed[number : number + WINDOWS])[:, 0]
            for start, of_window in zip(starts[number:], scores, strict=False):
                nowhere = of_window[0, 0].item()  # the score of [CLS]: no answer in this window
                of_window[0] = -torch.inf
                score, place = of_window.flatten().max(0)
                if score > nowhere and (found is None or score > found[0]):
                    span = (int(token) + start - first for token in divmod(place.item(), of_window.shape[1]))
                    found = score, *span
        return None if found is None else self._span(passage, places, *found[1:])

    def _entities(self, text):
        tokens, places = self._tokens(text)
        tokens = tokens[: self.limit - 2]
        row = self._join(tokens)
        (scores,) = self.scores([row], [[1] * len(row)])
        inside = 0, len(tokens) + 1  # [CLS] and [SEP]
        return [
            {"label": self.labels[kind], **self._span(text, places, first - 1, last - 1)}
            for kind, first, last in (scores > 0).nonzero().tolist()
            if first not in inside and last not in inside
        ]

    def _span(self, text, places, first, last):
        start, end = places[first][0], places[last][1]
        return {"text": text[start:end], "start": start, "end": end}

    def _tokens(self, text):
        """Return a text's token ids without special tokens, and each token's characters without blanks before them."""
        encoding = self.text.encode(text, add_special_tokens=False)
        return encoding.ids, [(end - len(text[start:end].lstrip()), end) for start, end in encoding.offsets]

    def _join(self, *parts):
        sep = self.tokenizer.sep_token_id
        return [self.tokenizer.cls_token_id, *(token for part in parts for token in (*part, sep))]


def as_text(tokenizer):
    """Return the tokenizer's backend for texts, in which "[SEP]" is five characters and not the end of a part.

    Special tokens get names that no text has, and merges that spell one are removed.
    """
    content, special = json.loads(tokenizer.backend_tokenizer.to_str()), set(tokenizer.all_special_tokens)
    special |= {token["content"] for token in content["added_tokens"] if token["special"]}
    model, vocabulary = content["model"], content["model"]["vocab"]

    def renamed(token):
        return "\U0010ffff" + token if token in special else token

    if isinstance(vocabulary, dict):
        known, model["vocab"] = set(vocabulary), {renamed(token): id_ for token, id_ in vocabulary.items()}
    else:
        known, model["vocab"] = {token for token, _ in vocabulary}, [[renamed(token), of] for token, of in vocabulary]
    if model.get("unk_token"):
        model["unk_token"] = renamed(model["unk_token"])
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        merges = [(first, second, first + second.removeprefix(prefix)) for first, second in model["merges"]]
        model["merges"] = [merge[:2] for merge in merges if special.isdisjoint(merge)]
    content["added_tokens"] = [
        token | {"special": token["content"] in special}
        for token in content["added_tokens"]
        if token["content"] not in special & known
    ]
    text = type(tokenizer.backend_tokenizer).from_str(json.dumps(content))
    text.no_truncation()
    text.no_padding()
    text.encode_special_tokens = True
    return text


def padded(rows, value):
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def span_scores(hidden, allowed, weights):
    """Score spans by GlobalPointer, or by EfficientGlobalPointer if the weights have `kinds`.

    hidden: [rows, tokens, hidden], allowed: [rows, tokens] → [rows, kinds, first token, last token]
    """
    shared = hidden @ weights["dense.weight"].T
    queries, keys = shared.unflatten(-1, (-1, 2, HEAD_SIZE)).unbind(-2)  # [rows, tokens, 1 or kinds, HEAD_SIZE]
    scores = torch.einsum("rikd,rjkd->rkij", rotated(queries), rotated(keys)) / HEAD_SIZE**0.5
    if "kinds.weight" in weights:
        starts, ends = ((shared @ weights["kinds.weight"].T).transpose(1, 2) / 2).chunk(2, dim=1)
        scores = scores + starts[..., :, None] + ends[..., None, :]
    spans = (allowed[:, :, None] & allowed[:, None, :]).triu()[:, None]
    return scores.masked_fill(~spans, -torch.inf)


def rotated(x):
    """Rotate x [rows, tokens, kinds, HEAD_SIZE] by position: dimension i together with i + HEAD_SIZE / 2."""
    frequencies = THETA ** -(torch.arange(0, HEAD_SIZE, 2, dtype=torch.float32) / HEAD_SIZE)
    angles = (torch.arange(x.shape[1], dtype=torch.float32)[:, None] * frequencies)[:, None]  # [tokens, 1, 32]
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


if __name__ == "__main__":
    trusted = sys.argv[1:2] == ["--trust-remote-code"]
    arguments = sys.argv[1 + trusted :]
    place = arguments.index("--choices") if "--choices" in arguments else len(arguments)
    print(Predictor(Path(__file__).parent, trusted)(*arguments[:place], choices=arguments[place + 1 :]))
