"""Encode labelled examples as tokens and label numbers, once for all jobs of a task, and write them to disk.

Problems with data, labels or tokenizer are found here, before a job starts.

The words of a sentence are joined by blanks and tokenised as one text. Tokens are assigned to words by their positions
in it. The first token of each word has the word's label, the others have none. So a byte-level tokenizer sees words
with the blank before them, as in pretraining. With transformers' `is_split_into_words` it would see the blank only if
it was saved with `add_prefix_space`.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import xxhash
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rotary_foundry.data.fast_tokenizer import open_fast
from rotary_foundry.data.same_tokenizer import check_ids, check_same_tokenizer
from rotary_foundry.data.special_tokens import as_text
from rotary_foundry.data_prep.labelled.examples import read_split, texts_of
from rotary_foundry.data_prep.labelled.labelled_example import Example
from rotary_foundry.data_prep.labelled.labels import Labels, as_number, listed
from rotary_foundry.data_prep.labelled.span_encoding import (
    PartsTokenizer,
    encode_answers,
    encode_choices,
    encode_entities,
)
from rotary_foundry.finetuning.finetune_config import FinetuneConfig, TaskConfig
from rotary_foundry.interop.own_code import register_own_code
from rotary_foundry.interop.positions import most_tokens
from rotary_foundry.models.in_transformers import check_stored
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.wording import not_opened

NO_LABEL = -100  # the label of tokens that losses and metrics ignore
HEADS = {
    "sequence": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "token": "ForTokenClassification",
}
CHUNK = 1000  # texts that are tokenised at a time
OF_SEVERAL = ("mcc", "pearson", "spearman")  # metrics that need examples of more than one label


def prepare(config: FinetuneConfig, name: str, folder: Path) -> dict:
    """Tokenise a task's splits into one data set each in `folder`, and describe them.

    Returns:
        `labels`, the names of classes or of entity kinds, empty if there are none; `splits`, the names of the
        validation splits (the first selects the best model); `tests`, the names of the splits without labels;
        `examples` and `truncated`, counts by split; `undefined`, notes on metrics; `max_seq_len`; and `digest`, of all
        data.

    Raises:
        FoundryError: names the file and row of the error.
    """
    task = config.of(name)
    model = _model_config(config.model)
    check_stored(Path(config.model))
    tokenizer = load_tokenizer(config.tokenizer or config.model, config.model, model)
    limit = _limit(config, task.max_seq_len, model, tokenizer)
    paths = {"train": task.data.train} | {Path(split).stem: split for split in task.data.validation}
    if len(paths) < 1 + len(task.data.validation):
        raise ConfigurationError(
            f"tasks.{name}.data: expected different names of validation splits, none train, got {task.data.validation}"
        )
    splits = {split: read_split(task.data, path) for split, path in paths.items()}
    tests = {f"test-{file}": read_split(task.data, path, labelled=False) for file, path in task.data.test.items()}
    labels = Labels.of(
        name, task.type, task.labels, splits["train"], None if task.init_from_task else _head(model, task)
    )
    _check_metrics(name, task, labels.names)
    datasets.disable_progress_bars()
    digest = xxhash.xxh3_128(json.dumps([labels.names, limit]).encode())
    shutil.rmtree(folder, ignore_errors=True)
    truncated = {}
    for split, examples in (splits | tests).items():
        columns, long = _encoded(split, examples, task, labels, tokenizer, limit)
        if long and config.long_documents == "refuse":
            raise DataError(
                f"{long[0]}: over the {limit:,} tokens that a document may have here, as are {len(long) - 1:,} more of "
                f"{split}; shorten them, raise max_seq_len if the model allows, or take long_documents=truncate"
            )
        truncated[split] = len(long)
        if task.type in HEADS and split in splits:
            for row in (*columns["input_ids"], *columns["labels"]):
                digest.update(np.asarray(row).tobytes())
        else:
            digest.update(json.dumps(columns).encode())
        datasets.Dataset.from_dict(columns).save_to_disk(folder / split)
    return {
        "labels": labels.names,
        "splits": list(splits)[1:],
        "tests": list(tests),
        "examples": {split: len(examples) for split, examples in (splits | tests).items()},
        "truncated": truncated,
        "undefined": [text for split in list(splits)[1:] for text in _undefined(task, labels, splits[split])],
        "max_seq_len": limit,
        "digest": digest.hexdigest(),
    }


def _check_metrics(name: str, task: TaskConfig, labels: list[str]) -> None:
    if "f1" in task.metrics and len(labels) != 2:
        raise ConfigurationError(f"tasks.{name}.metrics: f1 needs two labels, got {len(labels)}; use macro_f1")
    if "entity_f1" in task.metrics and not all(label == "O" or label[:2] in ("B-", "I-") for label in labels):
        raise ConfigurationError(
            f"tasks.{name}.metrics: entity_f1 needs labels such as O, B-PER, I-PER, found {listed(labels)}; use "
            "word_accuracy"
        )


def _undefined(task: TaskConfig, labels: Labels, examples: list[Example]) -> Iterator[str]:
    """Yield a sentence for each metric that is undefined on these examples for any prediction and so counts as 0."""
    if task.type not in ("sequence", "regression"):
        return
    first = examples[0]
    if any(example.label != first.label for example in examples):
        return
    for metric in task.metrics:
        if metric in OF_SEVERAL or (metric == "f1" and labels.number(first.label, first.where) == 0):
            yield (
                f"{metric} is undefined and counts as 0, as all examples from {first.where} on have the label "
                f"{first.label!r}; validate on others, too"
            )


def _encoded(
    split: str,
    examples: list[Example],
    task: TaskConfig,
    labels: Labels,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
) -> tuple[dict[str, list], list[str]]:
    """Return the columns of a split, and the locations of the examples that were cut to `limit` tokens."""
    if task.type == "choice":
        return encode_choices(examples, PartsTokenizer(tokenizer, limit))
    if task.type == "answer":
        return encode_answers(examples, PartsTokenizer(tokenizer, limit), training=split == "train")
    if task.type == "entities":
        return encode_entities(examples, labels.names, PartsTokenizer(tokenizer, limit))
    return _encode(examples, task, labels, tokenizer, limit)


def _encode(
    examples: list[Example], task: TaskConfig, labels: Labels, tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[dict[str, list], list[str]]:
    """Return the model's inputs and labels, and the locations of the documents that were cut to `limit` tokens."""
    columns: dict[str, list] = {}
    long = []
    words = task.type == "token"
    whole, cut = (as_text(tokenizer.backend_tokenizer, tokenizer.all_special_tokens) for _ in range(2))
    cut.enable_truncation(limit, direction=tokenizer.truncation_side)
    segments = "token_type_ids" in tokenizer.model_input_names
    for start in range(0, len(examples), CHUNK):
        chunk = examples[start : start + CHUNK]
        texts = [_texts(example, task) for example in chunk]
        encodings = whole.encode_batch([text if text[1:] else text[0] for text in texts])
        for example, text, encoding in zip(chunk, texts, encodings, strict=True):
            if len(encoding) > limit:
                long.append(example.where)
                encoding = cut.encode(*text)
            one: dict[str, Any] = {"input_ids": encoding.ids}
            if segments:
                one["token_type_ids"] = encoding.type_ids
            if example.label is None and task.data.form is not None:  # of a test file
                one["id"] = json.dumps(example.id)
            elif words:
                one["labels"] = _on_tokens(example, text[0], encoding.offsets, labels)
            elif task.type == "regression":
                one["labels"] = as_number(example.label, example.where)
            else:
                one["labels"] = labels.number(example.label, example.where)
            for key, value in one.items():
                columns.setdefault(key, []).append(value)
    return columns, long


