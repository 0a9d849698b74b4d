"""What the suites measure is what they say, on models whose answers are known."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import binomtest

from rotary_foundry.data_prep.inspection.held_out_texts import held_out
from rotary_foundry.evaluation import context, needle
from rotary_foundry.evaluation import masked_lm_loss as masked_lm
from rotary_foundry.evaluation.models import MaskedModel, open_model
from rotary_foundry.evaluation.results import Measure
from rotary_foundry.evaluation.suites import find_suites
from rotary_foundry.utils.errors import ConfigurationError, DataError

UNIFORM = {"cls__predictions__transform__LayerNorm__weight": 0.0}  # of BERT: every word is as likely as any other
CONTEXT = ("longest=256", "shortest=32", "span_tokens=8", "windows=3", "spans=4")
NEEDLE = ("at_least=300", "longest=1024", "nearest=64")


def suite_of(name: str, corpus: Path, *overrides: str):
    (suite,) = find_suites([name], [f"data={corpus}", "resamples=50", *overrides])
    return suite


def measured(name: str, model: Path, corpus: Path, *overrides: str):
    suite = suite_of(name, corpus, *overrides)
    return suite.run(model, suite.config)


def test_a_model_that_knows_nothing_has_the_logarithm_of_its_vocabulary_for_a_loss(model_of, corpus):
    result = measured("masked_lm", model_of("bert", **UNIFORM), corpus)
    every = result.rows[-1]
    assert every.labels["documents of"] == "all"
    assert every.measures["loss"].value == pytest.approx(math.log(384), rel=1e-5)
    assert every.labels["documents"] == 10


def test_a_loss_a_byte_is_that_a_token_over_the_bytes_of_a_token(model_of, corpus):
    result = measured("masked_lm", model_of("bert", **UNIFORM), corpus, "longest=100")
    for row in result.rows:
        tokens = row.measures["loss"].value / row.measures["loss per byte"].value  # bytes to a masked token
        assert 1.5 < tokens < 8


def test_about_15_percent_of_the_tokens_are_targets_and_the_same_for_every_model_of_a_tokenizer(model_of, corpus):
    ours, theirs = (measured("masked_lm", model_of(family), corpus, "longest=128") for family in ("modernbert", "bert"))
    assert [row.labels for row in ours.rows] == [row.labels for row in theirs.rows]
    tokens = sum(min(126, text.tokens) for text in held_out(corpus, 100, 0))
    assert ours.rows[-1].labels["targets"] / tokens == pytest.approx(0.15, abs=0.04)


def test_documents_beyond_the_models_length_are_cut_and_counted_or_refused(model_of, corpus):
    result = measured("masked_lm", model_of("bert"), corpus)
    assert result.facts["documents_cut"] == sum(text.tokens > 126 for text in held_out(corpus, 100, 0))
    assert result.notes[0].startswith(f"documents cut to 126 tokens: {result.facts['documents_cut']}; ")
    with pytest.raises(DataError, match=r"tokens; expected at most 126; set long_documents=truncate"):
        measured("masked_lm", model_of("bert"), corpus, "long_documents=refuse")


def test_what_cannot_be_measured_is_refused_by_its_key(model_of, corpus):
    for name, override, said in (
        ("masked_lm", "mlm_probability=1e-9", "no token of 10 documents was masked"),
        ("context", "longest=100000", "no held-out document of at least 99,998 tokens"),
        ("masked_lm", "longest=2", "longest: expected more than the 2 special tokens around a text, got 2"),
        ("needle", "nearest=100000", "no name occurs twice"),
    ):
        with pytest.raises((ConfigurationError, DataError), match=said):
            measured(name, model_of("modernbert"), corpus, *(NEEDLE if name == "needle" else ()), override)


COUNTS = {
    "masked_lm": ("resamples", "documents", "longest"),
    "context": ("resamples", "documents", "longest", "shortest", "windows", "spans", "span_tokens"),
    "needle": ("resamples", "documents", "longest", "at_least", "windows", "needles", "nearest"),
    "retrieval": ("resamples", "max_pairs", "batch_size"),
}


@pytest.mark.parametrize(
    ("suite", "override", "said"),
    [
        *((suite, "seed=-1", "'seed': expected an integer of at least 0, got -1") for suite in COUNTS),
        *(
            (suite, f"{key}={value}", f"'{key}': expected an integer of at least 1, got {value}")
            for suite, keys in COUNTS.items()
            for key in keys
            for value in (0, -3)
        ),
        *(
            (suite, f"mlm_probability={value}", f"'mlm_probability': expected a share of the tokens .*, got {value}")
            for suite in ("masked_lm", "context")
            for value in ("0.0", "-1.0", "2.0", "nan")
        ),
        *(
            ("masked_lm", f"{key}={value}", f"'{key}': expected a share of the chosen tokens .*, got {value}")
            for key in ("mask_share", "random_share")
            for value in ("-1.0", "2.0", "nan")
        ),
        ("masked_lm", "random_share=0.3", "'random_share': 0.3 and mask_share, 0.8, are more than 1 together"),
        ("masked_lm", "long_documents=drop", "'long_documents': expected truncate or refuse, got 'drop'"),
        ("masked_lm", "rope_theta=0", "'rope_theta': expected a number above 0, got 0"),
        ("context", "span_tokens=100", "'span_tokens': 100 is more than half of the shortest context, 64"),
        ("context", "longest=256", "'longest': 256 is less than four times the shortest, 128"),
        ("context", "spans=100", "'spans': 100 of 64 tokens fill more than half of a window"),
        ("retrieval", "tasks=[]", "'tasks': expected at least one task, such as code_search"),
        ("retrieval", "max_seq_len=3", "'max_seq_len': expected at least 4 tokens, got 3"),
        ("retrieval", "long_documents=drop", "'long_documents': expected truncate or refuse, got 'drop'"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_file_and_key_before_anything_is_loaded(suite, override, said):
    with pytest.raises(ConfigurationError, match=rf"^yamls/eval/{suite}\.yaml: {said}"):
        find_suites([suite], [override])


def test_every_length_of_context_is_asked_for_the_same_tokens(model_of, corpus, monkeypatch):
    labels = []
    score = MaskedModel.score
    monkeypatch.setattr(
        MaskedModel,
        "score",
        lambda model, asked: labels.append([one.labels.tolist() for one in asked]) or score(model, asked),
    )
    result = measured("context", model_of("modernbert"), corpus, *CONTEXT)
    assert [row.labels["context"] for row in result.rows] == [32, 64, 128, 256]
    flat = [[label for one in of_length for label in one] for of_length in labels]
    assert flat[0] == flat[1] == flat[2] == flat[3]
    assert len(flat[0]) == result.data["targets"]


def test_a_context_is_what_stands_around_its_targets_and_holds_all_shorter_ones(model_of, corpus):
    model = open_model(model_of("modernbert"))
    config = suite_of("context", corpus, *CONTEXT).config
    text = next(text for text in held_out(corpus, 10, 0) if text.tokens > 600)
    for window in context._windows(model, text.id, text.text, config):
        assert len(window.ids) == 254
        wider = [(start, start + 126) for start in context.stretches(window, 126)]
        for (low, high), start, places in zip(wider, context.stretches(window, 30), window.targets, strict=True):
            assert 0 <= low <= start < start + 30 <= high <= 254
            assert all(start <= place < start + 30 for place in places)
            assert (window.ids[places] == model.tokenizer.mask_token_id).all()


def test_no_document_that_is_shorter_than_a_window_of_context_takes_the_place_of_one_that_is_not(model_of, corpus):
    lengths = sorted(text.tokens for text in held_out(corpus, 100, 0) if text.source == "long")
    result = measured("context", model_of("modernbert"), corpus, *CONTEXT, f"longest={lengths[2] + 2}", "documents=2")
    assert result.data["documents"] == {"long": 2}


def test_a_model_that_does_not_look_at_context_gains_nothing_from_it(model_of, corpus):
    result = measured("context", model_of("bert", **UNIFORM), corpus, *CONTEXT)
    assert [row.labels["context"] for row in result.rows] == [32, 64, 128]  # all that it can take
    for row in result.rows:
        assert row.measures["loss"].value == pytest.approx(math.log(384), rel=1e-5)
    assert result.headlines[-1].measure.value == pytest.approx(0, abs=1e-6)
    assert "does not fall with context" in result.notes[-1]
    assert result.facts["law"] is None  # no NaN, which is no JSON


class Copier(MaskedModel):
    """Stands for a model that finds a name if, and only if, its tokens stand in the document in order."""

    def logits(self, documents):
        logits = torch.zeros(sum(len(one.places) for one in documents), self.vocab_size)
        at = 0
        for one in documents:
            for name in np.split(one.labels, np.flatnonzero(np.diff(one.places) != 1) + 1):
                there = (sliding_window_view(one.input_ids, len(name)) == name).all(axis=1).any()
                for label in name:
                    logits[at, label if there else 0] = 20.0
                    at += 1
        return logits


class Blind(MaskedModel):
    """Stands for a model that does not look at the document: it always names the same word."""

    def logits(self, documents):
        logits = torch.zeros(sum(len(one.places) for one in documents), self.vocab_size)
        logits[:, 17] = 5.0
        return logits


def asked_of(kind: type[MaskedModel], model_of, corpus) -> list[needle.Asked]:
    real = open_model(model_of("modernbert"))
    model = kind(real.path, real.tokenizer, real.vocab_size, None, {})
    config = suite_of("needle", corpus, *NEEDLE).config
    documents, windows, needles = [], [], []
    for text in held_out(corpus, 10, 0, at_least=300):
        encoded = model.encode(text.text)
        found = needle.find_needles(text.text, encoded, 0, 1022, config, np.random.default_rng(0))
        documents.append(text.id)
        windows.append(encoded.ids[:1022])
        needles.append(found)
    return needle.ask(model, documents, windows, needles)[0]


def test_a_model_that_copies_finds_every_needle_and_none_without_the_far_place(model_of, corpus):
    asked = asked_of(Copier, model_of, corpus)
    assert len(asked) > 3
    assert all(one.found for one in asked)
    assert not any(one.found_replaced for one in asked)
    assert min(one.loss_replaced - one.loss for one in asked) > 15


def test_a_model_that_looks_at_nothing_finds_as_much_without_the_far_place(model_of, corpus):
    asked = asked_of(Blind, model_of, corpus)
    assert [one.found for one in asked] == [one.found_replaced for one in asked]
    assert all(one.loss == one.loss_replaced for one in asked)


def test_a_needle_stands_twice_far_apart_and_its_other_name_is_another(model_of, corpus):
    model = open_model(model_of("modernbert"))
    config = replace(suite_of("needle", corpus, *NEEDLE).config, needles=3)
    for text in held_out(corpus, 10, 0, at_least=300):
        encoded = model.encode(text.text)
        found = needle.find_needles(text.text, encoded, 0, 1022, config, np.random.default_rng(0))
        assert 1 <= len(found) <= 3
        for one in found:
            size = len(one.tokens)
            assert encoded.ids[one.first : one.first + size].tolist() == list(one.tokens)
            assert encoded.ids[one.second : one.second + size].tolist() == list(one.tokens)
            name = text.text[encoded.spans[one.first, 0] : encoded.spans[one.first + size - 1, 1]].strip()
            assert text.text.count(name) == 2
            assert one.distance >= 64
            assert len(one.other) == size
            assert one.other != one.tokens


def test_where_no_name_is_found_it_is_told_of_how_many_documents(model_of, corpus):
    names, gain, _ = measured("needle", model_of("modernbert"), corpus, *NEEDLE).headlines
    assert names.measure.value == gain.measure.value == 0
    most = binomtest(0, 4).proportion_ci().high
    assert names.measure == Measure(0.0, 0.0, pytest.approx(most))
    assert gain.measure == Measure(0.0, pytest.approx(-most), pytest.approx(most))


def test_needles_are_told_by_distance_and_by_depth(model_of, corpus):
    result = measured("needle", model_of("modernbert"), corpus, *NEEDLE)
    by = {
        kind: [row for row in result.rows if row.labels["needles by"].startswith(kind)]
        for kind in ("distance", "depth")
    }
    every = result.rows[-1].labels["needles"]
    assert (
        sum(row.labels["needles"] for row in by["distance"])
        == sum(row.labels["needles"] for row in by["depth"])
        == every
    )


def test_a_suite_measures_the_same_twice(model_of, corpus):
    for name, overrides in (("masked_lm", ()), ("context", CONTEXT), ("needle", NEEDLE)):
        first, again = (measured(name, model_of("modernbert"), corpus, *overrides) for _ in range(2))
        assert json.dumps([str(row) for row in first.rows]) == json.dumps([str(row) for row in again.rows])


def test_a_suites_yaml_refuses_a_key_that_it_does_not_have(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("suite: context\nextends: [other.yaml]\nlongset: 4096\n")
    (tmp_path / "other.yaml").write_text(Path("yamls/eval/context.yaml").read_text())
    with pytest.raises(ConfigurationError, match=r"mine\.yaml: unknown key 'longset'; did you mean 'longest'"):
        find_suites([str(path)])
    path.write_text("suite: contexts\n")
    with pytest.raises(ConfigurationError, match=r"mine\.yaml: suite: no suite 'contexts'; there are masked_lm, "):
        find_suites([str(path)])


def test_the_unit_of_a_result_is_a_document(model_of, corpus):
    result = measured("masked_lm", model_of("bert"), corpus)
    assert {len(headline.units) for headline in result.headlines} == {10}
    assert masked_lm.LOSS in result.rows[0].measures
