"""The keys of a `yamls/finetune/*.yaml` for classifiers, and the checks that need no data and no torch.

A file has any number of tasks by name. A task has its data and the settings that differ from the shared ones; those are
keys of the file itself. So GLUE is one file with nine short entries, and a user's own task is a file with one entry.
Keys that exist in Composer's Trainer, optimizers and schedulers have the same names here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rotary_foundry.data.rows import SHORTEST
from rotary_foundry.data_prep.labelled.data_config import (
    FORMS,
    LONG_DOCUMENTS,
    OF_ROWS,
    PACKAGES,
    DataConfig,
    columns_complaint,
)
from rotary_foundry.models.config_json import find_family_of
from rotary_foundry.recipe.loading import AS_WRITTEN, load_config, refuse
from rotary_foundry.utils.wording import nearest

OPTIMIZERS = "decoupled_adamw", "adafactor"
SPAN_TYPES = "answer", "entities"  # types of task with a head that transformers does not have
METRICS = {  # by type of task; the first is the default
    "sequence": ("accuracy", "f1", "macro_f1", "mcc"),
    "regression": ("spearman", "pearson"),
    "token": ("entity_f1", "word_accuracy"),
    "choice": ("choice_accuracy",),
    "answer": ("exact_match", "answer_f1"),
    "entities": ("span_f1",),
}
TIME = re.compile(r"[1-9]\d*(ep|ba)")
PART = re.compile(r"(0|0?\.\d+)dur")  # a part of the whole training
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of a file or folder
MAX_SEED = 2**32 - 1  # numpy's and Composer's


@dataclass
class SearchConfig:
    """The grid. Every combination of its values is tried."""

    lr: list[float] = field(default_factory=list)  # the peak
    weight_decay: list[float] = field(default_factory=list)  # decoupled: not multiplied by the learning rate
    max_duration: list[str] = field(default_factory=list)  # 3ep, 500ba
    global_train_batch_size: list[int] = field(default_factory=list)


@dataclass
class TaskConfig:
    """A task; settings that it omits are taken from the file."""

    data: DataConfig = field(default_factory=DataConfig)
    type: str = "sequence"  # or one of METRICS; see docs/finetuning.md
    labels: list[str] = field(default_factory=list)  # in the order of their numbers; the training data's if empty
    metrics: list[str] = field(default_factory=list)  # the first selects the best model
    search: SearchConfig = field(default_factory=SearchConfig)
    eval_interval: str | None = None
    max_seq_len: int | None = None  # in tokens
    init_from_task: str | None = None  # start from the best model of this task, with a new head


@dataclass
class FinetuneConfig:
    """A search over grids and seeds. Paths are relative to the working directory."""

    model: str  # a Hugging Face directory, such as runs/nano/export
    tasks: dict[str, TaskConfig]
    search: SearchConfig
    task: Any = field(default=None, metadata=AS_WRITTEN)  # one of the tasks, or several; all if not given
    data_path: str | None = None  # for tasks without their own path
    tokenizer: str | None = None  # a directory; the model's if not given
    out: str | None = None  # the folder of results; runs/finetune/<the model's name> if not given
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    search_seeds: int = 1  # seeds for each point of the grid; the best point is run with all seeds
    max_seq_len: int | None = None  # in tokens; the model's own limit if not given
    long_documents: str = "truncate"  # or refuse
    optimizer: str = "decoupled_adamw"  # or adafactor, whose lr is a fraction of each parameter's size
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])  # adafactor uses only the first
    eps: float = 1e-6
    t_warmup: str = "0.06dur"
    alpha_f: float = 0.0  # the last learning rate as a fraction of the peak
    eval_interval: str = "1ep"
    patience: str | None = None  # EarlyStopper's: training ends after this time without a better score
    precision: str | None = None  # Composer's; amp_bf16 on a GPU and fp32 elsewhere if not given
    device_train_microbatch_size: Any = None  # a number or, on GPUs, auto; the whole batch if not given
    device_eval_batch_size: int = 64
    jobs: int | None = None  # in parallel; null: one per GPU, or one on a CPU

    @property
    def folder(self) -> Path:
        return Path(self.out or f"runs/finetune/{re.sub(r'[^A-Za-z0-9_.-]+', '-', self.model.strip('/'))}")

    def chosen(self) -> list[str]:
        """Return the tasks to run; a task that starts from another one of them comes after it."""
        wanted = [self.task] if isinstance(self.task, str) else list(self.task or self.tasks)
        ordered: list[str] = []
        while wanted:
            name = wanted.pop(0)
            if self.tasks[name].init_from_task in wanted:
                wanted.append(name)
            elif name not in ordered:
                ordered.append(name)
        return ordered

    def of(self, name: str) -> TaskConfig:
        """Return a task with the file's shared settings filled in."""
        task = self.tasks[name]
        search = SearchConfig(
            **{
                key.name: getattr(task.search, key.name) or getattr(self.search, key.name)
                for key in fields(task.search)
            }
        )
        data = DataConfig(**{**vars(task.data), "path": task.data.path or self.data_path})
        metrics = task.metrics or [METRICS[task.type][0]]
        interval, length = task.eval_interval or self.eval_interval, task.max_seq_len or self.max_seq_len
        return TaskConfig(data, task.type, task.labels, metrics, search, interval, length, task.init_from_task)