def _texts(example: Example, task: TaskConfig) -> tuple[str, ...]:
    if task.type == "token":
        words, labels = example.text, example.label
        if not isinstance(words, list) or not isinstance(labels, list) or len(words) != len(labels):
            raise DataError(f"{example.where}: type: token needs a list of words and a list of equally many labels")
        if not all(isinstance(word, str) and word for word in words):
            raise DataError(f"{example.where}: a word is empty or not text; correct it, or leave the row out")
        return (" ".join(words),)
    return texts_of(task.data, example)


def _on_tokens(example: Example, text: str, offsets: list[tuple[int, int]], labels: Labels) -> list[int]:
    """Return the label of each token: a word's label for the first token with a character of the word."""
    numbers = [labels.number(label, example.where) for label in example.label]
    word_at = np.full(len(text), -1)  # by character; -1 for the blanks between words
    start = 0
    for number, word in enumerate(example.text):
        word_at[start : start + len(word)] = number
        start += len(word) + 1
    found, last = [], -1
    for start, end in offsets:
        inside = word_at[start:end]
        word = int(inside.max(initial=-1))
        found.append(numbers[word] if word > last else NO_LABEL)
        last = max(word, last)
    return found


def load_tokenizer(path: str, model_path: str, model: PretrainedConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer at `path`, for a model that may have its own.

    Raises:
        DataError: `path` has no tokenizer, or it belongs to another model.
    """
    transformers_logging.set_verbosity_error()
    try:
        tokenizer = open_fast(path)
    except DataError as error:
        raise DataError(f"{error}; name the model's tokenizer with tokenizer=FOLDER") from None
    if tokenizer.pad_token is None:
        raise DataError(f"{path}: the tokenizer has no pad_token; name one in tokenizer_config.json")
    check_same_tokenizer(Path(path), Path(model_path), f"leave out tokenizer=…: {model_path} has its own")
    check_ids(tokenizer, model_path, model.vocab_size)
    if model.pad_token_id not in (None, tokenizer.pad_token_id):
        raise DataError(
            f"{path}: the tokenizer pads with {tokenizer.pad_token_id}, {model_path} with {model.pad_token_id}; set "
            "tokenizer=… to the folder of this model's tokenizer, or correct pad_token_id in config.json"
        )
    return tokenizer


def _model_config(path: str) -> PretrainedConfig:
    if not Path(path).is_dir():
        raise ConfigurationError(
            f"model: {path}: no such folder; a model of the Hugging Face Hub has to be downloaded to a folder first"
        )
    register_own_code(path)
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # an unknown type or broken JSON
        raise DataError(f"{path}: transformers cannot load a model: {not_opened(error)}") from None


def _head(model: PretrainedConfig, task: TaskConfig) -> list[str] | None:
    """Return the labels of the model's own classifier, if it has one of this kind."""
    classes = _names(model, "architectures", model.architectures or [])
    if task.type not in HEADS or not any(name.endswith(HEADS[task.type]) for name in classes):
        return None
    return _names(model, "id2label", [model.id2label[number] for number in sorted(model.id2label)])


def _names(model: PretrainedConfig, key: str, values: Any) -> list[str]:
    """Return names from config.json, checked to be text, which transformers does not check."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise DataError(f"{model.name_or_path}: config.json: {key}: expected names, got {values!r:.60}")
    return values


def _limit(
    config: FinetuneConfig, wanted: int | None, model: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> int:
    """Return the most tokens that a document may have, special ones included."""
    limit = int(
        min(most_tokens(model) or 10**30, tokenizer.model_max_length)
    )  # 10**30: transformers' value for no limit
    if wanted is not None and wanted > limit:
        raise ConfigurationError(
            f"max_seq_len: expected at most {limit:,}, the limit of {config.model}, got {wanted:,}"
        )
    return wanted or limit
