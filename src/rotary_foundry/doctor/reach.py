"""Check that remote services can be used: the data, the checkpoint store, W&B.

Each check uses the same access as training. The data is downloaded by the same functions to a temporary folder, because
the cache says nothing about the remote. In the checkpoint store an object is written, read and removed, because
read-only keys would otherwise fail only at the first checkpoint. W&B is asked by its own API with the key of the run.
Keys are never printed.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rotary_foundry.data.corpus import open_corpus
from rotary_foundry.doctor.conversation_checks import check_conversations
from rotary_foundry.doctor.disk_space import check_data_disk
from rotary_foundry.doctor.finding import Finding, bad, good
from rotary_foundry.doctor.task_checks import check_tasks
from rotary_foundry.recipe import Recipe
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.utils.errors import FoundryError
from rotary_foundry.utils.wording import one_line

SECONDS = 10  # time limit for W&B's answer
ANSWER = 200  # characters to print of an unexpected answer
ASK = {"query": "query { viewer { username } }"}


def check_data(recipe: Recipe) -> Iterator[Finding]:
    """Check that the shards of every stage exist, fit the recipe, and fit on the disk."""
    remote, local = recipe.data.remote, recipe.data.local
    with tempfile.TemporaryDirectory() as fetched:
        asked = replace(recipe, data=replace(recipe.data, local=fetched)) if remote else recipe
        start = time.monotonic()
        try:
            open_corpus(asked, lock=False)
        except FoundryError as error:
            yield bad(
                "data",
                str(error).replace(fetched, remote or local),
                "check credentials and endpoint in the environment (AWS_ENDPOINT_URL or S3_ENDPOINT_URL, "
                "AWS_ACCESS_KEY_ID, …)"
                if remote
                else "set data.local to the `out` of a corpus that `python data_prep CONFIG` prepared",
            )
            return
        took = f", asked in {time.monotonic() - start:.1f} s" if remote else ""
        yield good("data", f"{remote or local}: the tokenizer, manifests and indexes of every stage{took}")
        yield from check_tasks(asked)
        yield from check_conversations(asked)
        indexes = Path(fetched if remote else local)
        yield from check_data_disk(recipe, indexes)


def check_save_folder(recipe: Recipe) -> Iterator[Finding]:
    """Check that objects in the checkpoint store can be listed, written, read and removed."""
    from rotary_foundry.runs.checkpoint_store import open_store

    if recipe.save_folder is None:
        return
    folder = RunFolder.of(recipe)
    try:
        store = open_store(recipe, folder)
        seconds = store.try_out()
        count = len(store.checkpoints())
    except FoundryError as error:
        said, _, remedy = str(error).removeprefix("'save_folder': ").partition(" (endpoint and ")
        yield bad("save_folder", said, f"endpoint and {remedy.rstrip(')')}")
        return
    said = f"{store.url}: {count} complete checkpoints; an object written, read and removed in {seconds:.1f} s"
    yield good("save_folder", said)


def check_wandb(recipe: Recipe) -> Iterator[Finding]:
    """Check that W&B is offline or disabled, or that its server accepts the key."""
    arguments = recipe.loggers.get("wandb")
    if arguments is None:
        return
    given = arguments.get("init_kwargs") or {}
    settings = given.get("settings") or {}  # in W&B they take precedence over the environment
    mode = given.get("mode") or settings.get("mode") or os.environ.get("WANDB_MODE", "online")
    if mode in ("offline", "dryrun", "disabled"):
        yield good("W&B", f"{mode}: no network is needed")
        return
    import requests
    import wandb
    from wandb.sdk.lib.wbauth import read_netrc_auth

    server = (settings.get("base_url") or wandb.api.settings("base_url")).rstrip("/")
    key = settings.get("api_key") or os.environ.get("WANDB_API_KEY") or read_netrc_auth(host=server)
    offline = "loggers.wandb.init_kwargs.mode=offline needs no server"
    if not key:
        yield bad("W&B", f"no key for {server}", f"set WANDB_API_KEY, or run `wandb login`; {offline}")
        return
    try:
        reply = requests.post(f"{server}/graphql", json=ASK, auth=("api", key), timeout=SECONDS)
    except requests.RequestException as error:
        yield bad("W&B", f"{server} cannot be reached: {one_line(error)}", f"network and WANDB_BASE_URL; {offline}")
        return
    try:
        answer = reply.json()
    except ValueError:
        answer = None
    match answer:
        case {"data": {"viewer": {"username": name}}}:
            yield good("W&B", f"{server} knows the key, as {name}'s")
        case _ if reply.status_code in (401, 403) or answer == {"data": {"viewer": None}}:
            yield bad("W&B", f"{server} refuses the key (status {reply.status_code})", f"`wandb login` anew; {offline}")
        case _:
            said = " ".join(reply.text.split())[:ANSWER]
            yield bad(
                "W&B",
                f"{server} does not say whose the key is (status {reply.status_code}): {said}",
                f"correct WANDB_BASE_URL if that is not a W&B server; otherwise try again later; {offline}",
            )
