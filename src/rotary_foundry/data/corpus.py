"""Find prepared shards, and refuse shards that do not fit the recipe before anything is built on them.

A prepared corpus is a tree: `tokenizer/` and `<source>/<row_length>/<split>/` with MDS shards and a `manifest.json`.
With `data.remote` the tree is stored there. Files that this module reads are then copied to `data.local` first, and
Streaming fetches the shards when they are needed.

Any number of runs may train from one finished corpus, but the cache of a remote belongs to one run. Two runs would
remove and decompress each other's files, and Streaming's own check overlooks a run whose lock files are in TMPDIR. So
the first process of a node locks the cache. It uses `fcntl.lockf`, because the forked loader workers of a killed run
would still hold a lock by flock. Each node has a lock file of its own: on a shared disk locks may hold for all nodes,
and the nodes of one run would refuse each other. So two runs on different machines with one cache are not detected.
"""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rotary_foundry.data.block_order import blocks_an_epoch
from rotary_foundry.data.rows import MANIFEST, Manifest, fingerprint
from rotary_foundry.data.shard_index import read_index
from rotary_foundry.data.special_tokens import ROLES_FILE, padded, read_tokenizer, special_ids
from rotary_foundry.data.task_file import TASK_FILE, Task
from rotary_foundry.objectives.objective import Objective
from rotary_foundry.recipe import Recipe
from rotary_foundry.runs.record_files import write_whole
from rotary_foundry.runs.run_folder import GENERATION, TOKENIZER_FILES
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import read_object
from rotary_foundry.utils.object_store import fetch
from rotary_foundry.utils.processes import is_first_of_node
from rotary_foundry.utils.wording import one_line

CACHE_LOCK = ".in_use"  # followed by a dot and the machine's name
MADE_BY = {"responses": "`conversations:` for this source"}  # what makes a column, if not a YAML key of its name
_locks: dict[Path, TextIO] = {}  # caches that this process has locked, until it ends


@dataclass(frozen=True)
class TokenizerFacts:
    """Hold the facts about a tokenizer that training needs."""

    vocab_size: int  # one more than the largest id
    special_ids: dict[str, int]  # by role, such as "mask_token"
    fingerprint: str


def open_corpus(recipe: Recipe, lock: bool = True) -> TokenizerFacts:
    """Check that the shards of every stage exist and fit the recipe, and read the facts of the tokenizer.

    Args:
        recipe: the recipe whose shards are checked.
        lock: whether to lock the cache of a remote for this process; a process that decompresses shards in it must.

    Raises:
        DataError: a manifest, an index, the tokenizer or a special token is missing; a row length, tokenizer or
            vocabulary does not fit the recipe; a split is empty; an index lists more or fewer rows than its manifest; a
            stage has fewer rows than an update takes; another run uses the cache.
        Fault: the remote does not answer.
    """
    if lock and recipe.data.remote is not None and is_first_of_node():
        _lock_cache(Path(recipe.data.local))
    tokenizer = _read_tokenizer(recipe)
    _check_roles(recipe, tokenizer)
    if tokenizer.vocab_size > recipe.model.shape.vocab_size:
        raise DataError(
            f"{recipe.data.local}/tokenizer: {tokenizer.vocab_size} token ids do not fit the model's embedding; "
            f"set model.vocab_size to {padded(tokenizer.vocab_size)} (it is {recipe.model.shape.vocab_size})"
        )
    objectives = {stage: open_objective(recipe, stage) for stage in recipe.stages}
    rows = {}
    for folder, row_length in shard_folders(recipe):
        manifest = Manifest.read(_fetched(recipe, f"{folder}/{MANIFEST}").parent)
        where = f"{recipe.data.local}/{folder}/{MANIFEST}"
        if manifest.row_length != row_length:
            raise DataError(f"{where}: the recipe expects rows of {row_length} tokens, found {manifest.row_length}")
        if manifest.tokenizer != tokenizer.fingerprint:
            raise DataError(
                f"{where}: made with tokenizer {manifest.tokenizer}, but {recipe.data.local}/tokenizer is "
                f"{tokenizer.fingerprint}; prepare the data again"
            )
        if manifest.rows == 0:
            raise DataError(f"{where}: holds no rows")
        path = _fetched(recipe, f"{folder}/index.json")
        try:
            index = read_index(path)
        except Exception as error:  # a broken file, or any part of it missing
            raise DataError(f"{path}: cannot be read: {one_line(error)}; {_remedy(recipe)}") from None
        rows[folder] = int(index.rows.sum())
        if rows[folder] != manifest.rows:
            raise DataError(
                f"{path}: lists {rows[folder]} rows, and {MANIFEST} beside it says {manifest.rows}; {_remedy(recipe)}"
            )
        for stage, config in recipe.stages.items():
            missing = set(_columns(objectives[stage], folder.split("/")[0])) - index.columns
            if missing and config.row_length == row_length:
                key = "objective" if config.objective is None else f"stages.{stage}.objective"
                column = min(missing)
                made_by = MADE_BY.get(column, f"the key `{column}:`")
                made_by = "`kind:` for this task" if objectives[stage].tasks else made_by
                raise DataError(
                    f"{path}: its rows have no column '{column}', which '{key}' needs; prepare the data again "
                    f"with {made_by} in the data YAML, or choose another objective"
                )
    for stage, config in recipe.stages.items():
        drawn = [source for source in recipe.data.sources if config.mixture is None or config.mixture.get(source)]
        there = sum(rows[f"{source}/{config.row_length}/train"] for source in drawn)
        if there < config.global_train_batch_size:
            raise DataError(
                f"stages.{stage}.global_train_batch_size: an update takes {config.global_train_batch_size} rows, and "
                f"there are {there} in {recipe.data.local}/({'|'.join(drawn)})/{config.row_length}/train, "
                f"so each would come {config.global_train_batch_size / there:.3g} times in it; give a smaller one, or "
                "prepare more data"
            )
        _check_shares(
            recipe, stage, objectives[stage], {source: rows[f"{source}/{config.row_length}/train"] for source in drawn}
        )
    return tokenizer


