"""Reading and dropping: who is held out, what is left out, and what is said of it."""

from pathlib import Path

import pytest

from rotary_foundry.data_prep import duplicates
from rotary_foundry.data_prep.corpus_config import CorpusConfig, TokenizerConfig, TrainTokenizer
from rotary_foundry.data_prep.pipeline import open_work, settings
from rotary_foundry.data_prep.readers import SourceConfig
from rotary_foundry.data_prep.stage_runs import Stage
from rotary_foundry.data_prep.stages import FindExactDuplicates, MakeTokenizer, ReadDocuments, stages_of
from rotary_foundry.data_prep.work import SPLITS, Work, read_documents
from rotary_foundry.utils.errors import DataError
from tests.data_prep.small_corpus import sentences, write_jsonl


def source(path: Path, texts: list[str], **keys) -> SourceConfig:
    return SourceConfig("jsonl", str(write_jsonl(path, texts)), **keys)


def begun(tmp_path: Path, sources: dict[str, SourceConfig], validation: float = 0.2, **keys) -> Work:
    """The work on some sources, read and searched for exact duplicates."""
    config = CorpusConfig(
        sources, TokenizerConfig(train=TrainTokenizer(320)), [64], str(tmp_path / "out"), validation, **keys
    )
    folder = tmp_path / f"work-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    work = open_work(config, folder, settings(config))
    for rank in range(len(work.tasks)):
        ReadDocuments(work).do(rank)
    for rank in range(FindExactDuplicates(work).tasks):
        FindExactDuplicates(work).do(rank)
    return work


def run_task(stage: Stage, rank: int) -> None:
    """What an executor does."""
    documents = None
    for step in stage.steps[1:]:  # but for the one that sees that the stage before has finished
        documents = step(documents, rank, stage.tasks)
    for _ in documents or ():
        pass


def texts(work: Work, split: str, *sources: str) -> list[str]:
    """The documents that are left, in reading order."""
    files = [file for source in sources or work.parts for file in work.files_of(source, split)]
    return [
        text for file in files for batch in read_documents(work.file(file), work.dropped(file)) for _, text, _ in batch
    ]


def test_a_document_never_changes_sides_when_data_is_added(tmp_path):
    old, new = sentences(1, 200), sentences(2, 200)
    before = begun(tmp_path, {"a": source(tmp_path / "a.jsonl", old)}, 0.1)
    after = begun(
        tmp_path, {"b": source(tmp_path / "b.jsonl", new + old[100:]), "a": source(tmp_path / "c.jsonl", old)}, 0.1
    )
    for split in SPLITS:
        assert set(texts(before, split)) == set(texts(after, split)) & set(old)


def test_the_fraction_asked_for_is_held_out_and_a_larger_one_only_adds(tmp_path):
    a = source(tmp_path / "a.jsonl", sentences(1, 1000))
    small, large = (set(texts(begun(tmp_path, {"a": a}, fraction), "validation")) for fraction in (0.05, 0.2))
    assert 25 < len(small) < 85
    assert 150 < len(large) < 250
    assert small < large


def test_near_empty_and_duplicate_documents_are_dropped_and_the_first_source_keeps_its_own(tmp_path):
    there = sentences(1, 60)
    work = begun(
        tmp_path,
        {
            "first": source(tmp_path / "a.jsonl", [*there[:40], there[3], " \n", "short"]),
            "second": source(tmp_path / "b.jsonl", there),
        },
    )
    assert [part["dropped"]["near-empty"] for part in work.read_json("read")] == [2, 0]
    assert sorted(texts(work, "train", "first") + texts(work, "validation", "first")) == sorted(there[:40])
    assert sorted(texts(work, "train", "second") + texts(work, "validation", "second")) == sorted(there[40:])


def test_duplicates_are_found_whichever_bucket_and_part_they_are_in(tmp_path, monkeypatch):
    there = sentences(1, 300)
    work = begun(tmp_path, {name: source(tmp_path / f"{name}.jsonl", there) for name in ("a", "b", "c")})
    whole = [work.dropped(file).tolist() for file in work.files]
    (work.folder / "duplicates/exact-00000.npy").unlink()
    monkeypatch.setattr(duplicates, "HASHES_AT_A_TIME", 50)
    for task in range(2):
        duplicates.find_exact(work, task, 2)
    assert len(list((work.folder / "duplicates").iterdir())) == 18
    assert [work.dropped(file).tolist() for file in work.files] == whole
    assert sum(map(len, whole)) == 600


