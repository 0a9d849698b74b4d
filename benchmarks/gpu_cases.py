"""Run the cases of gpu_proof.py, each by itself so that an error ends only one, and make their networks and batches."""

import gc
import importlib.util
import json
import math
import os
import random
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from rotary_foundry.compat.torch import vary_in_size
from rotary_foundry.models.layers.documents import Documents
from rotary_foundry.objectives.objective import IGNORE_INDEX
from rotary_foundry.recipe.cost import peak_flops
from rotary_foundry.recipe.schema import Recipe
from rotary_foundry.runs.recipes import load_recipe

ROOT = Path(__file__).parents[1]
BF16, FP32 = torch.bfloat16, torch.float32
MASKED = 0.3


class Skipped(Exception):
    """Says why a case is not run here."""


class Proof:
    """Holds the device and sizes of a proof, and its findings."""

    def __init__(self, tiny: bool, seconds: float):
        self.tiny, self.end = tiny, time.monotonic() + seconds
        self.rank, self.ranks, local = (
            int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        self.device = torch.device("cpu" if tiny else f"cuda:{local}")
        self.on_gpu = not tiny
        if self.on_gpu:
            torch.cuda.set_device(self.device)
        if self.ranks > 1:
            backend = "nccl" if self.on_gpu else "gloo"
            distributed.init_process_group(backend, timeout=timedelta(minutes=5))
        self.peak = peak_flops(torch.cuda.get_device_name()) if self.on_gpu else None
        self.findings: list[dict] = []

    def case(self, section: str, name: str, work: Callable[..., dict], *arguments) -> None:
        """Call `work(self, *arguments)` and record the metrics that it returns, its error, or why it was skipped."""
        start = time.monotonic()
        try:
            if self._is_late():
                raise Skipped("the time is up")
            found = {key: value for key, value in work(self, *arguments).items() if value is not None}
        except Skipped as why:
            found = {"skipped": str(why)}
        except Exception as error:
            frame = error.__traceback__
            while frame.tb_next:
                frame = frame.tb_next
            place = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}"
            found = {"failed": f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:400]}"}
            del frame
        self.free()
        finding = {"section": section, "case": name, **found, "seconds": round(time.monotonic() - start, 1)}
        self.findings.append(finding)
        if self.rank == 0:
            print(json.dumps(finding), flush=True)

    def free(self) -> None:
        """Free all memory without references, networks and compiled code included."""
        torch._dynamo.reset()
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _is_late(self) -> bool:
        late = [time.monotonic() > self.end]
        if self.ranks > 1:  # rank 0 decides, since all ranks have to call the same collectives
            distributed.broadcast_object_list(late)
        return late[0]

    def recipe(self, name: str, *overrides: str, eager: bool = False) -> Recipe:
        """Load a recipe (nano's with --tiny), compiled as on a GPU, or eager; in float32 on CPU."""
        kind = "{disable: true}" if eager else "{backend: aot_eager, dynamic: false}" if self.tiny else "null"
        file = ROOT / "yamls/main" / f"{'nano' if self.tiny else name}.yaml"
        precision = [] if self.on_gpu else ["precision=fp32"]
        return load_recipe(file, [f"compile_config={kind}", *precision, *overrides])

    def network(self, recipe: Recipe, sharded: bool = False, sharp: bool = False, **knobs: float) -> nn.Module:
        """Build a network with random weights. `sharp`: large enough that a wrong mask moves the logits."""
        torch.manual_seed(17)
        given = recipe.knobs_of(next(iter(recipe.stages)))
        knobs = {name: given[name] for name in recipe.family.knobs} | knobs
        with self.device, torch.no_grad():
            network = recipe.family.network(recipe.model.shape, knobs, "auto")
            for parameter in network.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0, 1.2 * parameter.shape[1] ** -0.5 if sharp else 0.02)
        if sharded or self.ranks > 1:
            shard(network, recipe, self.device)
        elif not (arguments := recipe.compiled_with(self.device.type)).get("disable"):
            for layer in network.blocks:
                layer.forward = torch.compile(layer.forward, **arguments)
        return network

    def batch(self, vocab_size: int, lengths: list[int], row_length: int, seed: int = 0) -> tuple:
        """Make random documents with labels at 30 % of the tokens, as a network's `forward` takes them."""
        generator = torch.Generator().manual_seed(seed + 1000 * self.rank)
        ids = torch.randint(5, vocab_size, (sum(lengths),), generator=generator)
        labels = ids.where(torch.rand(len(ids), generator=generator) < MASKED, IGNORE_INDEX)
        predicted = (labels != IGNORE_INDEX).nonzero(as_tuple=True)[0]
        ids, labels, predicted = (tensor.to(self.device) for tensor in (ids, labels, predicted))
        cu_seqlens = self.documents(lengths).cu_seqlens
        vary_in_size(cu_seqlens)  # as training does
        return ids, cu_seqlens, row_length, labels, predicted

    def documents(self, lengths: list[int], longest: int | None = None) -> Documents:
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self.device)
        return Documents(cu_seqlens, longest or max(lengths), sum(lengths))

    def loss(self, network: nn.Module, batch: tuple, enabled: bool = True) -> Tensor:
        with torch.autocast(self.device.type, BF16, enabled=enabled and self.on_gpu):
            out = network(*batch)
        return out.cross_entropy / out.tokens

    def ms(self, work: Callable[[], object], warm: int = 2, times: int = 5) -> float:
        """Return the median milliseconds that `work` takes."""
        taken = []
        for _ in range(warm + (1 if self.tiny else times)):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            taken.append((time.perf_counter() - start) * 1e3)
        return round(statistics.median(taken[warm:]), 3)

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def peak_gib(self) -> float | None:
        return round(torch.cuda.max_memory_allocated() / 2**30, 1) if self.on_gpu else None


def shard(network: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Shard a network as training does, over this process alone if there is no other."""
    if importlib.util.find_spec("composer") is None:
        raise Skipped("Composer is not installed, which FSDP is set up with: gpu_wheels.py makes its wheels")
    from rotary_foundry.training import sharding

    if not distributed.is_initialized():
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        backend = "gloo" if device.type == "cpu" else "nccl"
        distributed.init_process_group(backend, rank=0, world_size=1, store=distributed.HashStore())
    sharding.shard(network, recipe, device)


def mixed(rows: int, row_length: int, mean: int, seed: int = 0) -> list[int]:
    """Draw log-normal lengths of documents that fill rows; if the mean is the row length, one document fills a row."""
    if mean == row_length:
        return [row_length] * rows
    draw, lengths = random.Random(seed), []
    for _ in range(rows):
        left = row_length
        while left:
            lengths.append(min(left, max(8, int(draw.lognormvariate(math.log(mean) - 0.5, 1.0)))))
            left -= lengths[-1]
    return lengths


def off(found: Tensor, exact: Tensor) -> float:
    """Return the relative distance of two tensors."""
    return ((found.float() - exact.float()).norm() / exact.float().norm()).item()


def masked_softmax(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None, causal: bool) -> Tensor:
    """Compute attention by its definition; arguments and result are those of `attention`."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    place = torch.arange(documents.tokens, device=q.device)
    ahead = place[:, None] - place
    sees = documents.index[:, None] == documents.index
    if window is not None:
        sees &= ahead.abs() <= window // 2
    if causal:
        sees &= ahead >= 0
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[2] ** -0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~sees, -math.inf).softmax(-1), v)
