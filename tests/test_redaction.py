"""Secrets are found by their names and replaced wherever they stand, and nothing else is."""

import pytest

from rotary_foundry.utils.redaction import REDACTED, redacted, redacted_arguments

SECRET = "0123456789abcdef"


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "WANDB_API_KEY",
        "password",
        "client_secret",
        "hub_token",
        "token",
        "aws_access_key_id",
        "authorization",
        "apiKey",
        "api-key",
    ],
)
def test_a_value_is_replaced_by_the_name_of_its_key(name):
    assert redacted({"loggers": {name: SECRET}}) == {"loggers": {name: REDACTED}}
    assert redacted({name: 1234}) == {name: REDACTED}


@pytest.mark.parametrize(
    "plain",
    [
        {"rollback": {"at": {"token": "1_200_000_000_000tok", "to": "9tok"}}},
        {"mask_token": "5_000tok", "tokenizer": "a/tokenizer", "author": "somebody", "row_length": 1024},
        {"remote": "s3://bucket/path", "seed": 17, "lr": 1e-4, "none": None, "list": [1, "two"], "monkeys": "three"},
    ],
)
def test_what_is_no_secret_stays(plain):
    assert redacted(plain) == plain


def test_a_secret_is_found_again_in_the_midst_of_other_values():
    config = {"settings": {"api_key": SECRET}, "notes": f"with {SECRET}, and more", "tags": ["a", f"x-{SECRET}"]}
    cleared = redacted(config)
    assert cleared == {
        "settings": {"api_key": REDACTED},
        "notes": f"with {REDACTED}, and more",
        "tags": ["a", f"x-{REDACTED}"],
    }


def test_a_secret_of_the_environment_is_found_under_an_innocent_key(monkeypatch):
    monkeypatch.setenv("SOME_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HOME_OF_RUNS", "a_place_on_the_disk")
    assert redacted({"notes": f"{SECRET} in a_place_on_the_disk"}) == {"notes": f"{REDACTED} in a_place_on_the_disk"}


def test_a_short_value_of_the_environment_does_not_eat_up_texts(monkeypatch):
    monkeypatch.setenv("USE_TOKEN", "1")
    assert redacted({"duration": "1dur"}) == {"duration": "1dur"}


def test_credentials_in_a_url_are_replaced_and_the_url_is_still_told():
    assert redacted("https://me:hunter2@store/path and s3://bucket") == f"https://{REDACTED}@store/path and s3://bucket"


def test_arguments_are_cleared_by_key_and_by_what_the_recipe_has():
    arguments = ["a.yaml", "seed=3", "loggers.wandb.init_kwargs.settings.api_key=short", f"notes={{x: {SECRET}}}"]
    assert redacted_arguments(arguments, {"api_key": SECRET}) == [
        *("a.yaml", "seed=3", f"loggers.wandb.init_kwargs.settings.api_key={REDACTED}"),
        f"notes={{x: {REDACTED}}}",
    ]


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
        {"note": "Authorization: Bearer planted"},
        {"note": "hf_plantedplantedplantedplanted"},
        {"note": "DefaultEndpointsProtocol=https;AccountKey=planted;EndpointSuffix=net"},
        {"AZURE_STORAGE_CONNECTION_STRING": "planted"},
        {"remote": "s3://AKIA:pla/planted@bucket/x"},
        {"remote": "https://user:p@planted@host/x"},
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
