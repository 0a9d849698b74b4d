"""An index read into arrays says of its shards what Streaming's own reading of it says."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streaming.base.format import reader_from_json
from streaming.base.spanner import Spanner

from rotary_foundry.compat.streaming import ShardBounds
from rotary_foundry.data.shard_index import ShardIndex, read_index
from rotary_foundry.data.shard_reader import shard_readers
from rotary_foundry.data.stream import Draw, TrainingStream

from .conftest import ROW_LENGTH, ROWS


def test_readers_are_those_that_streaming_makes_also_of_shards_of_several_kinds(row_folder):
    content = json.loads((row_folder / f"code/{ROW_LENGTH}/train/index.json").read_text())
    for number, entry in enumerate(content["shards"]):
        if number % 3 == 0:
            entry |= {"compression": None, "zip_data": None}
        if number % 2 == 0:
            entry["column_names"] = ["tokens", "lengths", "parts"]
    index = ShardIndex.parse(json.dumps(content))
    assert index.rows.tolist() == [entry["samples"] for entry in content["shards"]]
    assert index.columns == {"tokens", "lengths"}  # those that every shard has
    for reader, entry in zip(shard_readers(index, "here"), content["shards"], strict=True):
        assert reader.get_max_size() > 0  # makes it in full
        assert vars(reader) | {"_made_from": None} == vars(reader_from_json("here", None, entry)) | {"_made_from": None}
    with pytest.raises(AttributeError, match="nothing"):
        _ = reader.nothing


@pytest.mark.parametrize("columns", [[["tokens"]], [{"tokens": 1}], 3, None])
def test_columns_without_names_are_refused(row_folder, columns):
    content = json.loads((row_folder / f"code/{ROW_LENGTH}/train/index.json").read_text())
    content["shards"][-1]["column_names"] = columns
    with pytest.raises(TypeError):
        ShardIndex.parse(json.dumps(content))


def test_a_shard_that_nobody_reads_costs_no_reader(row_folder):
    rows = TrainingStream(list(ROWS), row_folder, None, ROW_LENGTH, 1 << 18, Draw(17, 0, None, 0, 1, 1))
    made = [sum("raw_data" in vars(shard) for shard in rows.shards)]
    for row in (0, 1, sum(ROWS.values()) - 1):
        rows[row]
        made.append(sum("raw_data" in vars(shard) for shard in rows.shards))
    assert made == [0, 1, 1, 2]
    assert isinstance(rows.spanner, ShardBounds)


def test_a_reader_that_another_thread_is_still_making_is_whole(row_folder):
    """A worker's prefetch threads and the worker itself ask for the same shard at the same time."""
    index = read_index(row_folder / f"code/{ROW_LENGTH}/train/index.json")
    half_made, whole = shard_readers(index, "here")[0], shard_readers(index, "here")[0]
    half_made.__dict__["raw_data"] = whole.raw_data
    assert half_made.file_pairs == whole.file_pairs


def test_an_index_is_read_again_only_when_it_is_another_file(row_folder, tmp_path):
    path = tmp_path / "index.json"
    content = (row_folder / f"code/{ROW_LENGTH}/train/index.json").read_text()
    path.write_text(content)
    first = read_index(path)
    assert read_index(path) is first
    shards = json.loads(content)
    shards["shards"].pop()
    path.write_text(json.dumps(shards))
    assert len(read_index(path).rows) == len(first.rows) - 1


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=20).filter(any))
def test_a_row_is_found_in_the_shard_in_which_streaming_finds_it(sizes):
    theirs, ours = Spanner(np.array(sizes)), ShardBounds(np.array(sizes))
    for row in {0, sum(sizes) // 2, sum(sizes) - 1, *(bound for bound in np.cumsum(sizes) if bound < sum(sizes))}:
        assert tuple(map(int, theirs[row])) == ours[row]
    for row in (-1, sum(sizes)):
        with pytest.raises(IndexError):
            ours[row]
