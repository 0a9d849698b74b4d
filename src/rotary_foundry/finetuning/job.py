"""Run one fine-tuning job in its own process: `python -m rotary_foundry.finetuning.job FOLDER PARENT`.

The folder has `job.json`, which determines the result. The job writes `model/`, the best evaluated model as a Hugging
Face directory with its head. It writes `result.json` last, atomically: a job with this file is finished, and any other
starts from the beginning.

The optimizer is Composer's DecoupledAdamW or AdaFactor, with weight decay on matrices only, as in pretraining. The
published search spaces are for DecoupledAdamW's weight decay; AdamW multiplies it by the learning rate, so that 1e-6
would have no effect. The schedule is Composer's linear one with a warm-up. A job uses one device and shards nothing;
more devices run more jobs.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from composer import Callback, Evaluator, Trainer
from composer.callbacks import EarlyStopper
from composer.core import State, get_precision_context
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from composer.optim import DecoupledAdamW, LinearWithWarmupScheduler
from composer.utils import reproducibility
from datasets import Dataset, load_from_disk
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from rotary_foundry.data.fast_tokenizer import open_fast
from rotary_foundry.finetuning.head_batches import HeadCollate
from rotary_foundry.finetuning.head_models import POINTERS, AnswerModel, ChoiceModel, EntityModel, HeadModel, SpanModel
from rotary_foundry.finetuning.leaderboard import JOB, MODEL, RESULT, write_json
from rotary_foundry.finetuning.metrics import make_metric
from rotary_foundry.finetuning.predictions import write_predictions
from rotary_foundry.interop.huggingface import add_settings_of_4
from rotary_foundry.interop.own_code import copy_own_code, register_own_code
from rotary_foundry.models.in_transformers import check_attention_mask, check_loaded, check_stored, plain_names
from rotary_foundry.optim.adafactor import AdaFactor
from rotary_foundry.optim.decay_groups import decay_groups
from rotary_foundry.utils.errors import DataError, FoundryError, print_error
from rotary_foundry.utils.wording import not_opened

PACKAGES = ("rotary-foundry", "mosaicml", "torch", "transformers", "datasets", "torchmetrics", "seqeval")
CLASSES = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "regression": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
    "choice": transformers.AutoModelForSequenceClassification,  # with one label: the score of a choice
}
PROBLEMS = {"sequence": "single_label_classification", "regression": "regression"}
HEADS = {"choice": ChoiceModel, "answer": AnswerModel, "entities": EntityModel}


def run_job(folder: Path, parent: int | None = None) -> dict:
    """Train, evaluate and save according to `folder/job.json`.

    Args:
        folder: the folder of the job.
        parent: the id of the process that started the job; the job ends if that process ends.

    Returns:
        The content of `result.json`: `score`, the best value of the first metric on the first validation split, or None
        if the loss became NaN or infinite; `metrics` of that evaluation; `evaluations`; versions and seconds.
    """
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    began = time.monotonic()
    reproducibility.seed_all(job["seed"])
    tokenizer, opened = open_parts(job)
    metrics = {name: make_metric(name, job["labels"]) for name in job["metrics"]}
    model: HeadModel | Classifier
    if job["type"] in HEADS:
        model = HEADS[job["type"]](opened, list(metrics.values()))
    else:
        model = Classifier(opened, tokenizer, use_logits=True, eval_metrics=list(metrics.values()))
    loaders = {
        split: _loader(job, split, load_from_disk(str(folder.parents[1] / "data" / split)), tokenizer)
        for split in ("train", *job["splits"], *job["tests"])
    }
    names = {name: type(metric).__name__ for name, metric in metrics.items()}
    best = BestModel(job["splits"], names)
    callbacks: list[Callback] = [best, *([] if parent is None else [Orphaned(parent)])]
    if job["patience"] is not None:
        callbacks.append(EarlyStopper(names[job["metrics"][0]], job["splits"][0], "gt", patience=job["patience"]))
    trainer = Trainer(
        model=model,
        train_dataloader=loaders["train"],
        eval_dataloader=[
            Evaluator(label=split, dataloader=loaders[split], metric_names=list(names.values()))
            for split in job["splits"]
        ],
        optimizers=_optimizer(job, model),
        schedulers=LinearWithWarmupScheduler(t_warmup=job["t_warmup"], alpha_f=job["alpha_f"]),
        max_duration=job["max_duration"],
        eval_interval=job["eval_interval"],
        callbacks=callbacks,
        seed=job["seed"],
        precision=job["precision"],
        device_train_microbatch_size=job["device_train_microbatch_size"],
        progress_bar=False,
    )
    trainer.fit()
    batches = trainer.state.timestamp.batch.value
    if best.weights is not None:
        model.model.load_state_dict(best.weights)
        model.model.save_pretrained(folder / MODEL)
        copy_own_code(job["model"], folder / MODEL)
        tokenizer.save_pretrained(folder / MODEL)
        add_settings_of_4(folder / MODEL)
        for split in job["tests"]:
            file = folder / f"{split.removeprefix('test-')}.json"
            write_predictions(file, job["form"], predict(model, loaders[split], trainer.state), job["labels"])
    trainer.close()
    result = {
        "score": best.score,
        "metrics": best.metrics,
        "best_batch": best.batch,
        "batches": batches,
        "evaluations": best.evaluations,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "seconds": round(time.monotonic() - began, 1),
        "versions": {name: version(name) for name in PACKAGES},
    }
    write_json(folder / RESULT, result)
    return result


def _optimizer(job: dict, model: torch.nn.Module) -> Optimizer:
    groups, betas, decay = decay_groups(model, job["weight_decay"]), tuple(job["betas"]), job["weight_decay"]
    if job["optimizer"] == "adafactor":
        return AdaFactor(groups, lr=job["lr"], beta1=betas[0], weight_decay=decay)
    return DecoupledAdamW(groups, lr=job["lr"], betas=betas, eps=job["eps"], weight_decay=decay)


@torch.inference_mode()
def predict(model: "HeadModel | Classifier", loader: DataLoader, state: State) -> list:
    """Return predictions, as `write_predictions` takes them, for every row of a split without labels."""
    model.eval()
    found: list = []
    for batch in loader:
        batch = state.device.batch_to_device(batch)
        with get_precision_context(state.precision):
            if isinstance(model, HeadModel):
                found += model.predictions(model.forward(batch), batch)
            else:
                ids, outputs = batch.pop("id"), model.model(**batch)
                found += zip(ids, outputs.logits.argmax(-1).tolist(), strict=True)
    return found


def open_parts(job: dict) -> tuple[PreTrainedTokenizerFast, PreTrainedModel | SpanModel]:
    """Open the tokenizer and the model of a job.

    Raises:
        FoundryError: one of them cannot be opened, or the model has no attention mask; names the directory.
    """
    transformers.utils.logging.disable_progress_bar()
    path = Path(job["model"])
    for folder in (path, job["tokenizer"]):
        register_own_code(folder)
    tokenizer = open_fast(job["tokenizer"])
    check_stored(path)
    try:
        model = load_with_head(job)
    except FoundryError:
        raise
    except Exception as error:  # transformers raises many types; each is about the content of the directory
        raise DataError(f"{path}: transformers cannot load a model from it: {not_opened(error)}") from error
    check_attention_mask(path, model.encoder if isinstance(model, SpanModel) else model, tokenizer)
    return tokenizer, model


def load_with_head(job: dict) -> PreTrainedModel | SpanModel:
    """Load the model with a head for the job's labels: its own, or a new one, drawn from torch's generator."""
    labels = job["labels"] or ["LABEL_0"]
    settings: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": PROBLEMS.get(job["type"]),
    }
    config = AutoConfig.from_pretrained(job["model"], local_files_only=True, trust_remote_code=False, **settings)
    if hasattr(config, "reference_compile"):
        config.reference_compile = False  # it would recompile for every length of a batch
    if job["type"] in POINTERS:
        return SpanModel(_loaded(AutoModel, job["model"], config), job["type"], len(labels))
    if not job["new_head"]:
        return _loaded(CLASSES[job["type"]], job["model"], config)
    model = CLASSES[job["type"]].from_config(config, trust_remote_code=False)
    weights = load_file(Path(job["model"]) / "model.safetensors")
    model.load_state_dict({key: weights[key] for key in weights if not key.startswith("classifier.")}, strict=False)
    return model


def _loaded(auto: type, path: str, config: PretrainedConfig) -> PreTrainedModel:
    """Load a model; refuse one whose files lack parts of the encoder."""
    with plain_names(Path(path)) as plain:
        model, loading = auto.from_pretrained(
            plain, config=config, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    check_loaded(Path(path), model, loading)
    return model


class Classifier(HuggingFaceModel):
    """A HuggingFaceModel that passes float32 logits to metrics; torchmetrics' correlations are wrong in bfloat16."""

    def eval_forward(self, batch: Any, outputs: Any = None) -> Tensor:
        return super().eval_forward(batch, outputs).float()


