"""Train as others do, on the corpus, shape and cores of ours; time_to_loss.py starts this file with torchrun.

    torchrun --nproc-per-node 2 benchmarks/their_training.py packed OUT SEED

- packed, padded: transformers' Trainer and its ModernBERT, as examples/pytorch/language-modeling/run_mlm.py sets them
  up. packed joins all documents and cuts them into blocks of 1,024 tokens, the script's default. padded is its
  `--line_by_line`, with a document of our rows of 1,024 (all of a short one, a piece of a long one) for a line, padded
  to the longest of its batch.
- concatenated: LLM Foundry's way for a decoder. Documents are joined and cut into rows of 1,024, without a document
  mask. Composer's Trainer trains transformers' Llama as a HuggingFaceModel with DecoupledAdamW.

The documents are the tokens of our rows, so tokenizing takes no time. The peak rate, the warm-up and decay, the share
of masked tokens and the number of tokens are those of our recipe, and the rows per update those of its largest segment;
the rest is theirs. They were chosen for ours, and others were not tried for theirs. Models are saved as transformers
saves them, each in a folder named for the tokens trained on. `times.json` has the seconds of training until each of
them, without the start and without saving.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from composer import Callback, Logger, State
from composer import Trainer as ComposerTrainer
from composer.algorithms import GradientClipping
from composer.models import HuggingFaceModel
from composer.optim import CosineAnnealingWithWarmupScheduler, DecoupledAdamW
from composer.utils import dist
from models import BF16
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaForCausalLM,
    ModernBertForMaskedLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import ModelOutput

from rotary_foundry.data.rows import decode_row
from rotary_foundry.data_prep.inspection.shard_folder import ShardFolder
from rotary_foundry.recipe import compile_plan
from rotary_foundry.recipe.plan import Segment
from rotary_foundry.recipe.schema import Recipe
from rotary_foundry.runs.recipes import load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = {
    "packed": ROOT / "yamls/main/nano.yaml",
    "padded": ROOT / "yamls/main/nano.yaml",
    "concatenated": ROOT / "yamls/main/llama_nano.yaml",
}
SAVES = 12  # models that are saved, at equal numbers of tokens


class Clock:
    """Counts the seconds of training, without those of saving; saves the model every `every` tokens, and at the end."""

    def __init__(self, out: Path, every: float):
        self.out, self.every = out, every
        self.tokens, self.paused, self.began = 0, 0.0, time.perf_counter()
        self.times: dict[int, float] = {}

    def end_update(self, tokens: int, model: nn.Module) -> None:
        """Count an update of `tokens` tokens on this rank."""
        counted = torch.tensor([tokens])
        dist.all_reduce(counted)
        before, self.tokens = self.tokens // self.every, self.tokens + counted.item()
        if self.tokens // self.every != before:
            self.save(model)

    def save(self, model: nn.Module) -> None:
        """Save the model unless it was saved after the last update."""
        if self.tokens in self.times:
            return
        now = time.perf_counter()
        self.times[self.tokens] = now - self.began - self.paused
        if dist.get_global_rank() == 0:
            model.save_pretrained(self.out / f"{self.tokens}")
            (self.out / "times.json").write_text(json.dumps(self.times, indent=1))
        dist.barrier()
        self.paused += time.perf_counter() - now


@dataclass(frozen=True)
class Task:
    """A model to train, and its data. `recipe` is our recipe; `segment` is the largest of its first stage."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    examples: list[dict]
    recipe: Recipe
    segment: Segment
    out: Path
    seed: int


def main(way: str, out: Path, seed: int) -> None:
    recipe = load_recipe(RECIPES[way], [])
    segments = [segment for segment in compile_plan(recipe).segments if segment.stage == "pretrain"]
    segment = max(segments, key=lambda segment: segment.end_token - segment.start_token)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / recipe.data.local / "tokenizer")
    knobs = {name: schedule.end for name, schedule in segment.knobs.items()}
    config = recipe.family.huggingface.write_config(recipe.model.shape, knobs, tokenizer, segment.row_length)
    set_seed(seed)
    if way == "padded":
        examples = [document.tolist() for document in documents(recipe, segment.row_length)]
    else:
        examples = blocks(documents(recipe, longest(recipe)), segment.row_length)
    train = with_composer if way == "concatenated" else with_transformers
    train(Task(config, tokenizer, [{"input_ids": ids} for ids in examples], recipe, segment, out, seed))


