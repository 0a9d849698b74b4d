"""The whole way from texts to shards, on a small corpus, read back by Streaming."""

import json
import math
import os
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from streaming import StreamingDataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rotary_foundry.data.rows import Manifest, decode_row, fingerprint
from rotary_foundry.data_prep import pipeline, stages
from rotary_foundry.data_prep.corpus_config import CorpusConfig, TokenizerConfig, TrainTokenizer
from rotary_foundry.data_prep.encoding import CorpusTokenizer
from rotary_foundry.data_prep.inspection.verify import verify
from rotary_foundry.data_prep.pipeline import prepare, work_folder
from rotary_foundry.data_prep.readers import SourceConfig
from rotary_foundry.data_prep.stages import side
from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.data_prep.statistics_table import table
from rotary_foundry.runs.run_lock import LOCK, LockFile, RunLock
from rotary_foundry.utils.errors import ConfigurationError, DataError, FoundryError
from tests.data_prep.small_corpus import content, sentences, write_jsonl

pytestmark = pytest.mark.usefixtures("numbers_of_our_own")


def samples_of(directory: Path) -> list[dict]:
    return list(StreamingDataset(local=str(directory), shuffle=False, batch_size=1))


def texts_of(config: CorpusConfig, source: str, split: str) -> list[str]:
    """The texts that a source's file has for one side, in order, read as simply as can be."""
    reader = config.sources[source]
    lines = Path(reader.path).read_text(encoding="utf-8").splitlines()
    texts = dict.fromkeys(json.loads(line)[reader.text_column or "text"] for line in lines)
    return [
        text for text in texts if len(text) >= 32 and side(sha256(text.encode()).digest(), config.validation) == split
    ]


def test_shards_hold_every_document_of_the_corpus_and_manifests_tell_the_truth(config):
    prepare(config)
    out = Path(config.out)
    tokenizer = CorpusTokenizer(out / "tokenizer")
    for source, row_length, split in product(config.sources, config.row_lengths, ("train", "validation")):
        directory = out / source / str(row_length) / split
        documents = [document for sample in samples_of(directory) for document in decode_row(sample)]
        rows, tokens = len(samples_of(directory)), sum(map(len, documents))
        assert Manifest.read(directory) == Manifest(
            source=source,
            split=split,
            row_length=row_length,
            rows=rows,
            documents=len(documents),
            tokens=tokens,
            fill=tokens / (rows * row_length),
            tokenizer=fingerprint(out / "tokenizer"),
            longer={
                str(length): [len(longer), sum(longer)]
                for length in (128, 256, 512)
                if length < row_length
                for longer in [[len(document) for document in documents if len(document) > length]]
            },
        )
        (cls,), (sep,) = tokenizer.frame.before, tokenizer.frame.after
        assert all(document[0] == cls and document[-1] == sep for document in documents)
        expected = Counter()
        for text in texts_of(config, source, split):
            expected.update(tokenizer.encode([text])[0].tolist())
        found = Counter(token for document in documents for token in document[1:-1].tolist())
        assert not found - expected
        missing = (expected - found).total()
        assert missing <= (row_length if split == "train" else 0)  # a training part's last row may be left out


def test_what_is_written_stands_up_to_verification(config):
    prepare(config)
    report = verify(config.out)
    assert not report.problems
    assert report.shards == 2 * 2 * 2  # a source, a row length and a split have one each


def test_a_row_leads_back_to_its_documents(config):
    prepare(config)
    out = Path(config.out)
    tokenizer = CorpusTokenizer(out / "tokenizer")
    for source, split in product(config.sources, ("train", "validation")):
        there = pq.read_table(out / source / "documents" / split / "00000.parquet").to_pylist()
        lines = Path(config.sources[source].path).read_text(encoding="utf-8").splitlines()
        for sample in samples_of(out / source / "1024" / split):
            for number, document in zip(sample["documents"], decode_row(sample), strict=True):
                entry = there[number]
                path, line = entry["id"].rsplit(":", 1)
                text = json.loads(lines[int(line) - 1])[config.sources[source].text_column or "text"]
                assert path == config.sources[source].path
                assert entry["bytes"] == len(text.encode())
                decoded = tokenizer.decode(document[1:-1]).strip("\ufffd")  # a cut may go through a character
                assert decoded and decoded in text


def test_a_last_row_that_cannot_be_filled_is_reported_when_it_is_left_out(config, caplog):
    with caplog.at_level("INFO"):
        prepare(replace(config, row_lengths=[256]))
    assert "yours: left out" in caplog.text
    assert Manifest.read(Path(config.out, "yours", "256", "train")).fill >= 0.99


def test_statistics_count_the_corpus_and_give_the_held_out_entropy(config):
    prepare(config)
    statistics = Statistics.read(config.out)
    tokenizer = CorpusTokenizer(Path(config.out, "tokenizer"))
    held_out = Counter()
    for source in config.sources:
        texts = texts_of(config, source, "validation")
        tokens, _ = tokenizer.encode(texts)
        counts = statistics.sources[source].validation
        assert (counts.documents, counts.tokens) == (len(texts), len(tokens))
        assert counts.bytes == sum(len(text.encode()) for text in texts)
        held_out.update(tokens.tolist())
    total = held_out.total()
    entropy = -sum(count / total * math.log(count / total) for count in held_out.values())
    assert statistics.unigram_entropy == pytest.approx(entropy)
    assert table("small", statistics).renderables[0].row_count == 4