class BestModel(Callback):
    """Keeps all evaluations and, on the CPU, the weights of the best: by the first metric, on the first split.

    It ends the training if the loss is NaN or infinite. Then only this job is lost, not the other points of the grid.
    """

    def __init__(self, splits: list[str], names: dict[str, str]):
        self.splits = splits
        self.names = names
        self.evaluations: list[dict] = []
        self.best: int | None = None  # index in `evaluations`
        self.weights: dict[str, Tensor] | None = None
        self.diverged = False

    @property
    def score(self) -> float | None:
        return None if self.best is None or self.diverged else next(iter(self.metrics.values()))

    @property
    def metrics(self) -> dict[str, float]:
        return {} if self.best is None else self.evaluations[self.best]["metrics"]

    @property
    def batch(self) -> int | None:
        return None if self.best is None else self.evaluations[self.best]["batch"]

    def batch_end(self, state: State, logger: Logger) -> None:
        if not torch.isfinite(state.loss):
            self.diverged = True
            state.stop_training()

    def eval_end(self, state: State, logger: Logger) -> None:
        split = state.dataloader_label
        prefix = "" if split == self.splits[0] else f"{split}/"
        values = {
            prefix + name: state.eval_metrics[split][metric].compute().item() for name, metric in self.names.items()
        }
        if prefix:
            self.evaluations[-1]["metrics"] |= values
            return
        self.evaluations.append({"batch": state.timestamp.batch.value, "metrics": values})
        if self.best is None or next(iter(values.values())) > next(iter(self.metrics.values())):
            self.best = len(self.evaluations) - 1
            self.weights = {key: value.detach().cpu().clone() for key, value in state.model.model.state_dict().items()}


