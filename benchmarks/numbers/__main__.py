"""`python benchmarks/numbers BEFORE [AFTER]`: compare the numbers of two commits bit by bit.

A refactoring changes no number. To check that, this command prepares a small corpus at each commit, trains the
recipe beside this file on two ranks, kills the run with SIGKILL in its second stage, and resumes it. Then it compares
every update's rows and masks (`rows_digest`), loss, learning rate and gradient norm, every evaluation and every
rollback. AFTER is the working tree by default.

Each commit brings its own `corpus.yaml` and `recipe.yaml`, because the keys of a recipe may change between the two.
Both run in this interpreter's environment, so on one torch. Exit status: 0 equal, 1 different, 2 could not be run.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
COMPARED = ("token", "stage", "rows", "row_length", "rows_digest", "loss", "lr", "weight_decay", "grad_norm")
EVALUATED = ("token", "stage", "loss")
KILLED_AT = 14  # updates, abandoned ones included: after the rollback, in the second stage
WORDS = [first + second for first in ("ba", "du", "ki", "lo", "me") for second in ("n", "rt", "s", "x", "l", "ff")]
TIMEOUT = 600  # seconds for one launch


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/numbers", description="Compare the numbers of two commits."
    )
    parser.add_argument("before", help="a git revision")
    parser.add_argument("after", nargs="?", help="another one; the working tree if it is not given")
    arguments = parser.parse_args()
    try:
        before = numbers_at(arguments.before)
        after = numbers_at(arguments.after)
    except (subprocess.SubprocessError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    different = list(differences(before, after))
    for line in different[:20]:
        print(line)
    if len(different) > 20:
        print(f"… and {len(different) - 20} more")
    updates = len([key for key in before if key[0] == "update"])
    print(f"{updates} updates and {len(before) - updates} other records: " + ("DIFFERENT" if different else "equal"))
    return 1 if different else 0


def numbers_at(revision: str | None) -> dict[tuple, dict]:
    """Return the records of a whole run at a git revision (None: the working tree), by kind and place in the run."""
    started = time.monotonic()
    with TemporaryDirectory(prefix="numbers-") as work, checkout(revision) as tree:
        records = run_and_read(tree, Path(work))
    print(f"{revision or 'working tree'}: {len(records)} records, {time.monotonic() - started:.0f} s", flush=True)
    return records


@contextmanager
def checkout(revision: str | None) -> Iterator[Path]:
    """Yield a folder with the files of a git revision; the repository's own for None."""
    if revision is None:
        yield REPOSITORY
        return
    with TemporaryDirectory(prefix="numbers-tree-") as tree:
        archive = subprocess.run(
            ["git", "-C", REPOSITORY, "archive", "--format=tar", revision], check=True, stdout=subprocess.PIPE
        )
        subprocess.run(["tar", "-x", "-C", tree], input=archive.stdout, check=True)
        yield Path(tree)


def run_and_read(tree: Path, work: Path) -> dict[tuple, dict]:
    """Prepare, train until killed, and resume; everything is written below `work`.

    Raises:
        RuntimeError: a command failed, or the run ended before it could be killed.
    """
    make_texts(work)
    configs = tree / HERE.relative_to(REPOSITORY)
    (work / "corpus.yaml").write_bytes((configs / "corpus.yaml").read_bytes())
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "TMPDIR": str(work)}
    sources = [f"sources.{name}.path={work / name}.jsonl" for name in ("one", "two")]
    prepare = [sys.executable, "data_prep", str(work / "corpus.yaml"), *sources, f"out={work / 'data'}"]
    finish(subprocess.Popen(prepare, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    overrides = [f"runs_folder={work / 'runs'}", f"data.local={work / 'data'}"]
    composer = str(Path(sys.executable).parent / "composer")
    launch = [composer, "-n", "2", "launch", str(configs / "recipe.yaml"), *overrides]
    options = {"cwd": tree, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    metrics = work / "runs/numbers/metrics.jsonl"

    first = subprocess.Popen(launch, **options)
    while first.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < KILLED_AT):
        time.sleep(0.05)
    if first.poll() is not None:
        raise RuntimeError(f"the run ended before update {KILLED_AT}:\n{first.stdout.read().decode()[-4000:]}")
    for process in [*psutil.Process(first.pid).children(recursive=True), first]:
        process.kill()
    first.communicate()
    finish(subprocess.Popen(launch, **options))
    return read_records(work / "runs/numbers")


def finish(process: subprocess.Popen) -> None:
    said, _ = process.communicate(timeout=TIMEOUT)
    if process.returncode:
        command = " ".join(map(str, process.args))
        raise RuntimeError(f"{command} ended with status {process.returncode}:\n{said.decode()[-4000:]}")


def make_texts(folder: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        generator = random.Random(seed)
        texts = [" ".join(generator.choices(WORDS, k=generator.randint(20, 200))) for _ in range(120)]
        (folder / f"{name}.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))


def read_records(run: Path) -> dict[tuple, dict]:
    """Return a run's records of every update, evaluation and rollback.

    Raises:
        RuntimeError: an update that was trained twice, before the kill and after it, has two different records.
    """
    records: dict[tuple, dict] = {}
    for kind, name, keys in (("update", "metrics.jsonl", COMPARED), ("evaluation", "eval.jsonl", EVALUATED)):
        for line in map(json.loads, (run / name).read_text().splitlines()):
            place = (kind, line["rollbacks"], line["batch"])
            record = {key: line[key] for key in keys}
            if records.setdefault(place, record) != record:
                raise RuntimeError(f"{run / name}: {place} was {records[place]}, and after the resume {record}")
    for line in map(json.loads, (run / "rollbacks.jsonl").read_text().splitlines()):
        records["rollback", line["number"], line["batch"]] = line
    return records


def differences(before: dict[tuple, dict], after: dict[tuple, dict]) -> Iterator[str]:
    """Yield a line for every number that is not bit-identical."""
    for place in sorted(before.keys() | after.keys()):
        name = "{} (rollbacks {}, update {})".format(*place)
        if place not in before or place not in after:
            yield f"{name}: only {'after' if place in after else 'before'}"
            continue
        for key in before[place]:
            if before[place][key] != after[place].get(key):
                yield f"{name}: {key}: {before[place][key]!r} → {after[place].get(key)!r}"


if __name__ == "__main__":
    sys.exit(main())