def test_a_number_of_documents_is_held_out_and_none_of_the_others_that_could_be_is_trained_on(config, monkeypatch):
    monkeypatch.setattr(stages, "RESERVED", 0.2)
    prepare(replace(config, validation=5))
    statistics = Statistics.read(config.out)
    for source in config.sources:
        counts = statistics.sources[source]
        assert counts.validation.documents == 5
        assert counts.train.documents == len(texts_of(config, source, "train"))
        assert counts.left_out["held out and not wanted"] == len(texts_of(config, source, "validation")) - 5


def test_a_number_of_documents_is_held_out_though_some_parts_of_a_source_have_none(config, tmp_path, monkeypatch):
    monkeypatch.setattr("rotary_foundry.data_prep.readers.listing.PART_BYTES", 1)  # each file is a part
    (tmp_path / "many").mkdir()
    for number in range(10):
        write_jsonl(tmp_path / f"many/{number}.jsonl", sentences(number, 1))  # a fifth of them can be held out
    write_jsonl(tmp_path / "many/whole.jsonl", sentences(10, 40))
    monkeypatch.setattr(stages, "RESERVED", 0.2)
    prepare(replace(config, sources={"mine": SourceConfig("jsonl", str(tmp_path / "many"))}, validation=3))
    counts = Statistics.read(config.out).sources["mine"]
    assert counts.validation.documents == 3
    assert counts.train.documents + counts.validation.documents + counts.left_out["held out and not wanted"] == 50


def test_the_same_input_gives_the_same_bytes(config, tmp_path):
    prepare(config)
    prepare(replace(config, out=str(tmp_path / "again")))
    assert content(tmp_path / "out") == content(tmp_path / "again")


def test_running_again_changes_nothing_and_says_so(config, caplog):
    prepare(config)
    before = content(Path(config.out))
    with caplog.at_level("INFO"):
        assert prepare(config)
    assert "nothing to do" in caplog.text
    assert content(Path(config.out)) == before
    assert not work_folder(config).exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"row_lengths": [64, 128]}, "row_lengths"),
        ({"validation": 0.3}, "validation"),
        ({"tokenizer": TokenizerConfig(train=TrainTokenizer(384))}, "tokenizer"),
    ],
)
def test_shards_of_another_configuration_are_refused_and_kept(config, change, named):
    prepare(config)
    before = content(Path(config.out))
    with pytest.raises(DataError, match=f"other values of {named}; delete it, or choose another"):
        prepare(replace(config, **change))
    assert content(Path(config.out)) == before


def test_a_changed_filter_of_a_finished_corpus_is_not_passed_over(config):
    """huggingface/datatrove#291: a stage that was marked as done was not run with its new settings."""
    prepare(config)
    filtered = replace(config.sources["mine"], filters=[{"GopherQualityFilter": {"min_doc_words": 5}}])
    with pytest.raises(DataError, match="other values of sources; delete it, or choose another"):
        prepare(replace(config, sources=config.sources | {"mine": filtered}))


def test_shards_of_another_corpus_are_refused_and_kept(config, tmp_path):
    prepare(config)
    before = content(Path(config.out))
    write_jsonl(tmp_path / "mine.jsonl", sentences(1, 81))
    with pytest.raises(DataError, match="other documents"):
        prepare(config)
    assert content(Path(config.out)) == before


def test_a_folder_of_something_else_is_refused_and_kept(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="something else"):
        prepare(config)
    assert content(tmp_path / "out") == {"thesis.txt": b"precious"}


class Interrupted(BaseException):
    pass


def test_an_interrupted_run_leaves_nothing_that_looks_whole_and_is_gone_on_with(config, tmp_path, monkeypatch):
    def interrupted(work, rank, *rest):
        if rank == 2:
            raise Interrupted
        written.append(rank)
        write(work, rank, *rest)

    prepare(replace(config, out=str(tmp_path / "undisturbed")))
    written, write = [], stages.write_shards
    monkeypatch.setattr(stages, "write_shards", interrupted)
    with pytest.raises(Interrupted):
        prepare(config)
    assert not Path(config.out).exists()
    with monkeypatch.context() as patched:
        patched.setattr(stages, "read", None)  # nothing is read again
        patched.setattr(
            stages, "write_shards", lambda work, rank, *rest: (written.append(rank), write(work, rank, *rest))
        )
        prepare(config)
    assert written == [0, 1, 2, 3]  # two parts and two validation splits, each once
    assert content(Path(config.out)) == content(tmp_path / "undisturbed")