class Orphaned(Callback):
    """Ends a job whose search was killed; otherwise it would run beside a job of the next search in the same folder."""

    def __init__(self, parent: int):
        self.parent = parent

    def batch_end(self, state: State, logger: Logger) -> None:
        if os.getppid() != self.parent:
            sys.exit("the search that started this job has ended")


def _loader(job: dict, split: str, data: Dataset, tokenizer: Any) -> DataLoader:
    train = split == "train"
    return DataLoader(
        data,
        batch_size=job["global_train_batch_size"] if train else job["device_eval_batch_size"],
        shuffle=train,
        generator=torch.Generator().manual_seed(job["seed"]),
        collate_fn=_collate(job, tokenizer),
    )


def _collate(job: dict, tokenizer: Any) -> Callable[[list[dict]], dict]:
    if job["type"] in HEADS:
        return HeadCollate(job["type"], tokenizer.pad_token_id, len(job["labels"]))
    if job["type"] == "token":
        return _PlainDict(transformers.DataCollatorForTokenClassification(tokenizer))
    return _PlainDict(transformers.DataCollatorWithPadding(tokenizer))


class _PlainDict:
    """Converts batches to plain dictionaries; Composer does not move BatchEncodings to a device. Ids stay unchanged."""

    def __init__(self, collate: Callable):
        self.collate = collate

    def __call__(self, rows: list[dict]) -> dict:
        ids = {"id": [row.pop("id") for row in rows]} if "id" in rows[0] else {}
        return dict(self.collate(rows)) | ids


if __name__ == "__main__":
    try:
        run_job(Path(sys.argv[1]), int(sys.argv[2]))
    except FoundryError as error:
        print_error(str(error))
        sys.exit(2)
