"""What training a dense and a multi-vector retriever share: the keys, the Trainer, the directory that comes out.

sentence-transformers' Trainer does the work in both, since PyLate's models are sentence-transformers' models and both
libraries' losses are written for it; Composer's would have to be taught their way of batching several texts a row.

The values in yamls/finetune/ are those of ModernBERT's own two scripts (`examples/train_st.py` and
`examples/train_pylate.py` of its repository), where not marked as ours.
"""

import json
import logging
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotary_foundry.data.rows import SHORTEST
from rotary_foundry.data.same_tokenizer import check_ids
from rotary_foundry.finetuning.finetune_config import LONG_DOCUMENTS, MAX_SEED, PART
from rotary_foundry.finetuning.pairs import count_too_long, is_distillation, texts
from rotary_foundry.recipe.loading import load_config, load_key
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.installing import install_command
from rotary_foundry.utils.wording import number, one_line

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from torch.nn import Module

TASKS = {  # by the YAML's `task`: a module with a Config and train
    "dense_retrieval": "rotary_foundry.finetuning.dense_retrieval",
    "multi_vector": "rotary_foundry.finetuning.multi_vector",
}

MARKS = 1  # tokens that PyLate puts into a text, to mark it as a query or a document
SHORTEST_MARKED = SHORTEST + MARKS


@dataclass
class RetrievalConfig:
    """The keys of both tasks. Paths are relative to the working directory."""

    task: str
    model: str  # a Hugging Face encoder's directory, or one that this or the library saved
    out: str  # the directory to be written, not there yet
    max_duration: str  # in epochs or updates: 1ep, 500ba
    global_train_batch_size: int  # in rows; each query's negatives are the other rows' documents
    lr: float  # the peak; then linear to 0
    t_warmup: str  # linear, as a part of the whole: 0.05dur
    data: str | None = (
        None  # JSONL, CSV, Parquet or a directory of `datasets`; null: code search in the standard library
    )
    max_pairs: int | None = None  # the first so many rows only
    device_train_microbatch_size: int | None = None  # rows held at a time, of the same loss; null: the whole batch
    long_documents: str = "truncate"  # and queries, over the length: truncate, with a count, or refuse
    precision: str = "fp32"  # or amp_bf16
    seed: int = 42


