"""Shards that are not the recipe's are refused by file before anything is built on them."""

import json
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from rotary_foundry import load_recipe
from rotary_foundry.data.corpus import check_same_rows, keep_rows, open_corpus
from rotary_foundry.data.rows import SPECIAL_TOKENS, Manifest, fingerprint
from rotary_foundry.objectives.masked_lm import MaskedLM
from rotary_foundry.objectives.objective import IGNORE_INDEX
from rotary_foundry.utils.errors import DataError

from .conftest import REPOSITORY


@pytest.fixture
def corpus(tmp_path):
    """A prepared folder as far as its manifests tell."""
    (tmp_path / "tokenizer").mkdir()
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS.values(), "word"])}
    Tokenizer(models.WordLevel(vocabulary, "[UNK]")).save(str(tmp_path / "tokenizer/tokenizer.json"))
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(json.dumps(SPECIAL_TOKENS))
    for source in ("code", "docs", "web"):
        for row_length in (1024, 8192):
            for split in ("train", "validation"):
                folder = tmp_path / source / str(row_length) / split
                folder.mkdir(parents=True)
                Manifest(source, split, row_length, 10, 20, 900, 0.9, fingerprint(tmp_path / "tokenizer")).write(folder)
                (folder / "index.json").write_text(json.dumps({"version": 2, "shards": [entry(7), entry(3)]}))
    return tmp_path


def entry(rows: int) -> dict:
    """A shard, as an index lists it."""
    files = {"raw_data": {"basename": "a.mds", "bytes": 9, "hashes": {"xxh64": "0"}}, "zip_data": None}
    return {"format": "mds", "version": 2, "samples": rows, "column_names": ["tokens", "lengths"]} | files


def recipe(*overrides: str):
    return load_recipe(REPOSITORY / "yamls/main/nano.yaml", overrides)


def change(manifest, **values):
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | values))


def test_a_prepared_corpus_is_opened_where_it_lies_or_from_a_remote(corpus, tmp_path_factory):
    here = open_corpus(recipe(f"data.local={corpus}"))
    cache = tmp_path_factory.mktemp("cache")
    assert open_corpus(recipe(f"data.local={cache}", f"data.remote={corpus}")) == here
    assert (here.vocab_size, here.special_ids["mask_token"]) == (6, 4)
    assert (cache / "web/8192/validation/manifest.json").is_file()
    assert not (cache / "tokenizer/generation_config.json").exists()
    (corpus / "tokenizer/generation_config.json").write_text("{}")  # of a decoder
    open_corpus(recipe(f"data.local={cache}", f"data.remote={corpus}"))
    assert (cache / "tokenizer/generation_config.json").read_text() == "{}"


def test_a_missing_manifest_is_named_with_its_remedy(corpus):
    shutil.rmtree(corpus / "docs/8192")
    with pytest.raises(DataError, match=r"docs/8192/train/manifest\.json: no such file.*prepare the data"):
        open_corpus(recipe(f"data.local={corpus}"))


def test_a_remote_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer/tokenizer\.json: cannot be fetched"):
        open_corpus(recipe(f"data.local={tmp_path / 'cache'}", f"data.remote={tmp_path / 'nowhere'}"))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"row_length": 512}, "the recipe expects rows of 1024 tokens, found 512"),
        ({"tokenizer": "0123456789abcdef"}, "made with tokenizer 0123456789abcdef, but .* prepare the data again"),
        ({"rows": 0}, "holds no rows"),
    ],
)
def test_foreign_shards_are_refused(corpus, values, says):
    change(corpus / "docs/1024/validation/manifest.json", **values)
    with pytest.raises(DataError, match=rf"docs/1024/validation/manifest\.json: {says}"):
        open_corpus(recipe(f"data.local={corpus}"))


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (json.dumps({"shards": [entry(7)]}), "lists 7 rows, and manifest.json beside it says 10"),
        (json.dumps({"shards": [entry(7) | {"raw_data": None}]}), "cannot be read: lists a shard without a file"),
        (json.dumps({"shards": [{"samples": 7}]}), "cannot be read: 'raw_data'"),
        ('{"version": 2, "sha', "cannot be read: "),
        ('{"version": 2}', "cannot be read: "),
    ],
)
def test_an_index_that_is_not_its_manifests_is_refused(corpus, tmp_path_factory, index, says):
    (corpus / "docs/1024/validation/index.json").write_text(index)
    with pytest.raises(DataError, match=rf"docs/1024/validation/index\.json: {says}.*; restore .* or prepare the data"):
        open_corpus(recipe(f"data.local={corpus}"))
    cache = tmp_path_factory.mktemp("cache")
    with pytest.raises(DataError, match=rf"{says}.*; {cache} is a cache of {corpus}: remove it if the remote is sound"):
        open_corpus(recipe(f"data.local={cache}", f"data.remote={corpus}"))


@pytest.mark.parametrize(
    ("stage", "rows", "overrides", "there"),
    [
        ("pretrain", 32, [], r"30 in {}/\(code\|docs\|web\)/1024/train"),
        ("extend", 12, ["data.sources=[web]", "stages.decay.mixture=null"], r"10 in {}/\(web\)/8192/train"),
    ],
)
def test_a_corpus_without_one_whole_update_is_refused_by_key_and_folder(corpus, stage, rows, overrides, there):
    """A source with fewer rows than an update takes is named before training (streaming#816, llm-foundry#1518)."""
    key = f"stages.{stage}.global_train_batch_size"
    says = rf"^{key}: an update takes {rows} rows, and there are {there.format(corpus)}, "
    says += rf"so each would come {rows / int(there.split()[0]):.3g} times in it; give a smaller one"
    with pytest.raises(DataError, match=says):
        open_corpus(recipe(f"data.local={corpus}", f"{key}={rows}", *overrides))


