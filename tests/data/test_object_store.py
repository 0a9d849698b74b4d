"""Training rows out of an object store, by a real S3 API (moto's server), through a cache smaller than the corpus."""

import os
from contextlib import suppress
from pathlib import Path

import boto3
import pytest
from torch.utils.data import DataLoader

from rotary_foundry import load_recipe
from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.data.stream import Draw, TrainingStream
from rotary_foundry.utils.errors import DataError, Fault

from ..object_store import bucket
from .conftest import REPOSITORY, ROW_LENGTH, write_rows

ROWS = {"code": 1500, "docs": 900}
DRAW = Draw(17, 0, {"code": 0.4, "docs": 0.6}, 0, updates=300, global_batch_size=12)  # an epoch and a half
LIMIT = 100_000  # bytes
NOBODY = "http://127.0.0.1:1"  # no server listens there


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_rows(root, rows=ROWS, parts=3)
    return root


@pytest.fixture(scope="module")
def remote(corpus):
    """`s3://corpus`, which holds the corpus."""
    with bucket("corpus") as url:
        client = boto3.client("s3", region_name="us-east-1", endpoint_url=url)
        for path in corpus.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "corpus", str(path.relative_to(corpus)))
        yield "s3://corpus"


def stream(local: Path, remote: str | None = None, cache_limit: str | None = None) -> TrainingStream:
    return TrainingStream(list(ROWS), local, remote, ROW_LENGTH, 300, DRAW, cache_limit)


def sizes_in(folder: Path) -> dict[str, int]:
    sizes = {}
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                sizes[os.path.join(path, name)] = os.stat(os.path.join(path, name)).st_size
    return sizes


def size_of(folder: Path) -> int:
    """Bytes in a folder at a moment in which no other thread adds to it or takes from it."""
    while (sizes := sizes_in(folder)) != sizes_in(folder):
        pass
    return sum(sizes.values())


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_every_row_comes_right_through_a_cache_that_holds_a_part_of_the_corpus(corpus, remote, tmp_path, num_workers):
    expected = stream(corpus)
    rows = stream(tmp_path, remote, cache_limit=f"{LIMIT}b")
    largest, seen, drawn = 0, 0, set()
    for batch in DataLoader(rows, batch_size=12, num_workers=num_workers, collate_fn=list):
        for sample in batch:
            assert sample["tokens"].tolist() == expected[sample["row"]]["tokens"].tolist()
            assert sample["lengths"].tolist() == expected[sample["row"]]["lengths"].tolist()
            drawn.add(sample["row"])
            seen += 1
        largest = max(largest, size_of(tmp_path))
    assert seen == 3600
    assert len(drawn) > 1900
    assert sum(path.stat().st_size for path in corpus.rglob("*.mds")) > 2 * LIMIT
    assert LIMIT / 2 < largest <= LIMIT


@pytest.mark.long
def test_a_shard_whose_store_is_gone_is_a_fault_and_one_that_was_removed_is_not(corpus, remote, tmp_path, monkeypatch):
    first, second = (  # for an error ends a run, and what it was fetching then never comes
        DataLoader(stream(tmp_path / local, remote), batch_size=12, num_workers=1, collate_fn=list)
        for local in ("first", "second")
    )
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    name = next(path.relative_to(corpus) for path in sorted(corpus.rglob("*.mds.zstd")))
    with monkeypatch.context() as gone, pytest.raises(Fault, match=r"s3://corpus/.*: cannot be loaded: Could not"):
        gone.setenv("AWS_ENDPOINT_URL", NOBODY)
        list(first)
    client.delete_object(Bucket="corpus", Key=str(name))
    try:
        with pytest.raises(DataError, match=f"{name}: cannot be loaded"):
            list(second)
    finally:
        client.upload_file(str(corpus / name), "corpus", str(name))


def test_a_corpus_whose_store_is_gone_is_a_fault_and_one_that_is_not_there_is_refused(remote, tmp_path, monkeypatch):
    recipe = load_recipe(REPOSITORY / "yamls/main/nano.yaml", [f"data.local={tmp_path}", f"data.remote={remote}"])
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot be fetched"):
        open_corpus(recipe)
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOBODY)
    with pytest.raises(Fault, match=r"tokenizer\.json: cannot be fetched: Could not connect"):
        open_corpus(recipe)