def test_an_empty_source_is_named(tmp_path):
    there = sentences(1, 50)
    for nothing, reason in (([], ""), (["", "short"], "left out: 2 near-empty"), (there, "left out: 50 duplicates")):
        work = begun(
            tmp_path,
            {"full": source(tmp_path / "a.jsonl", there), "hollow": source(tmp_path / "b.jsonl", nothing)},
        )
        with pytest.raises(DataError, match=f"source 'hollow' has no documents.*{reason}"):
            MakeTokenizer(work).do(0)


@pytest.mark.parametrize(
    ("documents", "validation", "split"), [(3, 1e-6, "validation"), (3, 1 - 1e-9, "train"), (1, 0.5, "(train|valid)")]
)
def test_a_source_without_documents_in_a_split_is_named(tmp_path, documents, validation, split):
    """A stream with too few samples was an error amid Streaming's batching, or was dropped (streaming#816)."""
    work = begun(tmp_path, {"few": source(tmp_path / "a.jsonl", sentences(1, documents))}, validation)
    with pytest.raises(DataError, match=rf"source 'few': none of its {documents} documents is in the {split}"):
        MakeTokenizer(work).do(0)


def test_too_small_a_source_for_the_number_of_held_out_documents_is_named(tmp_path):
    work = begun(tmp_path, {"few": source(tmp_path / "a.jsonl", sentences(1, 300))}, 200)
    says = r"validation=200 is a number of documents, and \d+ of its 300 can be held out, as 1% are reserved for that"
    with pytest.raises(DataError, match=says):
        MakeTokenizer(work).do(0)


def test_validation_of_one_is_one_document_and_not_all(tmp_path):
    work = begun(tmp_path, {"few": source(tmp_path / "a.jsonl", sentences(1, 3))}, 1)
    says = r"validation=1 is a number of documents, and 0 of its 3 .*; set a fraction such as validation=0\.05"
    with pytest.raises(DataError, match=says):
        MakeTokenizer(work).do(0)


def test_a_filter_by_datatroves_name_drops_what_it_should_and_is_counted(tmp_path):
    good, short = sentences(1, 80), [f"{text[:40]} again" for text in sentences(2, 30)]
    filters = [{"GopherQualityFilter": {"min_doc_words": 15, "min_stop_words": None, "min_avg_word_length": None}}]
    work = begun(tmp_path, {"a": source(tmp_path / "a.jsonl", good + short, filters=filters)})
    (read,) = work.read_json("read")
    kept = texts(work, "train") + texts(work, "validation")
    assert not set(kept) & set(short)
    assert read["dropped"]["GopherQualityFilter"] == 110 - len(kept) >= 30


def test_a_filter_that_cannot_be_applied_names_source_filter_and_document(tmp_path):
    a = source(tmp_path / "a.jsonl", sentences(1, 5), filters=[{"URLFilter": {"use_integrated_lists": False}}])
    with pytest.raises(DataError, match=r"source 'a': URLFilter cannot be applied at .*a\.jsonl:1: .*url"):
        begun(tmp_path, {"a": a})


def test_near_duplicates_of_held_out_documents_are_not_trained_on(tmp_path):
    there = [text for text in sentences(1, 300) if len(text.split()) > 100]
    near = [f"{text} indeed" for text in there]
    sources = {"a": source(tmp_path / "a.jsonl", there), "b": source(tmp_path / "b.jsonl", near)}
    work = begun(tmp_path, sources, deduplication={"minhash": {"language": "en"}})
    for stage in stages_of(work, {})[2:-3]:
        for rank in range(stage.tasks):
            run_task(stage, rank)
    train, held_out = texts(work, "train"), texts(work, "validation")
    pairs = dict(zip(there, near, strict=True)) | dict(zip(near, there, strict=True))
    assert len(held_out) > 10
    assert not {pairs[text] for text in held_out} & {*train, *held_out}
    assert len(train) + len(held_out) < 1.1 * len(there)  # MinHash finds nearly all, and one of each pair stays
    assert all(text in train or text in held_out or pairs[text] in {*train, *held_out} for text in pairs)
