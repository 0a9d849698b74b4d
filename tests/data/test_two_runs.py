"""Two live runs on one machine: both may read one finished corpus, and only one may have the cache of a remote."""

import shutil
import subprocess
import sys

import pytest

from rotary_foundry.data.corpus import TOKENIZER_FILES

from .conftest import REPOSITORY, ROW_LENGTH, ROWS

# Each process says that it is ready, waits for a line, draws every row and prints a hash of them.
DRAW = """
import hashlib, sys
from torch.utils.data import DataLoader
from rotary_foundry.data.stream import Draw, TrainingStream
print("ready", flush=True)
sys.stdin.readline()
draw = Draw(17, 0, None, 0, updates=100, global_batch_size=19)
rows = TrainingStream({sources}, "{local}", None, {row_length}, 1 << 18, draw)
digest = hashlib.md5()
for batch in DataLoader(rows, batch_size=19, num_workers=1, collate_fn=list):
    for sample in batch:
        digest.update(sample["tokens"].tobytes())
print(digest.hexdigest(), flush=True)
"""
OPEN = """
import socket, sys
from rotary_foundry import load_recipe
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.utils.errors import DataError
socket.gethostname = lambda: "{host}"
try:
    open_corpus(load_recipe("{nano}", ["data.local={local}", "data.remote={remote}"]))
except DataError as error:
    print(error, flush=True)
sys.stdin.readline()
"""


def process(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go_on(run: subprocess.Popen) -> str:
    return run.communicate("\n", timeout=60)[0].strip()


@pytest.mark.long
def test_two_runs_that_start_together_both_train_from_one_corpus_that_neither_has_decompressed(row_folder, tmp_path):
    corpus = shutil.copytree(row_folder, tmp_path / "corpus", ignore=shutil.ignore_patterns("*.mds"))
    code = DRAW.format(sources=list(ROWS), local=corpus, row_length=ROW_LENGTH)
    runs = [process(code) for _ in range(2)]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("\n")
        run.stdin.flush()
    first, second = (run.communicate(timeout=60)[0].strip() for run in runs)
    assert first == second
    assert len(first) == 32
    assert not list(corpus.rglob("*.tmp"))


def opening(tmp_path, host: str) -> str:
    """A process on a machine of this name that opens the remote's cache, and comes to a tokenizer of no content."""
    tokenizer = tmp_path / "cache/tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        (tokenizer / name).touch()
    nano, remote = REPOSITORY / "yamls/main/nano.yaml", tmp_path / "nowhere"
    return OPEN.format(nano=nano, local=tmp_path / "cache", remote=remote, host=host)


def test_a_cache_is_refused_while_another_run_has_it_and_free_when_that_run_is_killed(tmp_path):
    cache, code = tmp_path / "cache", opening(tmp_path, "node-0")
    first = process(code)
    assert "tokenizer.json: cannot be read" in first.stdout.readline()  # it has come past the lock
    refused = go_on(process(code))
    assert refused.startswith(f"{cache}: is in use as the cache of another run (process {first.pid} on ")
    assert "give this one a data.local of its own" in refused
    assert "\n" not in refused
    first.kill()
    first.wait()
    assert "tokenizer.json: cannot be read" in go_on(process(code))


def test_the_nodes_of_a_run_may_have_one_cache_on_a_disk_that_they_share(tmp_path):
    first = process(opening(tmp_path, "node-0"))
    assert "tokenizer.json: cannot be read" in first.stdout.readline()
    assert "tokenizer.json: cannot be read" in go_on(process(opening(tmp_path, "node-1")))
    assert first.poll() is None  # it still has its lock
    go_on(first)
