"""Define the sections of gpu_proof.py: what each measures, and at which sizes."""

import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch
from gpu_cases import BF16, FP32, MASKED, ROOT, Proof, Skipped, masked_softmax, mixed, off
from torch import Tensor, nn
from torch._dynamo.utils import counters

from rotary_foundry.models.layers.attention import attention
from rotary_foundry.models.layers.attention_flash import flash_attn_is_installed
from rotary_foundry.models.layers.cross_entropy import _of_chunk, linear_cross_entropy
from rotary_foundry.models.layers.documents import Documents
from rotary_foundry.models.modernbert.huggingface_config import to_huggingface
from rotary_foundry.recipe.compilation import compile_plan
from rotary_foundry.recipe.cost import memory

OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
LENGTHS = ([130, 130, 400, 3], [64], [900, 1, 300, 20], [5] * 77, [2048])


def gradient(network: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def environment(proof: Proof) -> None:
    proof.case("environment", "versions", versions)
    tokens, unit = (64, 16) if proof.tiny else (96 * 1024, 768)
    large = 64 if proof.tiny else 8192
    products = ((tokens, 3 * unit, unit), (tokens, unit, unit), (tokens, unit, 3 * unit // 2), (3 * unit, unit, tokens))
    for sizes in ((large, large, large), *products):
        proof.case("environment", " x ".join(map(str, sizes)), rate_of_product, *sizes)


def versions(proof: Proof) -> dict:
    names = ("triton", "transformers", "composer", "flash_attn", "flash_attn_interface")
    found = {name: importlib.util.find_spec(name) is not None for name in names}
    of_gpu = {}
    if proof.on_gpu:
        properties = torch.cuda.get_device_properties(proof.device)
        of_gpu = {"gpu": properties.name, "gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return {"torch": torch.__version__, "python": platform.python_version(), "ranks": proof.ranks, **of_gpu, **found}


def rate_of_product(proof: Proof, m: int, n: int, k: int) -> dict:
    left, right = (torch.randn(size, device=proof.device).to(BF16) for size in ((m, k), (k, n)))
    return {"tflops": round(2 * m * n * k / proof.ms(lambda: left @ right) / 1e9, 1)}


def correctness(proof: Proof) -> None:
    on_gpu = [("varlen", BF16), ("flash", BF16), ("sdpa", BF16), ("sdpa", FP32)]
    for implementation, dtype in on_gpu if proof.on_gpu else [("sdpa", FP32)]:
        for causal, grouped in product((False, True), repeat=2):
            name = f"{implementation}, {str(dtype)[6:]}{', causal' * causal}{', grouped queries' * grouped}"
            proof.case("correctness", name, attention_off, implementation, dtype, causal, grouped)
    proof.case("correctness", "chunk of the loss", chunk_off)
    proof.case("correctness", "step", step_off)


def attention_off(proof: Proof, implementation: str, dtype: torch.dtype, causal: bool, grouped: bool) -> dict:
    """Return the largest distance of output and gradients from masked softmax in float32, for both kinds of layer."""
    if implementation == "flash" and not flash_attn_is_installed():
        raise Skipped("flash-attn is not installed")
    found = {}
    for name, window in (("error_global", None), ("error_window", 128)):
        errors = []
        for lengths in LENGTHS[: 2 if proof.tiny else None]:
            documents = proof.documents(lengths)
            heads = (4, 2, 2, 4) if grouped else (4, 4, 4, 4)
            q, k, v, grad = (torch.randn(documents.tokens, n, 64, device=proof.device).to(dtype) for n in heads)
            ours, exact = ([x.to(kind).requires_grad_() for x in (q, k, v)] for kind in (dtype, FP32))
            out = attention(*ours, documents, window, implementation, causal)
            expected = masked_softmax(*exact, documents, window, causal)
            gradients = zip(
                torch.autograd.grad(out, ours, grad), torch.autograd.grad(expected, exact, grad.float()), strict=True
            )
            errors += [off(out, expected), *(off(*pair) for pair in gradients)]
        found[name] = max(errors) if all(map(math.isfinite, errors)) else math.inf
    return found


def chunk_off(proof: Proof) -> dict:
    """Return the distance of the compiled chunk of the loss from the eager one."""
    tokens, words = (8, 64) if proof.tiny else (1332, 50_368)
    products = torch.randn(tokens, words, device=proof.device).to(BF16)
    right = torch.randint(words, (tokens, 1), device=proof.device)
    compiled = torch.compile(_of_chunk, dynamic=True, backend="aot_eager" if proof.tiny else "inductor")
    with torch.no_grad():
        ours, exact = (chunk(products, right, None, None, True, True) for chunk in (compiled, _of_chunk))
    names = ("error_loss", "hits", "error_d_logits", "error_d_bias")
    found = {name: off(one, other) for name, one, other in zip(names, ours, exact, strict=True) if name != "hits"}
    return found | {"hits_differ": int(ours[1] - exact[1])}


def step_off(proof: Proof) -> dict:
    """Return losses, and the distance of gradients of a bfloat16 step, eager and compiled, from eager float32."""
    if proof.ranks > 1:
        raise Skipped("on one GPU only")
    rows, row_length = (2, 128) if proof.tiny else (8, 1024)
    results = []
    for eager, in_bf16 in ((True, False), (True, True), (False, True)):
        recipe = proof.recipe("base", eager=eager)
        network = proof.network(recipe, sharp=True, attn_out_dropout=0.0)
        batch = proof.batch(recipe.model.shape.vocab_size, mixed(rows, row_length, row_length // 3), row_length)
        loss = proof.loss(network, batch, in_bf16)
        loss.backward()
        results.append((loss.item(), gradient(network)))
    (exact, of_exact), *others = results
    found = {"loss": exact}
    for name, (loss, gradients) in zip(("eager", "compiled"), others, strict=True):
        found |= {f"loss_{name}": loss, f"error_{name}": off(gradients, of_exact)}
    return found


def syncs(proof: Proof) -> None:
    proof.case("syncs", "a microbatch", host_waits)


def host_waits(proof: Proof) -> dict:
    """Return how often the host waits for the GPU in a microbatch, and where."""
    if not proof.on_gpu:
        raise Skipped("a CPU is not waited for")
    recipe = proof.recipe("base")
    network = proof.network(recipe)
    batch = proof.batch(recipe.model.shape.vocab_size, mixed(24, 1024, 350), 1024)
    proof.loss(network, batch).backward()
    proof.wait()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            proof.loss(network, batch).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    where = Counter(f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchroniz" in str(each.message))
    return {"waits": where.total(), "where": dict(where.most_common(10))}


def attention_ms(proof: Proof) -> None:
    cases = [(96, 1024, 1024), (96, 1024, 350), (12, 8192, 8192), (12, 8192, 700)]
    for rows, row_length, mean in [(2, 128, 40)] if proof.tiny else cases:
        for implementation, window in product(("varlen", "flash") if proof.on_gpu else ("sdpa",), (None, 128)):
            documents = "full" if mean == row_length else f"documents of {mean}"
            name = f"{implementation}, {rows} x {row_length}, {documents}, {'window' if window else 'global'}"
            lengths = mixed(rows, row_length, mean)
            proof.case("attention_ms", name, time_of_attention, implementation, lengths, row_length, window)


def time_of_attention(proof: Proof, implementation: str, lengths: list[int], row_length: int, window: int) -> dict:
    """Return milliseconds of a layer of base, and those with the longest document's length instead of the row's."""
    if implementation == "flash" and not flash_attn_is_installed():
        raise Skipped("flash-attn is not installed")
    heads = 2 if proof.tiny else 12
    x = [torch.randn(sum(lengths), heads, 64, device=proof.device).to(BF16).requires_grad_() for _ in range(3)]
    grad = torch.randn_like(x[0])
    found = {"documents": len(lengths), "longest": max(lengths)}
    for suffix, longest in (("", row_length), ("_of_longest", max(lengths))):
        documents = proof.documents(lengths, longest)

        def forward(documents: Documents = documents) -> Tensor:
            return attention(*x, documents, window, implementation)

        found[f"forward_ms{suffix}"] = proof.ms(forward)
        found[f"both_ms{suffix}"] = proof.ms(lambda forward=forward: torch.autograd.grad(forward(), x, grad))
    return found


def step(proof: Proof) -> None:
    cases = [
        ("base", "pretrain", 96, 1024, True),
        ("base", "pretrain", 96, 1024, False),
        ("large", "pretrain", 56, 1024, False),
        ("base", "extend", 12, 8192, False),
    ]
    tiny = [("nano", "pretrain", 1, 256, eager) for eager in (True, False)]
    for name, stage, rows, row_length, eager in tiny if proof.tiny else cases:
        label = f"{name}, {rows} x {row_length}, {'eager' if eager else 'compiled'}"
        proof.case("step", label, time_of_step, name, stage, rows, row_length, eager)


def time_of_step(proof: Proof, name: str, stage: str, rows: int, row_length: int, eager: bool) -> dict:
    """Measure a microbatch forward and backward, with one document per row; tokens are counted per GPU."""
    recipe = proof.recipe(name, eager=eager)
    shape, lengths = recipe.model.shape, [row_length] * rows
    network, batch = proof.network(recipe), proof.batch(recipe.model.shape.vocab_size, lengths, row_length)

    def both(batch: tuple = batch) -> None:
        proof.loss(network, batch).backward()
        network.zero_grad()

    start, before = time.monotonic(), counters["stats"]["unique_graphs"]
    both()
    proof.wait()
    first, graphs = time.monotonic() - start, counters["stats"]["unique_graphs"]
    ms = proof.ms(both, times=5)
    peak_gib = proof.peak_gib()
    both(proof.batch(shape.vocab_size, mixed(rows, row_length, row_length // 3), row_length))
    tokens, predicted = sum(lengths), len(batch[-1])
    operations = shape.matmul_flops(tokens, predicted) + shape.attention_flops(lengths)
    counted = memory(recipe, compile_plan(recipe))[stage].kept  # with whole parameters and gradients
    counted += 8 * shape.parameters / proof.ranks if proof.ranks > 1 else 0
    return {
        "ms": ms,
        "tokens_per_second": round(tokens / ms * 1e3),
        "mfu": round(operations / ms * 1e3 / proof.peak, 3) if proof.peak else None,
        "peak_gib": peak_gib,
        "plan_gib": round(counted / 2**30, 1),
        "first_s": round(first, 1),
        "graphs": graphs - before,
        "graphs_later": counters["stats"]["unique_graphs"] - graphs,
    }


def loss_ms(proof: Proof) -> None:
    proof.case("loss_ms", "nano" if proof.tiny else "base, 96 x 1024", time_of_loss)


def time_of_loss(proof: Proof) -> dict:
    shape = proof.recipe("base").model.shape
    tokens = 64 if proof.tiny else int(MASKED * 96 * 1024)
    hidden, weight = (
        torch.randn(n, shape.hidden_size, device=proof.device, requires_grad=True) for n in (tokens, shape.vocab_size)
    )
    bias = torch.zeros(shape.vocab_size, device=proof.device, requires_grad=True)
    targets = torch.randint(shape.vocab_size, (tokens,), device=proof.device)

    def ours() -> None:
        with torch.autocast(proof.device.type, BF16, enabled=proof.on_gpu):
            out = linear_cross_entropy(hidden, weight, bias, targets)
        torch.autograd.grad(out.cross_entropy, (hidden, weight, bias))

    rows, words = hidden.detach().to(BF16), weight.detach().to(BF16)

    def products() -> None:
        logits = rows @ words.T
        del logits
        d_logits = torch.empty(tokens, shape.vocab_size, dtype=BF16, device=proof.device)
        d_logits @ words
        d_logits.T @ rows

    return {"ours_ms": proof.ms(ours), "products_ms": proof.ms(products), "peak_gib": proof.peak_gib()}


def update(proof: Proof) -> None:
    rows, row_length, count = (1, 256, 2) if proof.tiny else (96, 1024, 6)
    name = f"{'nano' if proof.tiny else 'base'}, {count} microbatches of {rows} x {row_length}"
    proof.case("update", name, time_of_update, rows, row_length, count)


def time_of_update(proof: Proof, rows: int, row_length: int, count: int) -> dict:
    """Measure an update under FSDP that gathers and reduces once, and one that does so in every microbatch."""
    once = updates(proof, rows, row_length, count, reshard=False)
    proof.free()
    each = updates(proof, rows, row_length, count, reshard=True)
    return {
        "ms": once["ms"],
        "ms_each_microbatch": each["ms"],
        "optimizer_ms": once["optimizer_ms"],
        "peak_gib": once["peak_gib"],
        "peak_gib_each_microbatch": each["peak_gib"],
        "losses": once["losses"],
        "difference": max(abs(a - b) for a, b in zip(once["losses"], each["losses"], strict=True)),
    }


def updates(proof: Proof, rows: int, row_length: int, count: int, reshard: bool) -> dict:
    recipe = proof.recipe("base", f"fsdp_config.reshard_after_forward={str(reshard).lower()}", eager=proof.tiny)
    network = proof.network(recipe, sharded=True)
    from rotary_foundry.algorithms.one_reduction import mark_last
    from rotary_foundry.optim.optimizers import build_optimizer

    optimizer = build_optimizer(recipe.optimizer, network, max_lr=1e-3)
    lengths = [mixed(rows, row_length, row_length // 3, seed) for seed in range(count)]
    batches = [proof.batch(recipe.model.shape.vocab_size, each, row_length, seed) for seed, each in enumerate(lengths)]
    losses = []

    def one() -> None:
        total = torch.zeros((), device=proof.device)
        for number, batch in enumerate(batches):
            if not reshard:
                mark_last(network, number == count - 1)
            torch.manual_seed(number)
            loss = proof.loss(network, batch) / count
            loss.backward()
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())

    ms = proof.ms(one, warm=2, times=3)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer_ms = proof.ms(optimizer.step, warm=1, times=3)
    return {"ms": ms, "optimizer_ms": optimizer_ms, "peak_gib": proof.peak_gib(), "losses": losses}


def run(proof: Proof) -> None:
    proof.case("run", "nano", whole_run)


def whole_run(proof: Proof) -> dict:
    """Run nano as a user does, and return its held-out loss and the range of that of runs on CPU."""
    missing = [name for name in ("composer", "streaming") if importlib.util.find_spec(name) is None]
    if proof.tiny or proof.ranks > 1:
        raise Skipped("minutes on a CPU: `make nano`" if proof.tiny else "on one GPU only")
    if missing or not (ROOT / "data/nano").is_dir():
        raise Skipped(
            f"{missing[0]} is not installed" if missing else "no data/nano: python data_prep yamls/data/nano.yaml"
        )
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["launch", "yamls/main/nano.yaml", "run_name=proof", f"runs_folder={folder}"]
        left = str(round(max(1.0, proof.end - time.monotonic())))  # then a SIGTERM makes the run save and end
        command = ["timeout", "-k", "60", left, sys.executable, "-m", "composer.cli", "-n", "1", *arguments]
        environment = {name: value for name, value in os.environ.items() if name not in OF_A_RANK}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"composer ended with {done.returncode}: {done.stderr[-300:]}")
        last = json.loads(Path(folder, "proof/eval.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    reference = json.loads((ROOT / "src/rotary_foundry/reporting/references/nano.json").read_text(encoding="utf-8"))
    on_cpu = reference["held_out"][-1]["loss"]
    return {"loss": last["loss"], "low": min(on_cpu), "high": max(on_cpu)}


def determinism(proof: Proof) -> None:
    for name, deterministic in (("as in training", False), ("deterministic_mode", True)):
        proof.case("determinism", name, differing, deterministic)


def differing(proof: Proof, deterministic: bool) -> dict:
    """Count the parameters whose gradient differs when the same step is repeated."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses matrix products
    rows, row_length = (1, 256) if proof.tiny else (8, 1024)
    torch.use_deterministic_algorithms(deterministic)
    try:
        recipe = proof.recipe("base", eager=proof.tiny)
        network = proof.network(recipe)
        batch = proof.batch(recipe.model.shape.vocab_size, mixed(rows, row_length, row_length // 3), row_length)
        gradients = []
        for _ in range(2):
            network.zero_grad()
            torch.manual_seed(1)
            proof.loss(network, batch).backward()
            gradients.append([parameter.grad for parameter in network.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    differ = sum(not torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    return {"differing": differ, "of": len(gradients[0])}


def transformers(proof: Proof) -> None:
    documents, length = (2, 64) if proof.tiny else (16, 512)
    name = f"{'nano' if proof.tiny else 'base'}, {documents} documents of {length}"
    proof.case("transformers", name, beside_transformers, documents, length)


@torch.no_grad()
def beside_transformers(proof: Proof, documents: int, length: int) -> dict:
    """Return the distance of our logits from those of transformers' ModernBERT in float32, and milliseconds of both."""
    from transformers import ModernBertForMaskedLM

    if proof.ranks > 1:
        raise Skipped("on one GPU only")
    recipe = proof.recipe("base", eager=True)
    ours = proof.network(recipe, sharp=True).eval()
    special = SimpleNamespace(pad_token_id=0, cls_token_id=1, sep_token_id=2, mask_token_id=3)
    config = to_huggingface(recipe.model.shape, ours.knobs, special, length)
    theirs = ModernBertForMaskedLM._from_config(config, attn_implementation="sdpa").to(proof.device).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)  # the decoder's weight is the embedding
    theirs.tie_weights()
    ids = torch.randint(5, recipe.model.shape.vocab_size, (documents, length), device=proof.device)
    cu_seqlens, mask = proof.documents([length] * documents).cu_seqlens, torch.ones_like(ids)

    def our_logits() -> Tensor:
        return ours(ids.flatten(), cu_seqlens, length)

    def their_logits() -> Tensor:
        return theirs(input_ids=ids, attention_mask=mask).logits.flatten(0, 1)

    exact = their_logits()
    found = {"error_float32": off(our_logits(), exact)}
    with torch.autocast(proof.device.type, BF16, cache_enabled=False):
        found |= {"error_bfloat16": off(our_logits(), exact), "theirs_bfloat16": off(their_logits(), exact)}
        return found | {"ours_ms": proof.ms(our_logits), "theirs_ms": proof.ms(their_logits)}