def open_objective(recipe: Recipe, stage: str) -> Objective:
    """Build a stage's objective, with its tasks if it is multi-task.

    Raises:
        DataError: the file of a task is missing or broken.
    """
    objective = recipe.objective_of(stage)
    if objective.block_size is not None:
        names = recipe.stages[stage].mixture or recipe.data.sources
        objective.tasks = {name: Task.read(_fetched(recipe, f"{name}/{TASK_FILE}").parent) for name in names}
    return objective


def _columns(objective: Objective, source: str) -> tuple[str, ...]:
    """Return the columns that an objective needs in the rows of a source, in addition to those of a text."""
    if not objective.tasks:
        return objective.columns
    task = objective.tasks.get(source)
    if task is None:
        return ()  # the stage does not draw this source
    return objective.columns if task.kind == "masked_lm" else task.columns


def _check_shares(recipe: Recipe, stage: str, objective: Objective, rows: dict[str, int]) -> None:
    """Refuse a multi-task stage if its epochs have no block of some task, which would then never be drawn."""
    if not objective.tasks:
        return
    weights = recipe.stages[stage].mixture or objective.weights
    blocks = blocks_an_epoch(rows, weights, objective.block_size)
    for task, of_task in zip(rows, blocks, strict=True):
        if of_task == 0:
            key = f"stages.{stage}.mixture.{task}" if recipe.stages[stage].mixture else f"{task}/{TASK_FILE}: weight"
            raise DataError(
                f"{recipe.data.local}: {key} {weights[task]:g} of {sum(weights.values()):g} is less than one of the "
                f"{sum(blocks)} blocks of an epoch; raise it, or set a smaller rows_per_block (it is "
                f"{objective.block_size})"
            )


def _check_roles(recipe: Recipe, tokenizer: TokenizerFacts) -> None:
    """Refuse a tokenizer that lacks a special token needed by a stage's objective or by the export of the model."""
    needed = {role: "model.family" for role in recipe.family.huggingface.special_tokens}
    for stage, config in recipe.stages.items():
        key = "objective" if config.objective is None else f"stages.{stage}.objective"
        needed |= {role: key for role in recipe.objective_of(stage).special_tokens}
    for role, key in needed.items():
        if role not in tokenizer.special_ids:
            raise DataError(
                f"{recipe.data.local}/tokenizer/{ROLES_FILE}: {role} is not given, which '{key}' needs; prepare the "
                "data again, without `causal: true` under `tokenizer:` in the data YAML"
            )


def _remedy(recipe: Recipe) -> str:
    if recipe.data.remote is not None:
        return f"{recipe.data.local} is a cache of {recipe.data.remote}: remove it if the remote is sound"
    return "restore both from a copy, or prepare the data again with `python data_prep CONFIG`"


