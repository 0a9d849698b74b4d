"""Whole runs in situations that public reports name (docs/field_reports.md)."""

import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from composer.core import Callback
from composer.utils import dist

from rotary_foundry.loggers.metric_keys import logged
from rotary_foundry.recipe.mixtures import MOST_SOURCES, OTHERS
from rotary_foundry.runs.record_files import read_lines
from rotary_foundry.runs.run_folder import RunFolder
from tests.command import output_of
from tests.forked_composer import script
from tests.ranks import on_ranks

from .conftest import ONE_THREAD, REPOSITORY
from .runs import digests, train_recipe

SOURCES = [f"s{number:04}" for number in range(2000)]
LONGEST_START = 300  # seconds, on two cores that do other things as well


class Watch(Callback):
    """Writes at the end of the first update what a rank has open, and when that was."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def batch_end(self, state, logger):
        if state.timestamp.batch.value == 1:
            seen = {"files": len(os.listdir("/proc/self/fd")), "shared": len(os.listdir("/dev/shm")), "at": time.time()}
            (self.folder / f"watched-{dist.get_global_rank()}.json").write_text(json.dumps(seen))


def write_many_sources(tiny, folder: Path) -> Path:
    """Copy the source `one` of the tiny corpus two thousand times, by links, and write a recipe that draws from all."""
    there = [path for path in (tiny.folder / "data/one").rglob("*") if path.is_file()]
    for name in SOURCES:
        for path in there:
            copy = folder / "data" / name / path.relative_to(tiny.folder / "data/one")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(path)
    (folder / "data/tokenizer").symlink_to(tiny.folder / "data/tokenizer")
    shares = {name: round(1 / (number + 1) ** 0.7, 6) for number, name in enumerate(SOURCES)}  # as languages have
    recipe = {
        "extends": [str(tiny.recipe)],
        "run_name": "many",
        "runs_folder": str(folder / "runs"),
        "data": {"local": str(folder / "data"), "sources": SOURCES, "num_workers": 1},
        "rollback": {"at": None},
        "stages": {"decay": {"mixture": shares}},
    }
    (folder / "many.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "many.yaml"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_recipe_of_two_thousand_sources_starts_in_time_and_its_records_can_be_read(tiny, tmp_path):
    """mmBERT has 1,833 languages, each a source (arXiv 2509.06888)."""
    recipe = write_many_sources(tiny, tmp_path)
    planned = output_of("plan", recipe)
    assert "2,000 sources, from " in planned and f"{OTHERS} " in planned
    assert len(planned.splitlines()) < 120
    began, shared = time.time(), len(os.listdir("/dev/shm"))
    watch = f"callbacks={json.dumps({f'{Watch.__module__}.{Watch.__name__}': {'folder': str(tmp_path)}})}"
    on_ranks(2, tmp_path, train_recipe, recipe, [watch])
    seen = [json.loads((tmp_path / f"watched-{rank}.json").read_text()) for rank in range(2)]
    assert max(one["at"] for one in seen) - began < LONGEST_START
    assert max(one["files"] for one in seen) < 256
    assert max(one["shared"] for one in seen) - shared < 100
    run = RunFolder(tmp_path / "runs/many")
    lines = read_lines(run.metrics)
    assert {len(line[key]) for line in lines for key in ("asked", "drawn")} == {MOST_SOURCES + 1}
    assert all(abs(sum(line["drawn"].values()) - 1) < 1e-9 for line in lines)
    assert max(len(logged(line)) for line in lines) < 150  # keys of W&B
    assert max(map(len, run.metrics.read_text().splitlines())) < 20_000
    output_of("report", run.path)
    assert (run.path / "report.html").stat().st_size < 20e6


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ranks_that_start_seconds_apart_train_beside_another_run_on_the_same_corpus(tiny, undisturbed):
    """Several ranks hung or crashed as the data set was built (asafam/HebrewModernBERT@a168e11)."""

    def rank(number: int):
        time.sleep((0, 3, 8, 20)[number])
        world = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "NODE_RANK": "0", "RANK": str(number)}
        world |= {"LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29871"}
        return script(["launch", str(tiny.recipe), "run_name=apart"], REPOSITORY, os.environ | ONE_THREAD | world, 600)

    with ThreadPoolExecutor() as pool:
        ranks = [pool.submit(rank, number) for number in range(4)]
        beside = pool.submit(tiny.launch, "run_name=beside", ranks=1)
        ended = [one.result() for one in ranks]
    assert [one.returncode for one in ended] == [0] * 4, [one.stderr[-2000:] for one in ended]
    assert beside.result().returncode == 0, beside.result().stderr[-2000:]
    for name in ("apart", "beside"):
        assert digests(tiny.folder / "runs" / name) == digests(undisturbed)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("compile_config", ["{}", "{dynamic: true}"])
def test_a_compiled_run_goes_through_a_rollback_and_compiles_not_for_every_length(tiny, undisturbed, compile_config):
    """Compiling twice in a process raised "duplicate template name" (transformers#37116).

    Packed rows of other lengths compiled anew without end (torchtitan#2823, Dao-AILab/quack#150).
    """
    name = f"compiled-{len(compile_config)}"
    ragged = "stages.pretrain.device_train_microbatch_size=5"  # a last microbatch of two rows
    launch = (f"run_name={name}", f"compile_config={compile_config}", ragged)
    run = tiny.launch(*launch, ranks=1, TORCH_LOGS="recompiles")
    assert run.returncode == 0, run.stderr[-4000:]
    folder = tiny.folder / "runs" / name
    assert digests(folder) == digests(undisturbed)
    said = run.stderr + "".join(path.read_text() for path in RunFolder(folder).logs.glob("*.log"))
    assert "recompile_limit" not in said
    functions = re.findall(r"Recompiling function (\S+)", said)
    assert max(map(functions.count, set(functions)), default=0) < 16, sorted(functions)
