"""Stores and W&B: a real S3 API (moto's server) on loopback, addresses where nobody listens, and W&B's answers."""

import json
import os
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from rotary_foundry.doctor.finding import BAD, GOOD
from rotary_foundry.doctor.reach import check_data, check_save_folder, check_wandb
from rotary_foundry.recipe import Recipe

from ..object_store import bucket
from .conftest import only

NOBODY = "http://127.0.0.1:1"  # no server listens there
KEY = "0123456789" * 4


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with bucket("stored") as url:
        yield url


@pytest.fixture(scope="module")
def remote(store, recipe) -> str:
    """`s3://stored/data`, which holds the corpus."""
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=store)
    local = Path(recipe.data.local)
    for path in local.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "stored", f"data/{path.relative_to(local)}")
    return "s3://stored/data"


def with_data(recipe: Recipe, **changes: str) -> Recipe:
    return replace(recipe, data=replace(recipe.data, **changes))


def test_a_prepared_corpus_is_found_and_one_that_is_not_there_has_its_remedy(recipe, tmp_path):
    data, room = check_data(recipe)
    assert (data.mark, room.mark) == (GOOD, GOOD)
    missing = only(check_data(with_data(recipe, local=str(tmp_path / "data"))))
    assert missing.mark == BAD
    assert f"{tmp_path}/data/tokenizer: no tokenizer.json there" in missing.said
    assert "python data_prep" in missing.remedy


@pytest.mark.long
def test_a_remote_is_asked_itself_although_the_cache_has_everything_and_the_cache_stays_as_it_is(recipe, remote):
    cache = Path(recipe.data.local)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    data, *_ = check_data(with_data(recipe, remote=remote))
    assert data.mark == GOOD
    assert data.said.startswith(f"{remote}: ")
    gone = only(check_data(with_data(recipe, remote="s3://stored/nothing")))
    assert gone.mark == BAD
    assert "s3://stored/nothing/tokenizer/" in gone.said
    assert "AWS_ENDPOINT_URL" in gone.remedy
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_a_data_store_that_nobody_answers_for_is_found(recipe, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOBODY)
    found = only(check_data(with_data(recipe, remote="s3://stored/data")))
    assert found.mark == BAD
    assert "s3://stored/data/tokenizer/tokenizer.json: cannot be fetched" in found.said


def test_a_checkpoint_store_is_written_to_and_left_as_it_was(recipe, store):
    found = only(check_save_folder(replace(recipe, save_folder="s3://stored/runs")))
    assert found.mark == GOOD
    assert "s3://stored/runs/small: 0 complete checkpoints" in found.said
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=store)
    assert "Contents" not in client.list_objects_v2(Bucket="stored", Prefix="runs")
    assert not list(check_save_folder(recipe))  # it has none


def test_a_checkpoint_store_without_its_bucket_or_out_of_reach_is_found(recipe, store, monkeypatch):
    missing = only(check_save_folder(replace(recipe, save_folder="s3://nobodys/runs")))
    assert missing.mark == BAD
    assert "NoSuchBucket" in missing.said
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOBODY)
    away = only(check_save_folder(replace(recipe, save_folder="s3://stored/runs")))
    assert away.mark == BAD
    assert f'Could not connect to the endpoint URL: "{NOBODY}/' in away.said
    assert "AWS_ACCESS_KEY_ID" in away.remedy


@contextmanager
def wandb_server(status: int, answer: object) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The address of what answers as W&B's API does, and what it was asked: paths and keys. The service is a cloud."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            key = b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode().removeprefix("api:")
            asked.append((self.path, key))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def logged(recipe, monkeypatch, tmp_path) -> Recipe:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    return replace(recipe, loggers={"wandb": {"project": "encoders"}})


def test_wandb_without_a_key_would_end_a_run_at_its_start_unless_it_is_offline(logged, monkeypatch):
    found = only(check_wandb(logged))
    assert found.mark == BAD
    assert found.said == f"no key for {NOBODY}"
    offline = replace(logged, loggers={"wandb": {"init_kwargs": {"mode": "offline"}}})
    assert only(check_wandb(offline)).mark == GOOD
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert only(check_wandb(logged)).mark == GOOD
    assert not list(check_wandb(replace(logged, loggers={})))


@pytest.mark.parametrize(
    ("status", "answer", "mark", "said"),
    [
        (200, {"data": {"viewer": {"username": "ada"}}}, GOOD, "knows the key, as ada's"),
        (200, {"data": {"viewer": None}}, BAD, "refuses the key (status 200)"),
        (401, {"errors": ["user is not logged in"]}, BAD, "refuses the key (status 401)"),
        (
            200,
            {"data": None, "errors": [{"message": "internal"}]},
            BAD,
            'does not say whose the key is (status 200): {"data": null, "errors": [{"message": "internal"}]}',
        ),
        (200, ["somebody", "else's"], BAD, 'does not say whose the key is (status 200): ["somebody", "else\'s"]'),
        (500, "out of order", BAD, 'does not say whose the key is (status 500): "out of order"'),
    ],
)
def test_a_wandb_key_is_tried_and_never_shown(logged, monkeypatch, status, answer, mark, said):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_server(status, answer) as (url, asked):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        found = only(check_wandb(logged))
    assert asked == [("/graphql", KEY)]
    assert (found.mark, found.said) == (mark, f"{url} {said}")
    assert KEY not in repr(found)


def test_the_key_and_the_server_of_the_recipe_go_before_those_of_the_environment_as_in_training(logged, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with wandb_server(200, {"data": {"viewer": {"username": "ada"}}}) as (url, asked):
        settings = {"api_key": KEY, "base_url": f"{url}/"}
        found = only(check_wandb(replace(logged, loggers={"wandb": {"init_kwargs": {"settings": settings}}})))
        netrc = Path(os.environ["NETRC"])
        netrc.write_text(f"machine {url.removeprefix('http://')} login user password {KEY}\n")
        monkeypatch.delenv("WANDB_API_KEY")
        del settings["api_key"]
        again = only(check_wandb(replace(logged, loggers={"wandb": {"init_kwargs": {"settings": settings}}})))
    assert (found.mark, found.said) == (again.mark, again.said) == (GOOD, f"{url} knows the key, as ada's")
    assert asked == [("/graphql", KEY)] * 2
    offline = replace(logged, loggers={"wandb": {"init_kwargs": {"settings": {"mode": "offline"}}}})
    assert only(check_wandb(offline)).mark == GOOD


def test_a_wandb_that_nobody_answers_for_is_found(logged, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    found = only(check_wandb(logged))
    assert found.mark == BAD
    assert f"{NOBODY} cannot be reached" in found.said
    assert KEY not in repr(found)