def _lock_cache(local: Path) -> None:
    """Lock the cache against other runs on this machine until this process ends, even if it is killed."""
    lock = local.resolve() / f"{CACHE_LOCK}.{socket.gethostname()}"
    if lock in _locks:
        return
    local.mkdir(parents=True, exist_ok=True)
    file = lock.open("a+", encoding="ascii")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            return  # a file system without locks
        file.seek(0)
        holder = file.read() or "another process"
        file.close()
        raise DataError(
            f"{local}: is in use as the cache of another run ({holder}); wait for that run, give this one a data.local "
            "of its own, or have both read one finished copy of the corpus, without data.remote"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    _locks[lock] = file


def keep_rows(recipe: Recipe, file: Path, trained_lengths: Collection[int]) -> None:
    """Record a digest of each folder of rows that a run draws from, and refuse a folder that has changed since.

    Args:
        file: the run's file with a digest of each folder of training rows; created if it does not exist.
        trained_lengths: the row lengths, in tokens, that the run has drawn from.

    Raises:
        DataError: a folder has other rows than the run began with.
    """
    kept = read_object(file) if file.is_file() else {}
    for folder, row_length, found in _rows_digests(recipe):
        if row_length in trained_lengths and kept.get(folder, found) != found:
            raise DataError(
                f"{recipe.data.local}/{folder}: not the rows that the run began with, so it would repeat some and "
                "leave out others; put its own shards there again, or give another run_name"
            )
        kept[folder] = found
    write_whole(file, json.dumps(kept, indent=2) + "\n")


def check_same_rows(recipe: Recipe, kept: str) -> None:
    """Refuse this node's shards if they differ from the first node's, as an outdated cache of the remote does.

    Args:
        kept: the text that `keep_rows` wrote on the first node.

    Raises:
        DataError: they differ; the message names the node and the folder.
    """
    expected = json.loads(kept)
    for folder, _, found in _rows_digests(recipe):
        if found != expected[folder]:
            raise DataError(
                f"{socket.gethostname()}: {recipe.data.local}/{folder}: not the rows that the first node has; "
                + _remedy(recipe)
            )


def _rows_digests(recipe: Recipe) -> Iterator[tuple[str, int, str]]:
    """Yield (folder, row length, digest) of all folders of training rows, then (task file, row length, digest)."""
    for folder, row_length in shard_folders(recipe):
        if folder.endswith("/train"):
            yield folder, row_length, read_index(Path(recipe.data.local) / folder / "index.json").digest
    for stage, config in recipe.stages.items():
        for name, task in open_objective(recipe, stage).tasks.items():
            yield f"{name}/{TASK_FILE}", config.row_length, task.digest


def shard_folders(recipe: Recipe) -> Iterator[tuple[str, int]]:
    """Yield (folder below the corpus, row length) of all shards that the recipe reads."""
    for row_length in dict.fromkeys(stage.row_length for stage in recipe.stages.values()):
        for source in recipe.data.sources:
            for split in ("train", "validation"):
                yield f"{source}/{row_length}/{split}", row_length


def _read_tokenizer(recipe: Recipe) -> TokenizerFacts:
    folder = Path(recipe.data.local) / "tokenizer"
    for name in TOKENIZER_FILES if recipe.data.remote else ():
        _fetched(recipe, f"tokenizer/{name}")
    if recipe.data.remote:
        with suppress(DataError):  # few tokenizers have this file
            _fetched(recipe, f"tokenizer/{GENERATION}")
    if not (folder / "tokenizer.json").is_file():
        raise DataError(f"{folder}: no tokenizer.json there; prepare the data first: python data_prep CONFIG")
    return tokenizer_facts(folder)


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """Read the facts about the tokenizer in a folder with a tokenizer.json."""
    made = fingerprint(folder)
    tokenizer = read_tokenizer(folder)
    return TokenizerFacts(max(tokenizer.get_vocab().values()) + 1, special_ids(folder, tokenizer), made)


def _fetched(recipe: Recipe, name: str) -> Path:
    """Return the local path of a file of the corpus; copy it from the remote if it is not there yet."""
    local = Path(recipe.data.local) / name
    if recipe.data.remote is None or local.exists():
        return local
    remote = f"{recipe.data.remote.rstrip('/')}/{name}"
    arriving = local.with_name(f"{local.name}.{socket.gethostname()}.{os.getpid()}")  # several ranks may fetch it
    fetch(remote, arriving)
    arriving.replace(local)
    return local
