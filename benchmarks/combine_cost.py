"""Measure the cost of each rule for combining the gradients of eight tasks, beside plain training on the same rows.

The model is `yamls/main/roformer_v2_nano.yaml`'s, sharded over one process as in a run. The rows are those of
`python data_prep yamls/tasks/nano.yaml`, whose five tasks become eight: three of them are used twice. An update has a
microbatch of two rows of each task. The updates are made here and not by Composer, so that all have the same rows, and
the rules take turns in one process.

- time: an update's time over that of its neighbour without a rule, and over that of the one with `mean`; medians.
- combining: the time that GradientCombination takes in an update. Without a rule, autograd adds the gradients instead,
  so the two figures differ.
- dealing: the time to find an update's rows in the order and to split its batch by task.
- memory: the peak of an update above that of one without a rule, on documents so short that activations hide nothing;
  in a process in which every large tensor has its own pages (measure.py has the method).
"""

import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from composer.core import Event
from composer.utils import dist
from measure import in_new_process, memory_of_this_process, timed

from rotary_foundry.algorithms.gradient_combination import GradientCombination
from rotary_foundry.data.batches import Batch, split
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.data.loaders import RunData
from rotary_foundry.objectives.multi_task import COMBINE
from rotary_foundry.objectives.objective import IGNORE_INDEX
from rotary_foundry.recipe import compile_plan
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.training.run import Start, build_trainer
from rotary_foundry.utils.allocator import keep_freed_memory

ROOT = Path(__file__).parents[1]
RECIPE, DATA = ROOT / "yamls/main/roformer_v2_nano.yaml", ROOT / "data/nano_tasks"
TASKS, TWICE = ("text", "reviews", "help_pages", "terms", "names"), ("reviews", "terms", "names")
PLAIN = "none"
ROWS_PER_BLOCK = 2
ROUNDS, BATCHES = 5, 8