def test_token_ids_beyond_the_models_embedding_are_refused(corpus):
    with pytest.raises(DataError, match=r"6 token ids do not fit.*set model\.vocab_size to 64 \(it is 4\)"):
        open_corpus(recipe(f"data.local={corpus}", "model.vocab_size=4"))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["objective.whole_words=true"], "objective"),
        (
            [
                "stages.pretrain.objective={name: masked_lm, whole_words: true, mlm_probability: 0.15,"
                "eval_mlm_probability: 0.15, mask_share: 0.8, random_share: 0.1}"
            ],
            "stages.pretrain.objective",
        ),
    ],
)
def test_a_corpus_without_the_words_that_an_objective_chooses_is_refused_by_key_and_folder(corpus, overrides, key):
    says = (
        rf"docs/1024/train/index\.json: its rows have no column 'word_starts', which '{key}' needs; prepare the data "
    )
    says += "again with the key `word_starts:` in the data YAML, or choose another objective"
    for folder in corpus.glob("*/*/*"):
        known = [entry(rows) | {"column_names": ["tokens", "lengths", "word_starts"]} for rows in (7, 3)]
        (folder / "index.json").write_text(json.dumps({"version": 2, "shards": known}))
    given = recipe(f"data.local={corpus}", *overrides)
    open_corpus(given)
    known[1] = entry(3)  # one shard of the folder lacks it
    (corpus / "docs/1024/train/index.json").write_text(json.dumps({"version": 2, "shards": known}))
    with pytest.raises(DataError, match=says):
        open_corpus(given)


@pytest.mark.parametrize(("role", "key"), [("mask_token", "objective"), ("pad_token", r"model\.family")])
def test_a_tokenizer_without_a_special_token_that_is_needed_is_refused_by_key_and_file(corpus, role, key):
    change(corpus / "tokenizer/tokenizer_config.json", **{role: None})
    says = rf"tokenizer/tokenizer_config\.json: {role} is not given, which '{key}' needs; prepare the data again"
    with pytest.raises(DataError, match=says):
        open_corpus(recipe(f"data.local={corpus}"))


def test_masking_goes_by_the_role_of_a_token_and_not_by_its_spelling(corpus):
    tokenizer = corpus / "tokenizer"
    content = (tokenizer / "tokenizer.json").read_text().replace("[MASK]", "<mask>").replace("[CLS]", "<s>")
    (tokenizer / "tokenizer.json").write_text(content)
    change(tokenizer / "tokenizer_config.json", mask_token={"content": "<mask>", "lstrip": True}, cls_token="<s>")
    for manifest in corpus.glob("*/*/*/manifest.json"):
        change(manifest, tokenizer=fingerprint(tokenizer))
    opened = open_corpus(recipe(f"data.local={corpus}"))
    assert opened.special_ids["mask_token"] == 4 and sorted(opened.special_ids.values()) == [0, 1, 2, 3, 4]
    objective = MaskedLM(0.99, eval_mlm_probability=0.15, mask_share=1.0, random_share=0.0)
    row = {"tokens": np.arange(opened.vocab_size)}
    ids, labels = objective.prepare(row, opened, np.random.default_rng(0), {"mlm_probability": 0.99})
    assert (ids[:5] == np.arange(5)).all() and (labels[:5] == IGNORE_INDEX).all()
    assert set(ids[labels != IGNORE_INDEX]) <= {4}


def test_rows_that_a_run_has_drawn_from_may_not_change(corpus, tmp_path_factory):
    kept, given = tmp_path_factory.mktemp("run") / "rows.json", recipe(f"data.local={corpus}")
    keep_rows(given, kept, trained_lengths=())
    assert list(json.loads(kept.read_text())) == [
        f"{source}/{length}/train" for length in (1024, 8192) for source in given.data.sources
    ]
    change_shard(corpus / "docs/1024/train/index.json", "raw_data")
    change_shard(corpus / "web/8192/train/index.json", "raw_data")
    with pytest.raises(DataError, match="docs/1024/train: not the rows that the run began with, so it would repeat"):
        keep_rows(given, kept, trained_lengths={1024})
    keep_rows(given, kept, trained_lengths=())  # begun anew, with others


def test_rows_that_are_only_compressed_anew_are_the_same(corpus, tmp_path_factory):
    kept, given = tmp_path_factory.mktemp("run") / "rows.json", recipe(f"data.local={corpus}")
    keep_rows(given, kept, trained_lengths=())
    change_shard(corpus / "docs/1024/train/index.json", "zip_data")
    keep_rows(given, kept, trained_lengths={1024, 8192})


def test_a_node_whose_cache_is_of_an_earlier_corpus_is_refused(corpus, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    given = recipe(f"data.local={cache}", f"data.remote={corpus}")
    open_corpus(given, lock=False)
    change_shard(corpus / "docs/1024/train/index.json", "raw_data")
    kept = tmp_path_factory.mktemp("run") / "rows.json"
    keep_rows(recipe(f"data.local={corpus}"), kept, trained_lengths=())
    with pytest.raises(DataError, match=f"docs/1024/train: not the rows that the first node has; {cache} is a cache"):
        check_same_rows(given, kept.read_text())
    shutil.rmtree(cache)
    open_corpus(given, lock=False)
    check_same_rows(given, kept.read_text())


def change_shard(index, of: str) -> None:
    """As if its file were another: the hash is."""
    content = json.loads(index.read_text())
    content["shards"][0][of] = {"basename": "a.mds", "bytes": 9, "hashes": {"xxh64": "1"}}
    index.write_text(json.dumps(content))
