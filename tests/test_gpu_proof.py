"""`make gpu-proof` tried on CPU in small shapes: that every section runs. What a GPU does is not tested here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

NOT_ON_CPU = {"syncs", "run"}


def proof(*arguments: str) -> tuple[list[dict], str]:
    """Run the program; return its findings and its table."""
    command = [sys.executable, str(BENCHMARKS / "gpu_proof.py"), "--tiny", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    findings, _, table = done.stdout.partition("\n\n")
    return [json.loads(line) for line in findings.splitlines()], table


def test_every_section_finds_something_and_the_table_has_it():
    from gpu_proof import SECTIONS

    findings, table = proof()
    assert not [finding for finding in findings if "failed" in finding]
    assert [*dict.fromkeys(finding["section"] for finding in findings)] == [*SECTIONS]
    assert {finding["section"] for finding in findings if "skipped" in finding} == NOT_ON_CPU
    assert all(f"\n| {finding['section']}: {finding['case']}" in table for finding in findings)
    (update,) = (finding for finding in findings if finding["section"] == "update")
    assert update["difference"] == 0
    assert all(finding["graphs_later"] == 0 for finding in findings if finding["section"] == "step")
    errors = {finding["case"]: finding for finding in findings if finding["section"] in ("correctness", "transformers")}
    assert all(value < 1e-4 for each in errors.values() for name, value in each.items() if name == "error_float32")
    assert errors["step"]["error_compiled"] < 1e-4


def test_an_error_ends_its_case_only_and_nothing_begins_when_the_time_is_up(capsys):
    from gpu_cases import Proof
    from gpu_proof import table

    proof = Proof(tiny=True, seconds=60)
    proof.case("section", "breaks", lambda proof: 1 / 0)
    proof.case("section", "counts", lambda proof: {"number": 3, "unknown": None})
    proof.end = 0.0
    proof.case("section", "late", lambda proof: {"number": 4})
    breaks, counts, late = map(json.loads, capsys.readouterr().out.splitlines())
    assert breaks["failed"].startswith("ZeroDivisionError at test_gpu_proof.py:")
    assert counts["number"] == 3 and "unknown" not in counts
    assert late["skipped"] == "the time is up" and "number" not in late
    assert table([breaks, counts, late]).count("\n| section: ") == 3


def test_what_was_predicted_stands_beside_what_was_found():
    from gpu_proof import table
    from predicted import predict

    expected = f"{1000 * predict('base', 96, 1024, 'compiled').seconds:.0f}"
    finding = {"section": "step", "case": "base, 96 x 1024, compiled", "ms": 300.0, "peak_gib": 50.0, "plan_gib": 45.8}
    rows = table([finding]).splitlines()[2:]
    assert [row.split(" | ")[1:3] for row in rows] == [["300", expected], ["50", "45.8"], ["plan_gib 45.8", ""]]


def test_the_folder_of_wheels_is_of_what_a_machine_with_torch_and_transformers_lacks():
    from gpu_wheels import ALSO, NEEDED, PRESENT, needs, pinned

    lacking = needs(NEEDED) - (needs(PRESENT) - needs(ALSO))
    assert {"mosaicml", "omegaconf", "torchmetrics", "rich"} <= lacking
    assert not lacking & {"torch", "numpy", "transformers", "tokenizers"}
    assert "torchvision==0.26.*" in pinned(lacking, ["torchvision==0.26.*"])
    with pytest.raises(KeyError):
        pinned({"no-such-package"}, [])
