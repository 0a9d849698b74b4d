"""Packages, GPUs and attention, as the doctor sees them: real packages, in folders of a test's own."""

import os
import re
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rotary_foundry.doctor import installation
from rotary_foundry.doctor.finding import BAD, DOUBTFUL, GOOD
from rotary_foundry.doctor.installation import attention_error, check_attention, check_gpus, check_packages
from rotary_foundry.models.layers.attention import BACKENDS
from rotary_foundry.models.layers.attention_sdpa import sdpa_attention
from rotary_foundry.recipe import Recipe
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.utils.installing import install_command

from .conftest import only

CPU = torch.device("cpu")
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")


def package(folder: Path, requirement: str, python: str = ">=3") -> None:
    """An installed package that needs something."""
    metadata = folder / "needy-1.0.dist-info/METADATA"
    metadata.parent.mkdir()
    needs = f"Requires-Python: {python}\nRequires-Dist: {requirement}\n"
    metadata.write_text(f"Metadata-Version: 2.1\nName: needy\nVersion: 1.0\n{needs}")


def constraints(folder: Path, *pins: str) -> Path:
    path = folder / "constraints.txt"
    path.write_text("\n".join(pins) + "\n")
    return path


def test_this_checkout_has_a_constraints_file_that_is_found_and_whose_ranges_are_kept():
    packages, pins = check_packages()
    assert packages.mark == GOOD
    assert f"torch {version('torch')}" in packages.said
    assert str(Path(__file__).parents[2] / "constraints.txt") in pins.said + pins.remedy


def test_a_package_that_is_not_as_pinned_is_named_with_both_versions(tmp_path):
    pinned = constraints(tmp_path, "numpy==1.0.1", f"typer=={version('typer')}", "a-package-nobody-has==1.0")
    _, pins = check_packages(constraints=pinned)
    assert pins.mark == DOUBTFUL
    assert pins.said == f"numpy {version('numpy')} instead of 1.0.1"
    assert pins.remedy == f"in {tmp_path}: {install_command()}"


@pytest.mark.parametrize(
    ("found", "tested"), [("2.10.1", False), ("2.11.0", True), ("2.15.1+cu130", True), ("2.16.0", False)]
)
def test_torch_outside_of_the_range_that_was_tested_is_doubtful(tmp_path, monkeypatch, found, tested):
    real = installation._installed
    monkeypatch.setattr(installation, "_installed", lambda name: found if name == "torch" else real(name))
    told = {one.subject: one for one in check_packages(constraints=constraints(tmp_path, "typer==" + version("typer")))}
    assert told["packages"].mark == GOOD
    assert ("torch" in told) == (not tested)
    if not tested:
        assert told["torch"].mark == DOUBTFUL
        assert f"torch {found} was not tested (" in told["torch"].said and ">=2.11" in told["torch"].said


def test_what_torch_brings_is_the_same_to_the_doctor_and_to_the_makefile():
    (pattern,) = re.findall(r"grep -vE '\^\((.+)\)=='", (Path(__file__).parents[2] / "Makefile").read_text())
    assert pattern == installation.TORCHS_OWN.pattern


def test_torch_and_cuda_may_be_others_and_pins_of_other_machines_do_not_count(tmp_path):
    pinned = constraints(
        tmp_path, "torch==9.9", "nvidia-nccl-cu12==1.0", "cuda-toolkit==1.0", "numpy==1.0.1 ; sys_platform == 'win32'"
    )
    _, pins = check_packages(constraints=pinned)
    assert pins.mark == GOOD


def test_without_a_checkout_the_doctor_says_that_versions_were_not_compared(tmp_path):
    _, pins = check_packages(constraints=tmp_path / "constraints.txt")
    assert pins.mark == DOUBTFUL
    assert "not compared" in pins.said


@pytest.mark.parametrize(
    ("requirement", "said"), [("numpy>=99", "numpy {numpy} (>=99 is needed)"), ("nobody-has-it", "is missing")]
)
def test_a_package_that_is_too_old_or_missing_would_fail_a_run(tmp_path, monkeypatch, requirement, said):
    package(tmp_path, requirement)
    monkeypatch.syspath_prepend(tmp_path)
    packages, _ = check_packages("needy")
    assert packages.mark == BAD
    assert said.format(numpy=version("numpy")) in packages.said


def test_a_python_that_is_too_old_would_fail_a_run(tmp_path, monkeypatch):
    package(tmp_path, "numpy", python=">=3.99")
    monkeypatch.syspath_prepend(tmp_path)
    found = only(check_packages("needy"))
    assert found.mark == BAD
    assert "(>=3.99 is needed)" in found.said


def stand_in_nvidia_smi(folder: Path, monkeypatch, *lines: str) -> None:
    """Stands for the driver's; what it says is the real one's."""
    smi = folder / "nvidia-smi"
    smi.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@on_cpu
def test_gpus_that_the_driver_has_and_torch_cannot_use_are_told_apart_from_none(tmp_path, monkeypatch):
    assert only(check_gpus(0, None)).mark == DOUBTFUL
    stand_in_nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA H100 80GB HBM3, 81559 MiB, 470.57.02'")
    found = only(check_gpus(8, None))
    assert found.mark == BAD
    assert "the driver has 1 (NVIDIA H100 80GB HBM3, 81559 MiB, 470.57.02)" in found.said
    assert "driver for CUDA" in found.remedy