def with_transformers(task: Task) -> None:
    segment = task.segment
    rate, tokens = segment.learning_rate, segment.learning_rate.end_token
    updates = tokens // (segment.rows * mean_length(task.examples))
    arguments = TrainingArguments(
        output_dir=str(task.out),
        max_steps=math.ceil(updates),
        per_device_train_batch_size=segment.rows // dist.get_world_size(),
        learning_rate=rate.peak,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=round(updates * rate.warmup / tokens),
        seed=task.seed,
        bf16=BF16,
        use_cpu=True,
        save_strategy="no",
        logging_steps=10,
        disable_tqdm=True,
        report_to=[],
    )
    collator = DataCollatorForLanguageModeling(task.tokenizer, mlm_probability=task.recipe.objective["mlm_probability"])
    clock = Clock(task.out, tokens / SAVES)

    class Saving(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            clock.began = time.perf_counter()

        def on_step_end(self, *_: object, model: nn.Module, **__: object) -> None:
            clock.end_update(counted.pop(0), model)  # the next batch is collated already

        def on_train_end(self, *_: object, model: nn.Module, **__: object) -> None:
            clock.save(model)

    counted: list[int] = []

    def collate(batch: list[dict]) -> dict[str, Tensor]:
        counted.append(sum(len(one["input_ids"]) for one in batch))
        return collator(batch)

    Trainer(ModernBertForMaskedLM(task.config), arguments, collate, task.examples, callbacks=[Saving()]).train()


class Autocast(HuggingFaceModel):
    """Computes in bf16 as ours does; Composer refuses amp_bf16 on a CPU."""

    def forward(self, batch: dict[str, Tensor]) -> ModelOutput:
        with torch.autocast("cpu", torch.bfloat16, BF16):
            return super().forward(batch)


def with_composer(task: Task) -> None:
    segment = task.segment
    rate, tokens = segment.learning_rate, segment.learning_rate.end_token
    model = Autocast(LlamaForCausalLM(task.config), task.tokenizer)
    clock = Clock(task.out, tokens / SAVES)

    class Saving(Callback):
        def fit_start(self, state: State, logger: Logger) -> None:
            clock.began = time.perf_counter()

        def batch_end(self, state: State, logger: Logger) -> None:
            clock.end_update(state.batch["input_ids"].numel(), model.model)

        def fit_end(self, state: State, logger: Logger) -> None:
            clock.save(model.model)

    rows = segment.rows // dist.get_world_size()
    given = task.recipe.optimizer
    optimizer = DecoupledAdamW(model.parameters(), rate.peak, given.betas, given.eps, rate.peak * given.weight_decay)
    ComposerTrainer(
        model=model,
        train_dataloader=DataLoader(
            task.examples,
            rows,
            sampler=dist.get_sampler(task.examples, shuffle=True, drop_last=True),
            collate_fn=as_labelled,
        ),
        max_duration=f"{tokens // (segment.rows * segment.row_length)}ba",
        optimizers=optimizer,
        schedulers=CosineAnnealingWithWarmupScheduler(f"{rate.warmup / tokens}dur", alpha_f=rate.alpha_f),
        algorithms=[GradientClipping("norm", given.max_grad_norm)],
        callbacks=[Saving()],
        precision="fp32",
        device="cpu",
        device_train_microbatch_size=rows,
        progress_bar=False,
        seed=task.seed,
    ).fit()


def as_labelled(batch: list[dict]) -> dict[str, Tensor]:
    ids = torch.tensor([one["input_ids"] for one in batch])
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}


def mean_length(examples: list[dict]) -> float:
    return sum(len(example["input_ids"]) for example in examples) / len(examples)


def longest(recipe: Recipe) -> int:
    """Return the length of the longest rows that are prepared, in which most documents are whole."""
    folders = (ROOT / recipe.data.local / recipe.data.sources[0]).iterdir()
    return max(int(folder.name) for folder in folders if folder.name.isdigit())


def documents(recipe: Recipe, length: int) -> Iterator[np.ndarray]:
    """Yield the documents of the training rows of a length, with their frames; longer ones come in pieces."""
    for source in recipe.data.sources:
        folder = ShardFolder(ROOT / recipe.data.local / source / f"{length}" / "train")
        for row in chain.from_iterable(map(folder.rows, folder.shards)):
            yield from decode_row(row)


def blocks(of: Iterator[np.ndarray], length: int) -> list[list[int]]:
    """Join documents and cut them into blocks; the last tokens, fewer than a block, are left out."""
    joined = np.concatenate(list(of))
    return joined[: len(joined) // length * length].reshape(-1, length).tolist()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
