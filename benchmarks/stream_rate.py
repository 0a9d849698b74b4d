"""Compare the speed of the training stream (shards read and hashed, rows masked and collated) with the model's.

The rows are those that `make nano` leaves; nano's stages are made longer, so that a loader's start is a small part. The
model is nano in one process with all threads, forward and backward, without its optimizer: faster than any real run.
"""

import time

import torch
from measure import take_turns
from recipe_cost import NANO

from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.data.loaders import RunData
from rotary_foundry.models.composer_model import FoundryModel
from rotary_foundry.recipe import compile_plan
from rotary_foundry.runs.recipes import load_recipe

LONGER = ["batch_size_ramp=null", "duration=4_194_304tok"]
BASE_MICROBATCH = 96  # rows
AS_BASE = ["duration=18_874_368tok", f"global_train_batch_size={BASE_MICROBATCH}"]
AS_BASE += [f"device_train_microbatch_size={BASE_MICROBATCH}"]


def rates(stage: str, num_workers: int) -> tuple[float, float]:
    """Return the tokens per second that a stage's stream delivers, and that the model consumes of its batches."""
    overrides = [f"stages.{stage}.{override}" for override in LONGER]
    recipe = load_recipe(NANO, [*overrides, f"data.num_workers={num_workers}"])
    plan = compile_plan(recipe)
    start = next(segment.start_token for segment in plan.segments if segment.stage == stage)
    data = RunData(recipe, open_corpus(recipe))
    loader = data.train_loader(plan, start)
    began = time.perf_counter()
    tokens = sum(len(batch["input_ids"]) for batch in loader)
    delivered = tokens / (time.perf_counter() - began)

    network = recipe.family.network(recipe.model.shape, plan.at(start).knobs)
    model = FoundryModel(network, data.objectives, stage, cpu_autocast=True)
    batch = next(iter(loader))

    def step() -> None:
        model.loss(model(batch), batch).backward()
        model.zero_grad()

    (seconds,) = take_turns({"step": step}, rounds=5).values()
    return delivered, len(batch["input_ids"]) / torch.tensor(seconds).median().item()


def rate_in_microbatches_of_base(num_workers: int) -> float:
    """Return the tokens per second that the stream of the first stage delivers in microbatches of base's rows.

    The first microbatch, which waits for the start of the workers, is left out.
    """
    overrides = [f"stages.pretrain.{override}" for override in (LONGER[0], *AS_BASE)]
    recipe = load_recipe(NANO, [*overrides, f"data.num_workers={num_workers}"])
    batches = iter(RunData(recipe, open_corpus(recipe)).train_loader(compile_plan(recipe), 0))
    next(batches)
    began = time.perf_counter()
    tokens = sum(len(batch["input_ids"]) for batch in batches)
    return tokens / (time.perf_counter() - began)
