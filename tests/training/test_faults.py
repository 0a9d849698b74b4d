"""Faults in the middle of whole runs: what is refused is named, all ranks end, and nothing is lost."""

import shutil
import time

import pytest
import torch

from rotary_foundry.runs.run_folder import RunFolder

from .conftest import TAMPERED_LAUNCH
from .runs import digests, final_weights


def same_end(run, undisturbed) -> bool:
    """Whether two runs saw the same rows and masks and came to bit-identical weights."""
    expected, found = final_weights(undisturbed), final_weights(run)
    return (
        digests(run) == digests(undisturbed)
        and expected.keys() == found.keys()
        and all(torch.equal(weight, found[key]) for key, weight in expected.items())
    )


def flip_a_byte(shard):
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def cut_short(shard):
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_damaged_and_missing_shards_end_all_ranks_by_name_and_put_right_cost_nothing(tiny, undisturbed, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny.folder / "data", data, ignore=shutil.ignore_patterns("*.mds"))
    faults = {  # in the order in which the run comes upon them: at the end of stage 1, the start and the end of stage 2
        "one/64/validation": (flip_a_byte, "damaged: its xxh64 hash"),
        "two/256/train": (lambda shard: shard.unlink(), "no such file"),
        "two/256/validation": (cut_short, "truncated: "),
    }
    for folder, (spoil, _) in faults.items():
        spoil(data / folder / "00000/shard.00000.mds.zstd")
    run, reached = tiny.folder / "runs/faults", 0
    for workers, (folder, (_, says)) in enumerate(faults.items()):
        stopped = tiny.launch(f"run_name={run.name}", f"data.local={data}", f"data.num_workers={workers % 2}")
        assert time.time() - RunFolder(run).metrics.stat().st_mtime < 60  # since the last update before the fault
        assert stopped.returncode != 0
        shard = f"{folder}/00000/shard.00000.mds.zstd"
        (error,) = [line for line in stopped.stderr.splitlines() if line.startswith("error: ")]
        assert error.startswith(f"error: {data}/{shard}: {says}")
        assert error.endswith("; restore it from a copy, or prepare the data again with `python data_prep CONFIG`")
        assert "Traceback" not in stopped.stdout + stopped.stderr
        assert digests(run) == digests(undisturbed)[: len(digests(run))]
        checkpoint = RunFolder(run).newest_checkpoint()
        assert checkpoint.batch >= max(reached, len(digests(run)) - 2)  # saved every other update
        reached = checkpoint.batch
        shutil.copy(tiny.folder / "data" / shard, data / shard)
    finished = tiny.launch(f"run_name={run.name}", f"data.local={data}")
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert same_end(run, undisturbed)


@pytest.mark.long
def test_shards_that_come_late_or_damaged_from_a_remote_are_waited_for_and_fetched_again(tiny, undisturbed, tmp_path):
    run = tiny.launch(
        *("run_name=remote", f"data.local={tmp_path / 'cache'}", f"data.remote={tiny.folder / 'data'}"),
        script=TAMPERED_LAUNCH,
        SHARDS_COME="badly",
    )
    assert run.returncode == 0, run.stderr[-4000:]
    folder = tiny.folder / "runs/remote"
    logs = "".join(path.read_text() for path in (folder / "logs").iterdir())
    late, damaged = (f"{tiny.folder}/data/{source}/64/train/00000/shard.00000.mds.zstd" for source in ("two", "one"))
    assert f"{late}: not here after 1 s; still waiting" in logs
    assert f"{damaged}: Checksum failure" in logs
    assert same_end(folder, undisturbed)
