"""Check and measure on a GPU what was only counted without one. It begins no case after ten minutes.

    python benchmarks/gpu_proof.py [--tiny] [--seconds 600] [SECTION …]
    torchrun --nproc-per-node 8 benchmarks/gpu_proof.py    # or composer -n 8 …: `step` and `update` under FSDP

Every finding is one JSON line on stdout. The table at the end shows each beside PREDICTED, which is for one H100.

- An error ends only its case, and is the finding `failed`. A case that would begin after `--seconds` is `skipped`.
- It needs torch, triton, transformers and OmegaConf. Sections that need more (`update`, `run`, several GPUs) are
  skipped, with the reason, if that is missing. gpu_wheels.py makes a folder of wheels for a machine without network.
- `--tiny` uses nano's shape on CPU, and aot_eager instead of inductor. It only shows that the program works.
"""

import argparse
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch

import gpu_sections as sections
import predicted
import torch
from gpu_cases import Proof
from torch import distributed

BY = "predicted.py: assumed rates, counted bytes and operations"


def _of_attention() -> Iterator[tuple[str, tuple[str, str]]]:
    shape = predicted.shape_of("base")
    for rows, row_length in ((96, 1024), (12, 8192)):
        for kind, keys in (("global", row_length), ("window", predicted.LOCAL_KEYS)):
            ms = 1000 * predicted.attention_seconds(shape, rows * row_length, keys)
            yield f"attention_ms/varlen, {rows} x {row_length}, full, {kind}/both_ms", (f"{ms:.1f}", BY)


def _of_steps() -> Iterator[tuple[str, tuple[str, str]]]:
    for model, rows, row_length, way in (
        ("base", 96, 1024, "eager"),
        ("base", 96, 1024, "compiled"),
        ("large", 56, 1024, "compiled"),
        ("base", 12, 8192, "compiled"),
    ):
        found = predicted.predict(model, rows, row_length, way)
        case = f"step/{model}, {rows} x {row_length}, {way}"
        yield f"{case}/ms", (f"{1000 * found.seconds:.0f}", BY)
        yield f"{case}/mfu", (f"{found.mfu:.3f}", "from the ms; the authors of base reached 0.256 at 1024")


def _of_loss_and_update() -> Iterator[tuple[str, tuple[str, str]]]:
    shape, step = predicted.shape_of("base"), predicted.predict("base", 96, 1024, "compiled")
    products, rest = predicted.loss_seconds(shape, predicted.MASKED * step.tokens)
    update = 6 * step.seconds + predicted.optimizer_seconds(shape)
    yield "loss_ms/base*/ours_ms", (f"{1000 * (products + rest):.0f}", BY)
    yield "loss_ms/base*/products_ms", (f"{1000 * products:.0f}", BY)
    yield "update/base*/ms", (f"{1000 * update:.0f}", f"six microbatches and the optimizer; {BY}")


# Predictions for one H100 and their sources, by "section/case/metric" (fnmatch). {name}: that metric of the finding.
PREDICTED = {
    "environment/*[0-9][0-9][0-9] x */tflops": (f"{predicted.PRODUCTS / 1e12:.0f}", "assumed by predicted.py"),
    "correctness/*bfloat16*/error_*": ("< 0.01", "the tolerance of `make test-gpu`"),
    "correctness/*float32*/error_*": ("< 0.0001", "the tolerance of `make test-gpu`"),
    "correctness/chunk of the loss/error_*": ("< 0.004", "bfloat16 keeps eight bits"),
    "correctness/step/error_compiled": ("about {error_eager}", "what eager bfloat16 is off: both round alike"),
    "syncs/*/waits": ("0", "counted on tensors without values (tests/fake_gpu.py)"),
    **dict(_of_attention()),
    **dict(_of_steps()),
    **dict(_of_loss_and_update()),
    "step/*/peak_gib": ("{plan_gib}", "`rotary-foundry plan`, which leaves out temporary tensors"),
    "step/*/graphs_later": ("0", "other documents compile nothing anew: counted on CPU"),
    "update/*/difference": ("0", "the same sums, made once; above 0 where attention's backward is not deterministic"),
    "run/nano/loss": ("{low} to {high}", "the held-out loss of five runs on CPU"),
    "determinism/as in training/differing": ("some of {of}", "FlashAttention 2 adds gradients of queries by atomics"),
    "determinism/deterministic_mode/differing": ("0", "promised by docs/guarantees.md"),
    "transformers/*/error_float32": ("< 0.0001", "the tolerance of the tests on CPU"),
    "transformers/*/error_bfloat16": ("about {theirs_bfloat16}", "what transformers' own bfloat16 is off"),
}


def table(findings: Iterable[dict]) -> str:
    """Return a table of findings and PREDICTED: one row per metric with a prediction, and one for all other metrics."""
    rows = [("", "found", "predicted", "by")]
    for finding in findings:
        label, others = f"{finding['section']}: {finding['case']}", []
        for metric, value in finding.items():
            if (expected := prediction(finding, metric)) is not None:
                rows.append((f"{label}, {metric}", shown(value), *expected))
            elif metric not in ("section", "case", "seconds"):
                others.append(f"{metric} {shown(value)}")
        if others:
            rows.append((label, ", ".join(others)[:200], "", ""))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "| --- " * 4 + "|", *lines[1:]])


def prediction(finding: dict, metric: str) -> tuple[str, str] | None:
    """Return the prediction of a metric and its source, or None if there is none."""
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
        "sections", nargs="*", metavar="SECTION", help=f"any of {', '.join(SECTIONS)}; all if none is given"
    )
    parser.add_argument("--tiny", action="store_true", help="on CPU, in nano's shape")
    parser.add_argument("--seconds", type=float, default=600, help="no case begins later than this")
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
