"""What is shown of a configuration."""

import pytest

from encoder_foundry.redaction import REDACTED, redacted


@pytest.mark.parametrize(
    "config",
    [
        {"api_key": "planted"},
        {"apiKey": "planted"},
        {"hf_token": "planted"},
        {"loggers": {"wandb": {"init_kwargs": {"settings": {"api-key": "planted"}}}}},
        {"password": ["planted", "planted"]},
        {"aws": {"credentials": {"id": "planted", "value": "planted"}}},
        {"remote": "s3://user:planted@bucket/data"},
        {"remote": "https://account.blob/data?sv=1&sig=planted"},
        {"note": "Bearer hf_plantedplantedplantedplanted"},
        {"AWS_SECRET_ACCESS_KEY": "planted"},
        {"key": "AKIAPLANTEDPLANTED12"},
    ],
)
def test_a_planted_secret_is_not_shown(config):
    assert "planted" not in str(redacted(config)).lower()
    assert REDACTED in str(redacted(config))


def test_a_recipe_is_shown_as_it_is():
    recipe = {
        "seed": 17,
        "rollback": {"at": {"token": "1_200_000_000_000tok", "to": "900_000_000_000tok"}, "max_rollbacks": 3},
        "data": {"remote": "s3://bucket/data", "sources": ["code", "web"], "tokenizer": None},
        "stages": {"decay": {"mixture": {"web": 0.4}, "t_decay": "1dur", "batch_size_ramp": None}},
        "masking": {"mask_share": 0.8},
        "loggers": {"wandb": {"project": "encoders", "entity": "us"}},
    }
    assert redacted(recipe) == recipe


def test_a_secret_that_is_not_set_is_not_made_one():
    assert redacted({"api_key": None}) == {"api_key": None}
