"""The start-up summary: at most 25 lines, and what they say is the recipe's and the run's."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from transformers import ModernBertConfig

from rotary_foundry import load_recipe
from rotary_foundry.data.rows import Manifest
from rotary_foundry.recipe.compilation import compile_plan, compile_stages
from rotary_foundry.recipe.cost import cost
from rotary_foundry.reporting.start import print_start
from rotary_foundry.runs.run_folder import CompleteCheckpoint, RunFolder

from .made_run import ENVIRONMENT

LARGE = Path(__file__).parents[2] / "yamls/main/large.yaml"
SOURCES = ["web", "code", "papers", "books", "forums", "wiki"]
MANY_STAGES = [  # more than one would write by hand
    f"stages.more{number}={{duration: 10_000_000_000tok, row_length: 8192, rope_theta: 160_000, "
    "global_train_batch_size: 576, device_train_microbatch_size: 12, lr: 3e-4}"
    for number in range(12)
]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("runs/mine"))
    folder.path.mkdir(parents=True)
    folder.environment.write_text(json.dumps(ENVIRONMENT | {"ranks": 16, "nodes": 2}))
    for length in (1024, 8192):
        for number, source in enumerate(SOURCES):
            shards = tmp_path / "data" / source / str(length) / "train"
            shards.mkdir(parents=True)
            Manifest(source, "train", length, 1000 * length + number, 9, 9, 0.9, "made").write(shards)
    return folder


def printed(folder, recipe, checkpoint=None, width=100) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    print_start(recipe, compile_stages(recipe), folder, "flash", checkpoint, console)
    return out.getvalue()


def recipe(*overrides):
    data = ["data.local=data", f"data.sources=[{', '.join(SOURCES)}]"]
    return load_recipe(LARGE, ["run_name=mine", *data, *overrides])


def test_it_says_what_is_trained_on_what_and_where_things_go(folder):
    ModernBertConfig().save_pretrained(folder.path / "base")
    init_from = f"init_from={folder.path}/base"
    mine = recipe("save_folder=s3://bucket/runs", "fsdp_config.data_parallel_replicate_degree=2", init_from)
    said = printed(folder, mine, width=200)
    for stage, config in mine.stages.items():
        (line,) = [line for line in said.splitlines() if line.startswith(stage)]
        assert f"{config.row_length:,}" in line and f"{config.rope_theta:,.0f}" in line
    assert "decay: web 0.4, code 0.2, papers 0.4" in said
    assert f"{mine.model.shape.parameters:,} parameters, amp_bf16, attention by flash" in said
    assert "16 ranks on 2 nodes, the first: 8 × a device" in said
    assert "HSDP: 2 copies, each over 8" in said
    assert "rows of 1,024: web 1,024,000, code 1,024,001, papers 1,024,002 and 3 sources more" in said
    trained = "trained last at rope_theta 160,000, local_rope_theta 10,000, on rows of up to 8,192 tokens"
    assert f"{folder.path}/base, {trained}; this run begins at rope_theta 10,000" in said
    at_tokens = cost(mine, compile_plan(mine)).checkpoints_written
    assert f"{at_tokens} and one every 30 minutes of training, of 4.75 GB" in said
    assert "in checkpoints/, and s3://bucket/runs/mine" in said
    assert "metrics.jsonl, eval.jsonl, logs/ and checkpoints/ in the run's folder" in said
    assert f"rotary-foundry report {folder.path}" in said


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("more", [[], MANY_STAGES], ids=["as published", "with many stages"])
def test_it_has_at_most_25_lines_and_none_is_too_long(folder, width, more):
    lines = printed(folder, recipe(*more), width=width).splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [72, 80, 100])
@pytest.mark.parametrize("more", [[], MANY_STAGES], ids=["as published", "with many stages"])
def test_with_long_paths_the_stages_are_shown_and_what_is_longest_gives_way(folder, width, more):
    long = folder.path.parent / "-".join(["a-run-by-a-long-name"] * 5)
    folder.path.rename(long)
    ModernBertConfig().save_pretrained(long / "base")
    mixture = "{" + ", ".join(f"{source}: {1 / 6}" for source in SOURCES) + "}"
    mine = recipe(
        f"save_folder=s3://bucket/{'runs-of-mine/' * 8}",
        f"init_from={long}/base",
        *(f"stages.{stage}.mixture={mixture}" for stage in ("pretrain", "extend", "decay")),
        *("loggers.wandb={project: x}", "loggers.tensorboard={}"),
        *more,
    )
    lines = printed(RunFolder(long), mine, width=width).splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[3:6]] == ["pretrain", "extend", "decay"]
    shown = [line for line in lines[3:] if line.split()[0] in mine.stages]
    left = len(mine.stages) - len(shown)
    assert len(shown) >= 6 or not left
    assert (f"and {left} more" in [line.strip() for line in lines]) == bool(left)
    assert f"report{long}" in "".join(lines).replace(" ", "")  # whole, as everything is there


def test_of_a_run_that_goes_on_it_is_short(folder):
    mine = recipe()
    plan = compile_stages(mine)
    token = plan.boundary_before(500_000_000_000)
    said = printed(folder, mine, CompleteCheckpoint(folder.checkpoints / "ba9", 9, token, 0, {}, {})).splitlines()
    assert len(said) <= 6
    update = plan.at(token).update
    left = plan.total_tokens - token
    assert f"update {update:,} of {plan.total_updates:,}, in pretrain; {left:,} tokens are left" in said[0]


@pytest.mark.parametrize(
    ("processor", "precision", "advised"),
    [
        ("flags: avx2 f16c", "amp_bf16", True),
        ("flags: avx2 f16c", "fp32", False),
        ("flags: avx512_bf16", "amp_bf16", False),
    ],
)
def test_a_processor_without_bf16_instructions_is_told_of_fp32(folder, monkeypatch, processor, precision, advised):
    monkeypatch.setattr("rotary_foundry.utils.processor.CPU_INFO", folder.path / "cpuinfo")
    (folder.path / "cpuinfo").write_text(processor)
    folder.environment.write_text(json.dumps(ENVIRONMENT | {"ranks": 2, "devices": ["a processor"]}))
    on_gpus = printed(folder, recipe(f"precision={precision}"), width=200)
    without = {key: value for key, value in ENVIRONMENT.items() if key != "cuda"}
    folder.environment.write_text(json.dumps(without | {"ranks": 2, "devices": ["a processor"]}))
    on_cpu = printed(folder, recipe(f"precision={precision}"), width=200)
    assert "bf16 instructions" not in on_gpus
    assert ("a processor, which has no bf16 instructions: precision=fp32 is far faster here" in on_cpu) == advised