@on_cpu
def test_a_processor_without_bf16_instructions_is_told_of_fp32(tmp_path, monkeypatch):
    monkeypatch.setattr("rotary_foundry.utils.processor.CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags: avx2 f16c")
    slow, fast = (
        load_recipe(Path(__file__).parents[2] / "yamls/main/nano.yaml", [f"precision={precision}"])
        for precision in ("amp_bf16", "fp32")
    )
    assert [(found.subject, found.remedy) for found in check_gpus(0, slow)][1:] == [("processor", "precision=fp32")]
    assert [found.subject for found in check_gpus(0, fast)] == ["GPUs"]


@on_cpu
def test_a_driver_that_fails_or_does_not_answer_is_no_machine_without_gpus(tmp_path, monkeypatch):
    mismatch = "Failed to initialize NVML: Driver/library version mismatch"
    stand_in_nvidia_smi(tmp_path, monkeypatch, f"echo {mismatch}", "echo NVML library version: 570.86 >&2", "exit 18")
    failed = only(check_gpus(0, None))
    assert failed.mark == BAD
    assert failed.said == f"nvidia-smi fails with status 18: {mismatch} NVML library version: 570.86"
    assert "restart the machine" in failed.remedy
    stand_in_nvidia_smi(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(installation, "SMI_SECONDS", 0.2)
    late = only(check_gpus(0, None))
    assert (late.mark, late.said) == (BAD, "nvidia-smi does not answer within 0.2 s")


@on_cpu
def test_a_flash_attn_that_was_built_for_another_torch_is_found_before_a_run_is(tmp_path, monkeypatch):
    (tmp_path / "flash_attn.py").write_text("raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    found = only(check_attention(None))
    assert found.mark == DOUBTFUL  # on CPU nobody wants it
    assert "undefined symbol: _ZN3c10" in found.said
    assert f"for torch {torch.__version__}" in found.remedy


@on_cpu
def test_attention_that_this_machine_cannot_compute_is_refused_as_training_would(recipe_file):
    flash: Recipe = load_recipe(recipe_file, ["model.attn_implementation=flash"])
    found = only(check_attention(flash))
    assert found.mark == BAD
    assert "needs a CUDA GPU" in found.said
    assert only(check_attention(load_recipe(recipe_file))).mark == GOOD


def test_attention_is_compared_by_its_numbers_and_one_that_forgets_the_window_is_found(monkeypatch):
    assert 0 < attention_error(CPU, "sdpa") <= installation.ROUNDING

    def forgetful(q, k, v, documents, window_size):
        return sdpa_attention(q, k, v, documents, (-1, -1) if q.dtype == torch.bfloat16 else window_size)

    monkeypatch.setitem(BACKENDS, "sdpa", forgetful)
    assert attention_error(CPU, "sdpa") > installation.ROUNDING


@pytest.mark.parametrize(
    ("capability", "built_for", "missing"),
    [
        ((9, 0), ["sm_75", "sm_80", "sm_90"], None),
        ((8, 9), ["sm_80", "sm_90"], None),  # code for sm_80 runs on it
        ((8, 0), ["sm_86", "sm_90"], "sm_80"),
        ((10, 0), ["sm_80", "sm_90a"], "sm_100"),
        ((12, 0), ["sm_90", "compute_90"], None),  # compiled by the driver
    ],
)
def test_a_gpu_that_torch_was_not_built_for_is_named(monkeypatch, capability, built_for, missing):
    """Every kernel would fail with "no kernel image is available for execution on the device"."""
    major, minor = capability
    device = SimpleNamespace(name="a GPU", total_memory=80 << 30, major=major, minor=minor)
    answers = {"is_available": True, "device_count": 1, "get_device_properties": device, "get_arch_list": built_for}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(installation, "_told_by_driver", list)
    found = only(check_gpus(1, None))
    assert found.mark == (GOOD if missing is None else BAD)
    if missing is not None:
        assert f"has no code for {missing}" in found.said
        assert found.remedy.endswith(", ".join(built_for))


def hopper(monkeypatch, version: str, major: int = 9) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: SimpleNamespace(major=major, minor=0))


SDPA_IN_BF16 = ("precision=amp_bf16", "model.attn_implementation=sdpa")


@pytest.mark.parametrize("found", ["2.11.0", "2.13.1+cu130"])
def test_a_torch_whose_kernels_are_known_to_be_at_fault_on_this_gpu_is_named_with_its_source(monkeypatch, found):
    hopper(monkeypatch, found)
    told = only(installation.check_known_faults(load_recipe("yamls/main/base.yaml", SDPA_IN_BF16)))
    assert told.mark == DOUBTFUL
    assert told.said.startswith(f"torch {found} here: cuDNN") and "pytorch/pytorch#196678" in told.said


@pytest.mark.parametrize(
    ("found", "major", "overrides"),
    [
        ("2.14.0", 9, SDPA_IN_BF16),
        ("2.13.0", 8, SDPA_IN_BF16),
        ("2.13.0", 9, ("precision=fp32", "model.attn_implementation=sdpa")),
        ("2.13.0", 9, ("precision=amp_bf16",)),
    ],
)
def test_a_fault_that_a_recipe_does_not_meet_is_not_told(monkeypatch, found, major, overrides):
    hopper(monkeypatch, found, major)
    assert not list(installation.check_known_faults(load_recipe("yamls/main/base.yaml", overrides)))