def load_finetune_config(path: str | Path, overrides: Iterable[str] = ()) -> FinetuneConfig:
    """Read and check a fine-tuning YAML.

    Raises:
        ConfigurationError: names the file and the key.
    """
    config = load_config(path, FinetuneConfig, overrides)
    refuse(path, _problems(config))
    return config


def _problems(config: FinetuneConfig) -> Iterable[tuple[str, str]]:
    """Yield (key, what was expected and what was found). The caller reports only the first."""
    chosen = [config.task] if isinstance(config.task, str) else config.task
    if not config.tasks:
        yield "tasks", "expected at least one task, got none"
    if chosen is not None and not (
        isinstance(chosen, list) and chosen and all(isinstance(name, str) for name in chosen)
    ):
        yield "task", f"expected a task or a list of tasks, got {config.task!r}"
    for name in chosen or ():
        if name not in config.tasks:
            yield "task", f"no task '{name}'; there are {', '.join(config.tasks)}"
    for name, task in config.tasks.items():
        yield from _task_problems(config, name, task)
    if Path(config.model).is_dir() and not (Path(config.model) / "config.json").is_file():
        yield (
            "model",
            f"{config.model} has no config.json; to get a model directory from a run, use `rotary-foundry export`",
        )
    elif Path(config.model).is_dir() and (family := find_family_of(Path(config.model))) is not None and family.causal:
        yield (
            "model",
            f"{config.model} is a {family.title}, a decoder; fine-tuning serves encoders. `rotary-foundry evaluate` "
            "measures decoders",
        )
    if len(set(config.seeds)) < len(config.seeds) or not config.seeds:
        yield "seeds", f"expected at least one seed and no duplicates, got {config.seeds}"
    if not all(0 <= seed <= MAX_SEED for seed in config.seeds):
        yield "seeds", f"expected integers from 0 to {MAX_SEED}, got {config.seeds}"
    if not 1 <= config.search_seeds <= len(config.seeds):
        yield "search_seeds", f"expected 1 to {len(config.seeds)}, the number of seeds; got {config.search_seeds}"
    for key, task in [("", config), *((f"tasks.{name}.", task) for name, task in config.tasks.items())]:
        if task.max_seq_len is not None and task.max_seq_len < SHORTEST:
            yield (
                f"{key}max_seq_len",
                f"{task.max_seq_len} is too short; expected at least {SHORTEST}: [CLS], a token and [SEP]",
            )
    if config.optimizer not in OPTIMIZERS:
        yield "optimizer", f"expected one of {', '.join(OPTIMIZERS)}, got '{config.optimizer}'"
    if config.long_documents not in LONG_DOCUMENTS:
        yield "long_documents", f"expected truncate or refuse, got '{config.long_documents}'"
    if len(config.betas) != 2 or not all(0 <= beta < 1 for beta in config.betas):
        yield "betas", f"expected two numbers of at least 0 and below 1, got {config.betas}"
    if config.eps <= 0:
        yield "eps", f"expected a number above 0, got {config.eps}"
    if not PART.fullmatch(config.t_warmup) and not re.fullmatch(r"\d+(ba|ep)", config.t_warmup):
        yield "t_warmup", f"expected a time such as 0.06dur or 50ba, got '{config.t_warmup}'"
    if not 0 <= config.alpha_f <= 1:
        yield "alpha_f", f"expected a fraction of the peak from 0 to 1, got {config.alpha_f}"
    for key in ("eval_interval", "patience"):
        value = getattr(config, key)
        if value is not None and not TIME.fullmatch(value):
            yield key, f"expected epochs or batches, as in 1ep or 100ba, got '{value}'"
    size = config.device_train_microbatch_size
    if size not in (None, "auto") and (type(size) is not int or size < 1):
        yield "device_train_microbatch_size", f"expected auto or an integer of at least 1, got {size!r}"
    for key in ("device_eval_batch_size", "jobs"):
        value = getattr(config, key)
        if value is not None and value < 1:
            yield key, f"expected an integer of at least 1, got {value}"