@dataclass
class Costs:
    """Holds the measurements. The keys are the rules; PLAIN stands for training without a rule."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # of whole updates
    combining: dict[str, list[float]] = field(default_factory=dict)  # seconds of combining in these updates
    memory: dict[str, float] = field(default_factory=dict)  # peak above PLAIN's, in gradients of the shared parameters
    dealing: float = 0.0  # seconds per update
    delivered: float = 0.0  # tokens per second, by the loader
    consumed: float = 0.0  # tokens per second, in updates without a rule


class Updates:
    """Makes updates of the same rows of eight tasks, under any rule.

    Args:
        folder: an empty folder, for the data and the run.
    """

    def __init__(self, folder: Path):
        for name in ("tokenizer", *TASKS):
            shutil.copytree(DATA / name, folder / "data" / name)
        for name in TWICE:
            shutil.copytree(DATA / name, folder / "data" / f"{name}_again")
        sources = [*TASKS, *(f"{name}_again" for name in TWICE)]
        objective = (
            f"{{name: multi_task, combine: mean, rows_per_block: {ROWS_PER_BLOCK}, input_noise: 0.15, "
            "mlm_probability: 0.15, eval_mlm_probability: 0.15, mask_share: 0.8, random_share: 0.1, whole_words: true}"
        )
        of_stage = {
            "objective": objective,
            "mixture": f"{{{', '.join(f'{source}: 1.0' for source in sources)}}}",
            "global_train_batch_size": 64,  # 32 blocks; the benchmark takes one block of each task
            "duration": f"{BATCHES}ba",
            "residual_scale": 1,
        }
        overrides = [f"data.local={folder}/data", f"data.sources=[{', '.join(sources)}]", f"runs_folder={folder}/runs"]
        recipe = load_recipe(RECIPE, [*overrides, *(f"stages.pretrain.{key}={of_stage[key]}" for key in of_stage)])
        dist.initialize_dist("cpu", timeout=60)
        self.data = RunData(recipe, open_corpus(recipe))
        self.plan = compile_plan(recipe)
        self.trainer = build_trainer(recipe, self.data, RunFolder(folder / "run"), Start(self.plan, [], None))
        self.state = self.trainer.state
        (self.combination,) = (one for one in self.state.algorithms if isinstance(one, GradientCombination))
        self.combination.apply(Event.FIT_START, self.state, None)
        self.microbatches = self._of_each_task()
        assert len(self.microbatches) == len(sources)

    def _of_each_task(self) -> list[Batch]:
        batches = iter(self.data.train_loader(self.plan, 0))
        found: dict[str, Batch] = {}
        while len(found) < len(self.data.tasks):
            for microbatch in split(next(batches), ROWS_PER_BLOCK):
                if len(microbatch["row_sources"]) == ROWS_PER_BLOCK:
                    found.setdefault(microbatch["row_sources"][0], microbatch)
        return list(found.values())

    def make(self, rule: str) -> tuple[float, float]:
        """Make an update; return its seconds, and those of combining."""
        state, spent = self.state, 0.0

        def act(event: Event) -> None:
            nonlocal spent
            if rule != PLAIN:
                spent += timed(lambda: self.combination.apply(event, state, None))

        state.model.objective.combine = "mean" if rule == PLAIN else rule
        start = time.perf_counter()
        rows = ("row_sources", "row_predicted")
        state.batch = {key: [row for batch in self.microbatches for row in batch[key]] for key in rows}
        units = sum(state.batch["row_predicted"])
        act(Event.BATCH_START)
        for microbatch in self.microbatches:
            state.batch, state.outputs = microbatch, state.model(microbatch)
            loss = state.model.loss(state.outputs, microbatch)
            (loss * (sum(microbatch["row_predicted"]) / units)).backward()
            act(Event.AFTER_BACKWARD)
        act(Event.AFTER_TRAIN_BATCH)
        state.optimizers[0].step()
        state.optimizers[0].zero_grad()
        return time.perf_counter() - start, spent

    @property
    def gradient_bytes(self) -> int:
        return sum(param.numel() * param.element_size() for param in self.combination.shared)


def costs() -> Costs:
    """Measure times and memory, each in a separate process."""
    measured = in_new_process(_times)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)  # glibc reads it when a process starts
    try:
        measured.memory = in_new_process(_memory)
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]
    return measured


def _times() -> Costs:
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        updates = Updates(Path(folder))
        measured = Costs()
        for turn in range(ROUNDS + 1):
            for rule in (PLAIN, *COMBINE):
                seconds, combining = updates.make(rule)
                if turn:
                    measured.seconds.setdefault(rule, []).append(seconds)
                    measured.combining.setdefault(rule, []).append(combining)
        tokens = sum(len(microbatch["input_ids"]) for microbatch in updates.microbatches)
        measured.consumed = tokens / statistics.median(measured.seconds[PLAIN])
        measured.dealing, measured.delivered = _dealing(updates)
    return measured


def _dealing(updates: Updates) -> tuple[float, float]:
    """Return the seconds to deal an update of eight blocks, and the tokens per second that the loader delivers."""
    loader = updates.data.train_loader(updates.plan, 0)
    start = time.perf_counter()
    batches = list(islice(loader, BATCHES))
    delivered = sum(len(batch["input_ids"]) for batch in batches) / (time.perf_counter() - start)
    rows = len(updates.microbatches) * ROWS_PER_BLOCK
    order = loader.dataset.order
    finding = [timed(lambda first=first: order.stretch(first, rows)) for first in range(0, 50 * rows, rows)]
    splitting = [timed(lambda batch=batch: split(batch, ROWS_PER_BLOCK)) for batch in batches]
    share = rows / len(batches[0]["row_sources"])
    return statistics.median(finding) + share * statistics.median(splitting), delivered


def _memory() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        updates = Updates(Path(folder))
        updates.microbatches = [_shortest_document(batch) for batch in updates.microbatches]
        updates.make("mean")  # the first update allocates what all later ones keep
        peaks: dict[str, list[float]] = {}
        for _ in range(3):
            for rule in (PLAIN, *COMBINE):
                Path("/proc/self/clear_refs").write_text("5")  # resets the peak
                before = memory_of_this_process("VmRSS")
                updates.make(rule)
                peaks.setdefault(rule, []).append(memory_of_this_process("VmHWM") - before)
        mebibytes = updates.gradient_bytes / 2**20
    return {
        rule: (statistics.median(of_rule) - statistics.median(peaks[PLAIN])) / mebibytes
        for rule, of_rule in peaks.items()
    }


def _shortest_document(microbatch: Batch) -> Batch:
    """Return the shortest document of a microbatch in which something is predicted, as a microbatch."""
    starts = microbatch["cu_seqlens"].tolist()
    targets, labels = microbatch["targets"], microbatch["labels"]
    for place in microbatch["cu_seqlens"].diff().argsort().tolist():
        tokens, here = slice(starts[place], starts[place + 1]), targets[:, 0] == place
        predicted = int(here.any()) + int((labels[tokens] != IGNORE_INDEX).sum())
        if predicted:
            of_document = targets[here] * [0, 1, 1, 1]  # the document's number becomes 0
            return microbatch | {
                "input_ids": microbatch["input_ids"][tokens],
                "labels": labels[tokens],
                "predicted": (labels[tokens] != IGNORE_INDEX).nonzero(as_tuple=True)[0],
                "allowed": microbatch["allowed"][tokens],
                "targets": of_document,
                "cu_seqlens": torch.tensor([0, tokens.stop - tokens.start], dtype=torch.int32),
                "lengths": [tokens.stop - tokens.start],
                "row_sources": microbatch["row_sources"][:1],
                "row_predicted": [predicted],
            }
    raise ValueError(f"nothing is predicted in a microbatch of {microbatch['row_sources'][0]}")
