"""Bad input and a full disk, through the whole preparation: what was good is in the shards, and no shard is bad."""

import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from rotary_foundry.data_prep.inspection.verify import verify
from rotary_foundry.data_prep.pipeline import prepare, work_folder
from rotary_foundry.data_prep.readers import BadInput, SourceConfig
from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.utils.errors import DataError
from tests.data_prep.reading import documents
from tests.data_prep.small_corpus import content
from tests.data_prep.test_readers_bad_input import FUZZED, PAGES, ROWS
from tests.mutations import damaged, repacked


def malformed_files(folder: Path, kind: str) -> SourceConfig | None:
    """A folder of malformed files that are not refused outright, and the source that reads it."""
    reader, name, write = FUZZED[kind]
    generator = random.Random(kind)
    folder.mkdir(parents=True)
    write(folder.parent / name, [f"Of {kind}: {row}" for row in (PAGES if kind == "warc" else ROWS)])
    sound = (folder.parent / name).read_bytes()
    for number in range(30):
        change = repacked if name.endswith(".gz") and number % 2 else damaged
        path = folder / f"{number}-{name}"
        path.write_bytes(change(sound, generator))
        try:
            documents(SourceConfig(reader, str(path)), BadInput(kind, limit=1000))
        except DataError:
            path.unlink()
    return SourceConfig(reader, str(folder))


@pytest.mark.long
def test_two_hundred_malformed_files_make_no_bad_shard(config, tmp_path):
    kinds = [kind for kind, (_, name, _) in FUZZED.items() if "." in name]
    sources = {kind: malformed_files(tmp_path / kind / "files", kind) for kind in kinds}
    assert sum(len(list(Path(source.path).iterdir())) for source in sources.values()) > 200
    prepare(replace(config, sources=config.sources | sources, validation=0.4, max_bad_documents=1000))
    assert not verify(config.out).problems
    statistics = Statistics.read(config.out)
    listed = (Path(config.out) / "bad_input.txt").read_text(encoding="utf-8").splitlines()
    several = (
        "parquet",
        "csv",
        "jsonl",
        "gzip",
        "zstandard",
    )  # a line may stand for rows of a group, or that end in CR
    for kind in kinds:
        lines = sum(line.startswith(f"{kind}: ") for line in listed)
        counted = sum(statistics.sources[kind].left_out.get(reason, 0) for reason in ("bad input", "without text"))
        assert (counted >= lines if kind in several else counted == lines) and lines > 0, kind
    assert statistics.sources["mine"].left_out == {}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk that is nearly full: a file cannot grow further, by another error number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [2_000, 20_000])  # full while documents are written, and while shards are
def test_a_full_disk_is_one_line_and_the_same_command_goes_on_when_there_is_room(config, tmp_path, size):
    with files_of_at_most(size), pytest.raises(DataError, match=r"cannot be written: .*File too large") as error:
        prepare(config)
    assert "\n" not in str(error.value)
    assert not Path(config.out).exists()
    assert work_folder(config).exists()
    prepare(config)
    prepare(replace(config, out=str(tmp_path / "undisturbed")))
    assert content(Path(config.out)) == content(tmp_path / "undisturbed")