def _task_problems(config: FinetuneConfig, name: str, task: TaskConfig) -> Iterable[tuple[str, str]]:
    key = f"tasks.{name}"
    if not re.fullmatch(NAME, name):
        yield key, "the name becomes a folder; use only letters, digits, '_', '-' and '.'"
    if task.type not in METRICS:
        yield f"{key}.type", f"expected one of {', '.join(METRICS)}, got '{task.type}'"
        return
    for metric in task.metrics:
        if metric not in METRICS[task.type]:
            yield (
                f"{key}.metrics",
                f"type {task.type} has no metric '{metric}'; there are {', '.join(METRICS[task.type])}",
            )
    if task.labels and task.type == "regression":
        yield f"{key}.labels", "a regression predicts numbers and has no labels; remove them, or set type: sequence"
    if task.labels and task.type in ("choice", "answer"):
        yield f"{key}.labels", f"a task of type {task.type} has no labels; remove them"
    if len(set(task.labels)) < len(task.labels):
        yield f"{key}.labels", f"expected different labels, got {task.labels}; remove the duplicates"
    if complaint := columns_complaint(task.data, most=1 if task.type == "token" else 2):
        yield f"{key}.data.text", complaint
    form = task.data.form
    if form is not None and form not in FORMS:
        yield f"{key}.data.form", f"'{form}' is not known; {nearest(form, FORMS)}"
    elif form is not None and FORMS[form] != task.type:
        yield f"{key}.type", f"expected {FORMS[form]}, the type of data.form={form}, got {task.type}"
    elif form is None and task.type in FORMS.values() and task.type != "sequence":
        yield f"{key}.data.form", f"type {task.type} needs one of {', '.join(FORMS)}, got none"
    if form in PACKAGES and config.of(name).data.path is None:
        yield f"{key}.data.path", f"expected the folder in which the package of {form} is unpacked, got none"
    if task.data.test and form in (None, *OF_ROWS, *PACKAGES):
        yield f"{key}.data.test", "predictions are written only for data in a form of CLUE; remove it"
    for file in task.data.test:
        if not re.fullmatch(NAME, file) or file in ("job", "result"):
            yield f"{key}.data.test", f"'{file}' becomes a file; use another name of letters, digits, '_', '-' and '.'"
    if not task.data.validation:
        yield f"{key}.data.validation", "expected at least one split, got none"
    yield from _search_problems(f"{key}.search", config.of(name).search)
    if task.eval_interval is not None and not TIME.fullmatch(task.eval_interval):
        yield f"{key}.eval_interval", f"expected epochs or batches, as in 1ep or 100ba, got '{task.eval_interval}'"
    start, seen = task.init_from_task, {name}
    while start is not None:
        if start not in config.tasks:
            yield f"{key}.init_from_task", f"no task '{start}'; there are {', '.join(config.tasks)}"
            return
        if start in seen:
            yield f"{key}.init_from_task", "tasks start from each other in a circle; remove one `init_from_task`"
            return
        if config.tasks[start].type in SPAN_TYPES and task.type not in SPAN_TYPES:
            yield f"{key}.init_from_task", f"cannot start from {start}, of type {config.tasks[start].type}; remove it"
            return
        seen.add(start)
        start = config.tasks[start].init_from_task


def _search_problems(key: str, search: SearchConfig) -> Iterable[tuple[str, str]]:
    for name, wanted, valid in (
        ("lr", "numbers above 0", lambda value: value > 0),
        ("weight_decay", "numbers of at least 0", lambda value: value >= 0),
        ("max_duration", "epochs or batches, as in 3ep or 500ba", TIME.fullmatch),
        ("global_train_batch_size", "numbers of at least 1", lambda value: value >= 1),
    ):
        values = getattr(search, name)
        if not values or not all(map(valid, values)):
            yield f"{key}.{name}", f"expected a list of {wanted}, got {values}; set it for this task or for all"
        if len(set(values)) < len(values):
            yield f"{key}.{name}", f"expected different values, got {values}; remove the duplicates"
