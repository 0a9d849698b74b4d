"""A corpus to a tokenizer and packed shards, in stages that any number of workers share.

    documents   read, filter, split
    duplicates  find them, exact and, if asked for, near ones
    tokenizer   trained or copied
    shards      tokenise once, pack for every row length, write
    finish      indices, manifests, statistics

The result is a folder, or the same below an address of an object store:

    out/tokenizer/                                 a Hugging Face fast tokenizer
    out/<source>/<row_length>/<split>/             index.json, manifest.json, and a folder of MDS shards for each part
    out/<source>/documents/<split>/<part>.parquet  which documents are in those shards: id, bytes, tokens
    out/bad_input.txt                              what could not be read
    out/statistics.json                            counts, unigram entropy, and what all this was made from

Three decisions. A local folder appears whole or not at all: it grows in the work folder and is renamed at the end, so
nobody has to tell finished shards from those of an interrupted run; on a store the manifests come last. Nothing is ever
overwritten: a folder made from the same settings and the same sources is left as it is, any other is refused. And what
was interrupted goes on with the tasks that are not finished, when the same command is given again.
"""

import fcntl
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from encoder_foundry.data.rows import fingerprint
from encoder_foundry.errors import DataError
from encoder_foundry.preparation import executors, readers, stores
from encoder_foundry.preparation.config import CorpusConfig
from encoder_foundry.preparation.stages import stages_of
from encoder_foundry.preparation.statistics import FILE, Statistics
from encoder_foundry.preparation.tokenizer import open_brought
from encoder_foundry.preparation.work import Work

FORMAT = 2  # raised whenever the same texts and settings would give other shards

log = logging.getLogger(__name__)


def prepare(config: CorpusConfig) -> bool:
    """Make the shards that `config` describes, unless they are there.

    Returns:
        Whether they are there now; on Slurm the jobs were submitted.

    Raises:
        DataError: a source, a tokenizer or `config.out` that cannot be used; `config.out` is then as it was, and what
            was done is kept beside it for the next time.
    """
    made_of = settings(config)
    if stores.exists(f"{config.out}/{FILE}"):
        _refuse_other(config.out, made_of, Statistics.read(config.out).configuration)
        shutil.rmtree(work_folder(config), ignore_errors=True)  # Slurm's last job cannot remove its own
        log.info(f"{config.out} is complete and of this configuration and these sources: nothing to do")
        return True
    if stores.exists(config.out) and not (Path(config.out).is_dir() and not any(Path(config.out).iterdir())):
        raise _refusal(config.out, f"something else (no {FILE} is there)")
    if config.tokenizer.path:
        open_brought(Path(config.tokenizer.path))
    folder = work_folder(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            work = open_work(config, folder, made_of)
            done = executors.run(stages_of(work, made_of), work)
        if done:
            shutil.rmtree(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error}") from error
    return done


def settings(config: CorpusConfig) -> dict:
    """What the shards follow from. Paths are not in it but for the files' names: the same files may lie elsewhere."""
    tokenizer = config.tokenizer
    return {
        "format": FORMAT,
        "sources": {
            name: {"reader": source.reader, "text_column": source.text_column, "filters": source.filters}
            for name, source in config.sources.items()
        },
        "files": {name: readers.fingerprint(source) for name, source in config.sources.items()},
        "deduplication": config.deduplication,
        "tokenizer": asdict(tokenizer.train) if tokenizer.train else fingerprint(tokenizer.path),
        "row_lengths": sorted(config.row_lengths),
        "stride": config.stride,
        "validation": config.validation,
    }


def work_folder(config: CorpusConfig) -> Path:
    """Where a preparation keeps what it has done: `work`, or a hidden folder beside `out`."""
    if config.work is not None:
        return Path(config.work)
    out = Path(config.name if stores.is_remote(config.out) else config.out)
    return out.with_name(f".{out.name}-work")


def _refuse_other(where: str | Path, wanted: dict, there: dict) -> None:
    differing = [key for key in wanted if wanted[key] != there.get(key)]
    if differing == ["files"]:
        sources = [name for name in wanted["files"] if wanted["files"][name] != there["files"].get(name)]
        raise _refusal(where, f"other documents: the files of {', '.join(sources)} have changed since")
    if differing:
        raise _refusal(where, f"shards made with other values of {', '.join(differing)}")


def _refusal(where: str | Path, what: str) -> DataError:
    return DataError(f"{where}: holds {what}; delete it, or choose another folder with out=…")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the work folder against a second preparation on this machine."""
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another `python data_prep` is at work there; wait for it to end") from None
        yield


def open_work(config: CorpusConfig, folder: Path, made_of: dict) -> Work:
    """Go on with the work in a folder, or begin it."""
    path = folder / "settings.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        _refuse_other(f"{folder} (unfinished work)", made_of, kept["settings"])
        return Work(config, folder, kept["parts"])
    counts, rank = {}, 0
    (folder / "parts").mkdir(exist_ok=True)
    for name, source in config.sources.items():
        parts = readers.parts(source)
        counts[name] = len(parts)
        for part in parts:
            (folder / "parts" / f"{rank:05d}.json").write_text(json.dumps(part), encoding="utf-8")
            rank += 1
    content = json.dumps({"settings": made_of, "parts": counts}, indent=2)
    temporary = path.with_suffix(".arriving")
    temporary.write_text(content + "\n", encoding="utf-8")
    temporary.replace(path)
    return Work(config, folder, counts)
