"""Run on a GPU what was only counted without one: whether it is right, and what it costs. Ten minutes on one H100.

    python benchmarks/gpu_proof.py [--tiny] [--seconds 600] [SECTION …]
    torchrun --nproc-per-node 8 benchmarks/gpu_proof.py    # or composer -n 8 …: `step` and `update` under FSDP

Every finding is one JSON line on stdout. The table at the end has each beside PREDICTED, which is for one H100.

- An error ends only its case, and is a finding: `failed`. A case that would begin after `--seconds` is `skipped`.
- It needs torch, triton, transformers and OmegaConf. What needs more (`update`, `run`, several GPUs) is skipped, with
  the reason, where that is not installed. gpu_wheels.py makes a folder of wheels for a machine without network.
- `--tiny` takes nano's shape on CPU, and aot_eager instead of inductor. It shows that the program works, no more.
"""

import argparse
from collections.abc import Iterable
from fnmatch import fnmatch

import gpu_sections as sections
import torch
from gpu_cases import Proof
from torch import distributed

# What is expected of one H100, by "section/case/metric" (fnmatch), and from where. {name}: that metric of the finding.
# u: a microbatch's hidden states once in bfloat16, 151 MB of base.
MODEL = "550 TFLOP/s in products, 300 in attention (local layers at 384 keys a query), 2.6 TB/s"
EAGER, COMPILED = "146 u a layer in eager kernels", "61.8 u a layer, counted in inductor's code (gpu_code.py)"
PREDICTED = {
    "environment/*[0-9][0-9][0-9] x */tflops": ("550", "assumed in all predictions of ms"),
    "correctness/*bfloat16*/error_*": ("< 0.01", "the tolerance of `make test-gpu`"),
    "correctness/*float32*/error_*": ("< 0.0001", "the tolerance of `make test-gpu`"),
    "correctness/chunk of the loss/error_*": ("< 0.004", "bfloat16 keeps eight bits"),
    "correctness/step/error_compiled": ("about {error_eager}", "what eager bfloat16 is off: both round alike"),
    "syncs/*/waits": ("0", "counted on tensors without values (tests/fake_gpu.py)"),
    "attention_ms/varlen, 96 x 1024, full, global/both_ms": ("3.1", MODEL),
    "attention_ms/varlen, 96 x 1024, full, window/both_ms": ("1.2", MODEL),
    "attention_ms/varlen, 12 x 8192, full, global/both_ms": ("24.7", MODEL),
    "attention_ms/varlen, 12 x 8192, full, window/both_ms": ("1.2", MODEL),
    "step/base, 96 x 1024, eager/ms": ("376", f"{MODEL}; {EAGER}; products 131, attention 41, rest 204"),
    "step/base, 96 x 1024, eager/mfu": ("0.218", "from the ms"),
    "step/base, 96 x 1024, compiled/ms": ("269", f"{MODEL}; {COMPILED}; products 131, attention 41, rest 97"),
    "step/base, 96 x 1024, compiled/mfu": ("0.305", "from the ms; ModernBERT's authors: 0.256"),
    "step/large, 56 x 1024, compiled/ms": ("358", f"{MODEL}; {COMPILED}; products 225, attention 40, rest 93"),
    "step/large, 56 x 1024, compiled/mfu": ("0.374", "from the ms"),
    "step/base, 12 x 8192, compiled/ms": ("442", f"{MODEL}; {COMPILED}; products 131, attention 214, rest 97"),
    "step/base, 12 x 8192, compiled/mfu": ("0.304", "from the ms"),
    "step/*/peak_gib": ("{plan_gib}", "`rotary-foundry plan`, which leaves out temporary tensors"),
    "step/*/graphs_later": ("0", "other documents compile nothing anew: counted on CPU"),
    "loss_ms/base*/ours_ms": ("21", "products 13, and 22 chunks of 0.54 GB, counted in inductor's code"),
    "loss_ms/base*/products_ms": ("13", MODEL),
    "update/base*/ms": ("1630", "six microbatches of 269 ms, and the optimizer"),
    "update/*/difference": ("0", "the same sums, made once; above 0 where attention's backward is not deterministic"),
    "run/nano/loss": ("{low} to {high}", "the held-out loss of five runs on CPU"),
    "determinism/as in training/differing": ("some of {of}", "FlashAttention 2 adds gradients of queries by atomics"),
    "determinism/deterministic_mode/differing": ("0", "promised by docs/guarantees.md"),
    "transformers/*/error_float32": ("< 0.0001", "the tolerance of the tests on CPU"),
    "transformers/*/error_bfloat16": ("about {theirs_bfloat16}", "what transformers' own bfloat16 is off"),
}


def table(findings: Iterable[dict]) -> str:
    """Lay findings beside PREDICTED: a row for each metric that has a prediction, and one for the others together."""
    rows = [("", "found", "predicted", "by")]
    for finding in findings:
        label, others = f"{finding['section']}: {finding['case']}", []
        for metric, value in finding.items():
            if (predicted := prediction(finding, metric)) is not None:
                rows.append((f"{label}, {metric}", shown(value), *predicted))
            elif metric not in ("section", "case", "seconds"):
                others.append(f"{metric} {shown(value)}")
        if others:
            rows.append((label, ", ".join(others)[:200], "", ""))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "| --- " * 4 + "|", *lines[1:]])


def prediction(finding: dict, metric: str) -> tuple[str, str] | None:
    """Return what was predicted of a metric, and by what; None: nothing."""
    name = f"{finding['section']}/{finding['case']}/{metric}"
    values = {key: shown(value) for key, value in finding.items()}
    return next(
        ((value.format_map(values), source) for key, (value, source) in PREDICTED.items() if fnmatch(name, key)), None
    )


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


SECTIONS = {
    section.__name__: section
    for section in (
        sections.environment,
        sections.correctness,
        sections.syncs,
        sections.attention_ms,
        sections.step,
        sections.loss_ms,
        sections.update,
        sections.run,
        sections.determinism,
        sections.transformers,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all if none is given"
    )
    parser.add_argument("--tiny", action="store_true", help="on CPU, in nano's shape")
    parser.add_argument("--seconds", type=float, default=600, help="after which no case begins")
    given = parser.parse_args()
    if unknown := set(given.sections) - SECTIONS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: not a section; there are {', '.join(SECTIONS)}")
    if not given.tiny and not torch.cuda.is_available():
        parser.error("no CUDA GPU was found; give --tiny to try the program on CPU")
    proof = Proof(given.tiny, given.seconds)
    for name in given.sections or SECTIONS:
        SECTIONS[name](proof)
    if proof.rank == 0:
        print("\n" + table(proof.findings))
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
