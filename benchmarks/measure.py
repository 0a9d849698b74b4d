"""Measure time and memory of a training step or a forward pass.

Times on a shared machine are noisy, so contenders take turns in one process, and the result is the median of the
ratios of their turns. Memory is measured in a separate process for each contender: the peak of its resident set and
swapped memory during one step, above the amount before the step, with the weights loaded.
"""

import multiprocessing
import resource
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import psutil
import torch
from models import BF16, CONTENDERS, Contender, Documents

from rotary_foundry.objectives.masked_lm import IGNORE_INDEX
from rotary_foundry.utils.allocator import keep_freed_memory

MASKED = 0.3


def draw(lengths: list[int], vocab_size: int = 50_000) -> Documents:
    """Make random documents of given lengths, with labels at 30 % of the positions."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, vocab_size, (length,), generator=generator) for length in lengths]
    return Documents(ids, [_labels(document, generator) for document in ids])


def mixed_lengths(documents: int = 12) -> list[int]:
    """Return lengths of a log-normal with a mean near 300, one from the middle of each quantile, at most 1024."""
    quantiles = (torch.arange(documents) + 0.5) / documents
    lengths = torch.exp(5.4 + 0.75 * torch.special.ndtri(quantiles)).clamp(max=1024).int()
    return lengths[torch.randperm(documents, generator=torch.Generator().manual_seed(0))].tolist()


def packed(tokens: int) -> list[int]:
    """Return lengths of documents that fill a row: those of `mixed_lengths`, repeated, with the last one cut."""
    lengths = []
    for length in cycle(mixed_lengths()):
        if tokens <= length:
            return [*lengths, tokens]
        lengths.append(length)
        tokens -= length


def workload(name: str, kind: str, documents: Documents) -> Callable[[], None]:
    """Return a function that runs one kind of work of a contender on some documents.

    `training` is a forward and a backward pass (the optimizer is not part of a contender), `encoding` computes the
    encoder's hidden states, `predicting` the logits of every token.
    """
    return {"training": training, "encoding": encoding, "predicting": predicting}[kind](CONTENDERS[name](), documents)


def training(contender: Contender, documents: Documents) -> Callable[[], None]:
    contender.network.train()
    batch = contender.batch(documents)

    def step() -> None:
        with autocast():
            loss = contender.loss(*batch)
        loss.backward()
        contender.network.zero_grad()

    return step


def encoding(contender: Contender, documents: Documents) -> Callable[[], None]:
    return _without_gradients(contender, contender.encode, documents)


def predicting(contender: Contender, documents: Documents) -> Callable[[], None]:
    return _without_gradients(contender, contender.predict, documents)


def take_turns(workloads: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return each contender's seconds per round, after a warm-up round; none for a contender that exceeds memory."""
    fitting = [name for name, run in workloads.items() if _fits(run)]
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    for _ in range(rounds):
        for name in fitting:
            seconds[name].append(timed(workloads[name]))
    return seconds


def _limit_memory(size: int) -> None:
    """Make torch raise an error above `size` bytes, before the system kills a process."""
    resource.setrlimit(resource.RLIMIT_DATA, (size, resource.RLIM_INFINITY))


def _fits(run: Callable[[], None]) -> bool:
    try:
        run()
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        return False
    return True


def timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def race(names: list[str], kind: str, documents: Documents, rounds: int) -> dict[str, list[float]]:
    """Run `take_turns` of contenders at one kind of work in a separate process, which frees its memory at its end."""
    return in_new_process(_race, names, kind, documents, rounds)


def _race(names: list[str], kind: str, documents: Documents, rounds: int) -> dict[str, list[float]]:
    keep_freed_memory()
    _limit_memory(psutil.virtual_memory().available + psutil.swap_memory().free)  # it counts freed memory that is kept
    return take_turns({name: workload(name, kind, documents) for name in names}, rounds)


def in_new_process(function: Callable, *arguments):
    """Call a function in a new process and return its result. If the process is killed, raise an error, do not hang."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    return statistics.median(above / below for above, below in zip(numerators, denominators, strict=True))


def peak_memory(name: str, kind: str, lengths: list[int], vocab_size: int = 50_000) -> tuple[float, bool]:
    """Return the MiB, swapped included, that a step adds to a process with the weights, and whether memory sufficed."""
    return in_new_process(_peak_memory, name, kind, lengths, vocab_size)


def autocast(cache_enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, BF16, cache_enabled)


def _without_gradients(contender: Contender, compute: Callable, documents: Documents) -> Callable[[], None]:
    contender.network.eval()
    batch = contender.batch(documents)

    def step() -> None:
        # every weight is used once, so a cache of their bf16 copies would not help
        with torch.no_grad(), autocast(cache_enabled=False):
            compute(*batch)

    return step


def _peak_memory(name: str, kind: str, lengths: list[int], vocab_size: int) -> tuple[float, bool]:
    run = workload(name, kind, draw(lengths, vocab_size))
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which is that of making the weights
    before = peak = _in_memory_or_swap()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, _in_memory_or_swap())

    _limit_memory(psutil.virtual_memory().available + psutil.swap_memory().free)
    with ThreadPoolExecutor() as pool:
        pool.submit(watch)
        fits = _fits(run)
        done.set()
    return max(peak, memory_of_this_process("VmHWM")) - before, fits


def _in_memory_or_swap() -> float:
    return memory_of_this_process("VmRSS") + memory_of_this_process("VmSwap")


def memory_of_this_process(kind: str) -> float:
    """Return this process's MiB in memory now (VmRSS), its peak (VmHWM) or swapped (VmSwap). Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))


def _labels(ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.where(torch.rand(len(ids), generator=generator) < MASKED, ids, IGNORE_INDEX)