def test_what_came_to_lie_in_out_meanwhile_is_refused_before_the_work_goes_on_and_kept(config, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(stages, "write_shards", interrupt)
        prepare(config)
    Path(config.out).mkdir()
    (Path(config.out) / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="out: holds something else"):
        prepare(config)
    assert content(Path(config.out)) == {"thesis.txt": b"precious"}
    assert work_folder(config).exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [({"row_lengths": [64]}, "row_lengths"), ({"tokenizer": TokenizerConfig(train=TrainTokenizer(384))}, "tokenizer")],
)
def test_unfinished_work_is_not_gone_on_with_by_other_settings(config, change, named, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(stages, "write_shards", interrupt)
        prepare(config)
    with pytest.raises(DataError, match=rf"unfinished work.*other values of {named}; delete it"):
        prepare(replace(config, **change))
    assert work_folder(config).exists()


def test_unfinished_work_of_a_version_with_other_files_in_it_is_refused_and_kept(config, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(stages, "write_shards", interrupt)
        prepare(config)
    settings = work_folder(config) / "settings.json"
    before = {key: value for key, value in json.loads(settings.read_text()).items() if key != "work_format"}
    settings.write_text(json.dumps(before))
    with pytest.raises(DataError, match="holds unfinished work of another version of Rotary Foundry; delete it"):
        prepare(config)
    assert json.loads(settings.read_text()) == before


def interrupt(*_):
    raise Interrupted


def test_a_second_preparation_of_the_same_folder_is_refused_and_the_lock_goes_with_the_folder(config):
    folder = work_folder(config)
    with RunLock(LockFile(folder, "work")):
        with pytest.raises(
            ConfigurationError, match=rf"'work': {folder}: process {os.getpid()} on .* is at work there"
        ):
            prepare(config)
        assert [path.name for path in folder.iterdir()] == [LOCK]
    assert prepare(config)
    assert not folder.exists()


def test_a_preparation_that_has_lost_its_work_folder_begins_no_further_stage(config, monkeypatch):
    def lose_the_lock(*_):
        (work_folder(config) / LOCK).unlink(missing_ok=True)

    monkeypatch.setattr(pipeline, "RunLock", partial(RunLock, gone_after=0))  # which looks at every check
    monkeypatch.setattr(stages, "write_shards", lose_the_lock)
    with pytest.raises(
        FoundryError, match=rf"{work_folder(config)}/lock\.json: was removed while this process held it"
    ):
        prepare(config)
    assert not Path(config.out).exists()


def test_a_tokenizer_brought_along_is_used_and_stored_beside_the_shards(config, tmp_path):
    prepare(config)
    tokenizer = TokenizerConfig(path=str(tmp_path / "out" / "tokenizer"))
    prepare(replace(config, tokenizer=tokenizer, out=str(tmp_path / "second")))
    first, second = content(tmp_path / "out"), content(tmp_path / "second")
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} <= {  # transformers words these in its own way
        "statistics.json",
        "tokenizer/tokenizer_config.json",
    }


KNOWN = "the of and encoder token attends window long document naïve"
UNKNOWN = ("漢字", "🙂", "𐍈", "e\u0301\u0301")


def brought(kind: str, folder: Path) -> Path:
    """A tokenizer of single characters, which knows those of KNOWN; or of bytes, as BPE falls back on."""
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    characters = special + sorted(set(KNOWN)) + [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {character: id_ for id_, character in enumerate(characters)}
    unknown = None if kind == "without a token for it" else "[UNK]"
    fallback = kind == "with bytes"
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=unknown, byte_fallback=fallback))
    roles = {f"{name[1:-1].lower()}_token": name for name in special}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["with an unknown token", "without a token for it", "with bytes"])
def test_text_that_a_tokenizer_does_not_know_is_told(config, kind, tmp_path, caplog):
    """A slow tokenizer's byte_fallback is lost when it is made a fast one (asafam/HebrewModernBERT 03e6392)."""
    texts = [f"{KNOWN} {number % 7} {word}" for number in range(40) for word in UNKNOWN]
    source = SourceConfig("jsonl", str(write_jsonl(tmp_path / "unknown.jsonl", texts)))
    tokenizer = TokenizerConfig(path=str(brought(kind, tmp_path / "brought")))
    prepared = replace(config, sources={"mine": source}, tokenizer=tokenizer, deduplication="exact")
    with caplog.at_level("INFO"):
        prepare(prepared)
    told = re.findall(r"mine: ([\d,]+) of [\d,]+ tokens stand for text that the tokenizer does not know", caplog.text)
    if kind == "with an unknown token":
        encode = CorpusTokenizer(tmp_path / "out/tokenizer").tokenizer.encode
        expected = sum(encode(text, add_special_tokens=False).ids.count(0) for text in dict.fromkeys(texts))
        assert [int(count.replace(",", "")) for count in told] == [expected] and expected > 0
    else:
        assert told == []
    says = "brought: the tokenizer has no unknown token, so it leaves out text that it does not know"
    assert (says in caplog.text) == (kind == "without a token for it")


def test_a_place_that_cannot_be_written_is_named(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"'work': .*file/.out-work: cannot be read or written"):
        prepare(replace(config, out=str(tmp_path / "file" / "out")))
