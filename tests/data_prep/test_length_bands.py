"""A source that is split by the length of its documents."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rotary_foundry.data.rows import Manifest
from rotary_foundry.data_prep.corpus_config import CorpusConfig
from rotary_foundry.data_prep.inspection.verify import verify
from rotary_foundry.data_prep.length_bands import band_names, bands_of, check_bands
from rotary_foundry.data_prep.pipeline import prepare, settings
from rotary_foundry.data_prep.readers import SourceConfig
from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.utils.errors import DataError
from tests.data_prep.small_corpus import content, sentences, write_jsonl

pytestmark = pytest.mark.usefixtures("numbers_of_our_own")
BOUNDS = [200, 500]
BANDS = ["mine_below_200", "mine_200_to_500", "mine_from_500"]


def banded(config: CorpusConfig, bounds: list[int] = BOUNDS) -> CorpusConfig:
    return replace(config, sources=config.sources | {"mine": replace(config.sources["mine"], length_bands=bounds)})


def documents(out: str, source: str, split: str) -> list[dict]:
    tables = sorted(Path(out, source, "documents", split).glob("*.parquet"))
    return [row for table in tables for row in pq.read_table(table).to_pylist()]


def test_a_document_at_a_bound_is_in_the_longer_band():
    assert band_names("mine", BOUNDS) == BANDS
    assert bands_of(np.array([0, 199, 200, 499, 500, 9000]), BOUNDS).tolist() == [0, 0, 1, 1, 2, 2]
    assert (band_names("mine", None), bands_of(np.array([1, 9000]), None).tolist()) == (["mine"], [0, 0])


@pytest.mark.parametrize("held_out", [0.2, 25])
def test_bands_have_the_sources_documents_each_in_the_side_that_it_had(config, tmp_path, held_out, monkeypatch):
    monkeypatch.setattr("rotary_foundry.data_prep.stages.RESERVED", 0.5)
    config = replace(config, validation=held_out)
    plain = replace(config, out=str(tmp_path / "plain"))
    prepare(plain)
    prepare(banded(config))
    for split in ("train", "validation"):
        found = {band: documents(config.out, band, split) for band in BANDS}
        assert Counter(row["id"] for rows in found.values() for row in rows) == Counter(
            row["id"] for row in documents(plain.out, "mine", split)
        )
        for band, (low, high) in zip(BANDS, [(0, 200), (200, 500), (500, 10**9)], strict=True):
            assert found[band] and all(low <= row["tokens"] < high for row in found[band])
    assert not verify(config.out).problems
    before, after = Statistics.read(plain.out), Statistics.read(config.out)
    assert list(after.sources) == [*BANDS, "yours"]
    assert (after.corpus, after.unigram_entropy) == (before.corpus, before.unigram_entropy)
    assert sum(after.sources[band].train.tokens for band in BANDS) == before.sources["mine"].train.tokens
    assert after.sources[BANDS[0]].left_out == before.sources["mine"].left_out
    assert Manifest.read(Path(config.out, BANDS[1], "64", "train")).source == BANDS[1]
    assert content(Path(config.out, "yours")) == content(Path(plain.out, "yours"))


def test_parts_and_workers_change_nothing_and_an_interrupted_preparation_goes_on(config, tmp_path, monkeypatch):
    files = [write_jsonl(tmp_path / f"part{n}.jsonl", sentences(n, 40)) for n in range(3)]
    monkeypatch.setattr("rotary_foundry.data_prep.readers.listing.PART_BYTES", files[0].stat().st_size)
    source = SourceConfig("jsonl", str(tmp_path / "part*.jsonl"))
    config = banded(replace(config, sources={"mine": source}))
    prepare(config)
    assert len(list(Path(config.out, BANDS[0], "documents/train").iterdir())) == 3
    again = replace(config, out=str(tmp_path / "again"), executor={"local": {"workers": 2}})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("rotary_foundry.data_prep.stages.finish", _interrupted)
        prepare(replace(again, executor=config.executor))
    prepare(again)
    assert content(Path(config.out)) == content(tmp_path / "again")


def _interrupted(*_) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("bounds", "complaint"),
    [
        ([200, 5000], r"train split has 5,000 tokens or more, so mine_from_5000 would be empty .*below_200 \d+"),
        ([2, 500], "train split has fewer than 2 tokens"),
    ],
)
def test_a_band_without_documents_is_an_error_that_names_it(config, bounds, complaint):
    with pytest.raises(DataError, match=rf"sources\.mine\.length_bands: no document of the {complaint}"):
        prepare(banded(config, bounds))
    assert not Path(config.out).exists()


def test_a_split_without_documents_of_a_band_is_told_what_to_do():
    check_bands("mine", BOUNDS, {"train": [1, 1, 1], "validation": [1, 1, 1]})
    said = r"validation split has 200 to 499 tokens, so mine_200_to_500 would be .*; choose .* or hold out more"
    with pytest.raises(DataError, match=said):
        check_bands("mine", BOUNDS, {"train": [1, 1, 1], "validation": [1, 0, 1]})


def test_settings_are_those_of_before_without_bands_and_others_with_them(config):
    assert "length_bands" not in settings(config)["sources"]["mine"]
    assert settings(banded(config)) != settings(banded(config, [300])) != settings(config)
