"""Any masked language model is computed as transformers computes it, and what does not fit is refused by name."""

import json
import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM, AutoTokenizer

from rotary_foundry.evaluation.models import Masked, open_model
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.evaluation.corpus import texts
from tests.permuted import permuted


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "deberta", "modernbert"])
def test_the_loss_at_masked_places_is_the_one_of_all_of_transformers_logits(model_of, family):
    """Padded as without padding: huggingface/transformers#41056, #47496."""
    path = model_of(family)
    model = open_model(path)
    generator = np.random.default_rng(0)
    documents = []
    for length in (30, 100, 7):
        ids = generator.integers(5, 384, size=length)
        places = np.sort(generator.choice(np.arange(1, length - 1), 4, replace=False))
        documents.append(Masked(ids, places, generator.integers(5, 384, size=4)))
    theirs = AutoModelForMaskedLM.from_pretrained(path, attn_implementation="eager").eval()
    for document, scores in zip(documents, model.score(documents), strict=True):
        with torch.inference_mode():
            logits = theirs(input_ids=torch.from_numpy(document.input_ids)[None]).logits[0, document.places]
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(document.labels), reduction="none")
        np.testing.assert_allclose(scores.loss, loss.numpy(), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(scores.found, (logits.argmax(dim=1).numpy() == document.labels))


LIMITS = {"bert": 128, "roberta": 128, "xlm-roberta": 128, "deberta": 128, "modernbert": None}


@pytest.mark.parametrize(("family", "limit"), LIMITS.items())
def test_a_model_takes_as_many_tokens_as_it_has_positions_for(model_of, family, limit):
    model = open_model(model_of(family))
    assert model.limit == limit
    longest = np.full(limit or 1000, 7)
    (scores,) = model.score([Masked(longest, np.array([len(longest) - 1]), np.array([8]))])
    assert np.isfinite(scores.loss).all()


def test_the_bytes_of_its_tokens_add_up_to_the_text(model_of):
    model = open_model(model_of("bert"))
    for text in [text for of in texts().values() for text in of]:
        encoded = model.encode(text)
        assert encoded.bytes.sum() == len(text.encode())
        assert (encoded.bytes >= 0).all()


def test_a_mask_that_a_text_spells_is_text(model_of):
    model = open_model(model_of("bert"))
    assert model.tokenizer.mask_token_id not in model.encode("what [MASK] means").ids


def test_theta_of_a_modernbert_can_be_set(model_of):
    path = model_of("modernbert")
    ids = np.random.default_rng(0).integers(5, 384, size=300)
    asked = [Masked(ids, np.array([3, 200]), ids[[3, 200]])]
    (trained,), (set_), same = (
        open_model(path).score(asked),
        open_model(path, rope_theta=10_000).score(asked)[0],
        open_model(path, rope_theta=160_000).score(asked)[0],
    )
    np.testing.assert_array_equal(trained.loss, same.loss)
    assert not np.allclose(trained.loss, set_.loss)
    assert open_model(path, rope_theta=10_000).facts["variant"] == "theta-10000"


def test_theta_of_another_model_is_refused(model_of):
    with pytest.raises(ConfigurationError, match=r"rope_theta: .* not a model of our families"):
        open_model(model_of("bert"), rope_theta=10_000)


def test_a_tokenizer_with_ids_beyond_the_models_vocabulary_is_refused(model_of):
    with pytest.raises(
        DataError, match=r"has ids up to 383, but .* a vocabulary of 320; give the model's own tokenizer"
    ):
        open_model(model_of("bert", vocab_size=320))


@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_a_tokenizer_of_the_same_size_that_is_not_the_models_is_refused(model_of, tmp_path, family):
    other = permuted(model_of(family), tmp_path / "other")
    with pytest.raises(DataError, match=r"other: not the model's tokenizer: id \d+ is 'd', and 'b' to the model"):
        open_model(model_of(family), tokenizer=str(other))


def test_a_tokenizer_without_a_mask_is_refused(model_of, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(model_of("bert"), path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    del config["mask_token"]
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="has no mask token"):
        open_model(path)


def test_a_tokenizer_that_is_not_there_is_named(model_of, tmp_path):
    with pytest.raises(DataError, match=r"cannot open this tokenizer: .*; name the model's tokenizer with"):
        open_model(model_of("bert"), tokenizer=str(tmp_path))


def test_a_model_without_a_masked_lm_head_is_refused_by_its_first_missing_tensor(model_of):
    with pytest.raises(DataError, match=r"no tensor cls\.predictions\.bias, .* expected a masked-LM head"):
        open_model(model_of("headless"))


def test_a_model_that_has_no_attention_mask_is_refused_as_it_is_opened(model_of):
    """huggingface/transformers#22308: FNet has none, and transformers 5 ignores one that is given."""
    says = r"fnet: expected a model that .* an attention mask; FNetForMaskedLM is none: padding changes what it"
    with pytest.raises(DataError, match=says):
        open_model(model_of("fnet"))


def test_a_directory_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(DataError, match="transformers cannot load a masked language model"):
        open_model(tmp_path)


def test_a_loss_that_is_not_a_number_is_named(model_of):
    path = model_of("bert", cls__predictions__bias=float("nan"))
    with pytest.raises(DataError, match="the loss is not a number"):
        open_model(path).score([Masked(np.array([1, 9, 2]), np.array([1]), np.array([9]))])


def test_special_tokens_are_those_of_the_models_tokenizer(model_of, corpus):
    model = open_model(model_of("roberta"))
    ids = AutoTokenizer.from_pretrained(corpus / "tokenizer")("of the token")["input_ids"]
    framed = model.framed(model.encode("of the token").ids, np.array([0]), np.array([5]))
    assert framed.input_ids.tolist() == ids
    assert framed.places.tolist() == [1]
    assert Tokenizer.from_file(str(corpus / "tokenizer/tokenizer.json")).encode("of the token").ids == ids