def check(config: RetrievalConfig) -> None:
    """Refuse what needs neither model nor data to be seen as wrong.

    Raises:
        ConfigurationError: naming the key.
    """
    if Path(config.out).exists():
        raise ConfigurationError(f"out: {config.out} is there already; give another, or remove it")
    for key in ("global_train_batch_size", "device_train_microbatch_size"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise ConfigurationError(f"{key}: a number from 1 on is wanted, not {value}")
    if config.global_train_batch_size < 2:
        raise ConfigurationError("global_train_batch_size: the other rows are the negatives, so 2 at least, not 1")
    for key, choices in (("long_documents", LONG_DOCUMENTS), ("precision", ("amp_bf16", "fp32"))):
        if getattr(config, key) not in choices:
            raise ConfigurationError(f"{key}: {' or '.join(choices)} is wanted, not '{getattr(config, key)}'")
    if config.lr <= 0:
        raise ConfigurationError(f"lr: more than 0 is wanted, not {config.lr}")
    if not 0 <= config.seed <= MAX_SEED:
        raise ConfigurationError(f"seed: a number from 0 to {MAX_SEED} is wanted, not {config.seed}")
    if not PART.fullmatch(config.t_warmup):
        raise ConfigurationError(f"t_warmup: a part of the whole is wanted, such as 0.05dur, not '{config.t_warmup}'")
    _duration(config.max_duration)


def open_model(config: RetrievalConfig, kind: type["SentenceTransformer"], **arguments: Any) -> "SentenceTransformer":
    """The model to be trained, on the device that training will take.

    Args:
        kind: SentenceTransformer or PyLate's ColBERT.
        arguments: what else it takes.

    Raises:
        DataError: no model is there, or not one with a fast tokenizer of its own.
        ConfigurationError: several GPUs to choose from.
    """
    import torch

    if torch.cuda.device_count() > 1:
        raise ConfigurationError(
            f"{torch.cuda.device_count()} GPUs are visible, and this training takes one: choose with "
            "CUDA_VISIBLE_DEVICES=0"
        )
    return load_retriever(config.model, kind, **arguments)


def check_installed(*packages: str) -> None:
    """
    Raises:
        ConfigurationError: one is not.
    """
    if missing := [package for package in packages if find_spec(package) is None]:
        raise ConfigurationError(f"{missing[0]} is not installed; all that retrieval needs: {install_command('eval')}")


def load_retriever(path: str, kind: type["SentenceTransformer"], **arguments: Any) -> "SentenceTransformer":
    """A directory as a SentenceTransformer or ColBERT, without a look at the network.

    Raises:
        DataError: no model is there.
    """
    from transformers.utils import logging as transformers_logging

    directory = Path(path)
    if not (directory / "config.json").is_file() and not (directory / "modules.json").is_file():
        raise DataError(
            f"{path}: expected a model directory with a config.json, found none; to get one from a run, use "
            "`rotary-foundry export`"
        )
    transformers_logging.set_verbosity_error()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    try:
        # Of an absolute path nothing is looked for on the hub, where `runs/dense` could be somebody's repository.
        model = kind(str(directory.resolve()), local_files_only=True, **arguments)
    except Exception as error:  # transformers, safetensors and tokenizers each raise their own
        raise DataError(f"{path}: cannot be loaded as an encoder: {one_line(error)}") from error
    model.model_card_data.local_files_only = True  # which ColBERT does not pass on
    if not hasattr(model[0], "auto_model"):
        raise DataError(f"{path}: begins with a {type(model[0]).__name__}, where a transformer is wanted")
    check_ids(model.tokenizer, "the model", model[0].auto_model.get_input_embeddings().num_embeddings)
    return model


def longest_text(model: "SentenceTransformer") -> int | None:
    """The most tokens that a retriever takes of a text, special ones included; None if there is no limit.

    PyLate sets ColBERT's `max_seq_length` for the texts it has before it, and that is what it saves.
    """
    from rotary_foundry.interop.positions import most_tokens

    said = None if hasattr(model, "document_length") else model.max_seq_length
    limits = (said, most_tokens(model[0].auto_model.config))
    return min((limit for limit in limits if limit is not None and limit > 0), default=None)  # XLNet's is -1


def check_length(key: str, length: int, least: int, model: "SentenceTransformer") -> None:
    """
    Raises:
        ConfigurationError: the model takes no texts of so many tokens.
    """
    most = longest_text(model)
    if length < least or (most is not None and length > most):
        wanted = f"{least} or more" if most is None else f"{least} to {most}"
        raise ConfigurationError(f"{key}: {wanted} for this model, not {length}")


def report_too_long(config: RetrievalConfig, model: "SentenceTransformer", rows: "Dataset", lengths: "Lengths") -> None:
    """Say how many texts will be cut, or refuse them.

    Raises:
        DataError: there are some, and `long_documents` is refuse.
    """
    for what, queries, key, length in lengths:
        over, count = count_too_long(model.tokenizer, texts(rows, queries), length)
        if over:
            message = f"{over:,} of {count:,} {what} are longer than {key} allows"
            if config.long_documents == "refuse":
                raise DataError(f"{config.data or 'code search'}: {message}; raise it, or take long_documents=truncate")
            print(f"{message}: cut there")


Lengths = tuple[tuple[str, bool, str, int], ...]  # (what, whether queries, the key, tokens with the special ones)


def fit(
    config: RetrievalConfig, model: "SentenceTransformer", rows: "Dataset", loss: "Module", collator: Any = None
) -> Path:
    """Train, and save to `out` what `type(model)(out)` loads; beside it the configuration and the losses.

    As an export, it is written beside its place and then moved there: the next try finds no part of it.

    Args:
        rows: one training example a row, in the columns that the loss wants.
        loss: of sentence-transformers or PyLate, of this model.
        collator: a data collator; none: sentence-transformers'.

    Raises:
        DataError: the loss was not finite, or a weight is not.
    """
    from omegaconf import OmegaConf

    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        new = Path(work) / "new"
        losses = _losses(config, model, rows, loss, collator, new)
        if not all(abs(entry["loss"]) < float("inf") for entry in losses):
            raise DataError(f"the loss was not finite at lr {number(config.lr)}: nothing is saved; take a lower lr")
        if not all(parameter.isfinite().all() for parameter in model.parameters()):  # by an update after the last loss
            raise DataError(f"weights are not finite at lr {number(config.lr)}: nothing is saved; take a lower lr")
        model.save_pretrained(str(new))
        OmegaConf.save(OmegaConf.structured(config), new / "finetune.yaml")
        with (new / "metrics.jsonl").open("w") as stream:
            for entry in losses:
                line = {
                    "batch": entry["step"],
                    "epoch": entry["epoch"],
                    "loss": entry["loss"],
                    "lr": entry["learning_rate"],
                }
                stream.write(json.dumps(line) + "\n")
        new.rename(out)
    return out


def _losses(
    config: RetrievalConfig,
    model: "SentenceTransformer",
    rows: "Dataset",
    loss: "Module",
    collator: Any,
    folder: Path,
) -> list[dict]:
    """Train in place; returns what the Trainer logged of the loss. It makes the folder, and writes nothing there."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.training_args import BatchSamplers
    from transformers import PrinterCallback, TrainerCallback

    class Lines(TrainerCallback):
        """A line now and then, in the place of a bar and of dictionaries."""

        def on_log(self, args, state, control, logs, **_):
            if "loss" in logs:
                print(f"  update {state.global_step:,} of {state.max_steps:,}: loss {logs['loss']:.3f}", flush=True)

    amount, unit = _duration(config.max_duration)
    updates = ceil(amount * ceil(len(rows) / config.global_train_batch_size)) if unit == "ep" else int(amount)
    print(
        f"{len(rows):,} rows, {updates:,} updates of {config.global_train_batch_size}, lr {number(config.lr)}, "
        f"on {model.device}",
        flush=True,
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=amount if unit == "ep" else 1,
        max_steps=-1 if unit == "ep" else int(amount),
        per_device_train_batch_size=config.global_train_batch_size,
        learning_rate=config.lr,
        warmup_ratio=float(config.t_warmup.removesuffix("dur")),
        bf16=config.precision == "amp_bf16",
        use_cpu=model.device.type == "cpu",
        seed=config.seed,
        # A query's own document, a second time in the batch, would be its negative; a teacher's scores know none.
        batch_sampler=BatchSamplers.BATCH_SAMPLER if is_distillation(rows) else BatchSamplers.NO_DUPLICATES,
        save_strategy="no",
        logging_steps=max(1, updates // 20),
        logging_nan_inf_filter=False,  # it puts the losses' mean in the place of one that is no number
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=rows, loss=loss, data_collator=collator, callbacks=[Lines()]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def _duration(text: str) -> tuple[float, str]:
    try:
        amount, unit = float(text[:-2]), text[-2:]
    except ValueError:
        amount, unit = 0.0, ""
    if not 0 < amount < float("inf") or unit not in ("ep", "ba") or (unit == "ba" and amount % 1):
        raise ConfigurationError(f"max_duration: epochs or updates are wanted, such as 1ep or 500ba, not '{text}'")
    return amount, unit


def is_retrieval(path: str | Path) -> bool:
    """Whether a fine-tuning YAML is for a retriever, and not for classifiers.

    Raises:
        ConfigurationError: there is no such file, or it is no YAML.
    """
    return load_key(path, "task") in list(TASKS)


def finetune_retrieval(path: str | Path, overrides: Iterable[str] = ()) -> Path:
    """Train what a YAML with `task: dense_retrieval` or `task: multi_vector` asks for; returns the model's directory.

    Raises:
        ConfigurationError: naming the file and the key.
        DataError: naming what is wrong with the data or the model.
    """
    task = load_key(path, "task")
    if task not in TASKS:
        raise ConfigurationError(f"{path}: task: {' or '.join(TASKS)} is wanted, not '{task}'")
    module = import_module(TASKS[task])
    out = module.train(load_config(path, module.Config, overrides))
    print(f"written to {out}")
    return out
