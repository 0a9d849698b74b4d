"""Prepare a corpus: make a tokenizer and packed shards, in stages that run on any number of workers.

    documents   read, filter, split
    duplicates  find exact duplicates, and near-duplicates if configured
    tokenizer   train or copy it
    shards      tokenise once, pack for every row length, write
    finish      indices, manifests, statistics

The result is a folder, or the same below an address of an object store:

    out/tokenizer/                                 a Hugging Face fast tokenizer
    out/<source>/<row_length>/<split>/             index.json, manifest.json, and a folder of MDS shards for each part
    out/<source>/documents/<split>/<part>.parquet  which documents are in those shards: id, bytes, tokens
    out/bad_input.txt                              the documents that could not be read
    out/statistics.json                            counts, unigram entropy, and the settings and sources used

There are three decisions. First, a local folder appears only when it is complete: it is built in the work folder and
renamed at the end, so it never holds the shards of an interrupted preparation. In an object store, statistics.json is
written last. Second, nothing is ever overwritten: a folder made from the same settings and sources is left unchanged,
and any other is refused. Third, the same command resumes an interrupted preparation with its unfinished tasks.
"""

import json
import logging
import shutil
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

from rotary_foundry.data.rows import fingerprint
from rotary_foundry.data.special_tokens import ROLES_FILE
from rotary_foundry.data_prep import readers, stage_runs
from rotary_foundry.data_prep.conversations.conversation_rows import template_of
from rotary_foundry.data_prep.corpus_config import CorpusConfig
from rotary_foundry.data_prep.labelled.data_config import DataConfig
from rotary_foundry.data_prep.labelled.examples import source_files
from rotary_foundry.data_prep.readers.listing import digest
from rotary_foundry.data_prep.stages import stages_of
from rotary_foundry.data_prep.statistics import FILE, Statistics
from rotary_foundry.data_prep.tokenizer import open_brought
from rotary_foundry.data_prep.work import Work
from rotary_foundry.runs.run_lock import LOCK, LockFile, RunLock
from rotary_foundry.utils import object_store
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import read_object

# Keys of a source that were added later. Settings contain only those that are given, so older settings stay valid.
LATER = ("separator", "remove", "length_bands", "depth", "endings", "conversations", "alone_from", "too_long")
LATER += ("delimiter", "encoding")

FORMAT = 2  # raised whenever the same texts and settings would give different shards
WORK_FORMAT = 2  # raised whenever the files that a stage reads from earlier stages change

SETTINGS, ARRIVING = "settings.json", "settings.arriving"  # files of a work folder

log = logging.getLogger(__name__)


def prepare(config: CorpusConfig) -> bool:
    """Make the shards that `config` describes, unless they exist.

    Returns:
        Whether the shards exist now; False on Slurm, where jobs were submitted.

    Raises:
        DataError: a source, a tokenizer or `config.out` cannot be used; `config.out` is then unchanged, and finished
            work is kept beside it for the next run.
        ConfigurationError: another preparation uses the same work folder, or its lock cannot be written.
    """
    config = replace(config, out=config.out.rstrip("/"))
    made_of = settings(config)
    folder = work_folder(config)
    begun = _kept(folder)
    if object_store.exists(f"{config.out}/{FILE}"):
        _refuse_other(config.out, made_of, Statistics.read(config.out).configuration)
        if begun is not None and begun["out"] == config.out:
            shutil.rmtree(folder)  # Slurm's last job cannot remove the folder that it runs in
        log.info(f"{config.out} is complete, from this configuration and these sources: nothing to do")
        return True
    if begun is not None:
        if begun["out"] != config.out:
            raise _refusal(folder, f"unfinished work for {begun['out']}", "work")
        if begun.get("work_format") != WORK_FORMAT:
            raise _refusal(folder, "unfinished work of another version of Rotary Foundry", "work")
        _refuse_other(f"{folder} (unfinished work)", made_of, begun["settings"], "work")
    ours = begun is not None and object_store.is_remote(config.out)  # a store is filled while the work is in progress
    if not ours and object_store.exists(config.out) and not _is_empty(Path(config.out)):
        raise _refusal(config.out, f"something else (it has no {FILE})")
    if config.tokenizer.path:
        open_brought(Path(config.tokenizer.path), config.tokenizer.causal)
    try:
        with RunLock(LockFile(folder, "work")) as lock:
            work = open_work(config, folder, made_of)
            done = stage_runs.run(stages_of(work, made_of), work, lock)
        if done:
            shutil.rmtree(folder)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be written: {error.strerror or error}") from error
    return done


def settings(config: CorpusConfig) -> dict:
    """Return the settings that determine the shards, with names, sizes and times of source files, but no full paths."""
    tokenizer = config.tokenizer
    trained = asdict(tokenizer.train) if tokenizer.train else {}
    if trained.get("kind") == "bpe":  # the settings of a corpus are the same as before there were kinds
        del trained["kind"]
    made = (trained or _of_tokenizer(Path(tokenizer.path))) | ({"causal": True} if tokenizer.causal else {})
    return {
        "format": FORMAT,
        "sources": {
            name: {
                key: value
                for key, value in asdict(source).items()
                if key not in ("path", "install") and (value is not None or key not in LATER)
            }
            for name, source in config.sources.items()
        },
        "files": {name: readers.fingerprint(source) for name, source in config.sources.items()}
        | {name: files_digest(task.data) for name, task in config.labelled.items()},
        "deduplication": config.deduplication,
        "tokenizer": made,
        "row_lengths": sorted(config.row_lengths),
        "stride": config.stride,
        "validation": config.validation,
    } | _later(config)


def _later(config: CorpusConfig) -> dict:
    """Return those keys added later that are given, so that settings without them are the same as in older versions."""
    tasks = {name: asdict(task) for name, task in config.tasks.items()}
    for task in tasks.values():
        del task["data"]["path"]
    template = sha256(template_of(config).source.encode()).hexdigest()[:16] if config.has_conversations else None
    later = {"word_starts": config.word_starts, "tasks": tasks, "chat_template": template}
    return {key: value for key, value in later.items() if value}


def _of_tokenizer(path: Path) -> dict[str, str]:
    """Return fingerprints of the tokenizer and of the roles of its special tokens."""
    config = path / ROLES_FILE
    roles = read_object(config) if config.is_file() else {}
    named = {role: token for role, token in roles.items() if role.endswith("_token")}
    return {
        "tokenizer": fingerprint(path),
        "roles": sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16],
    }


def files_digest(data: DataConfig) -> str:
    """Return a digest of the names, sizes and times of the files of labelled examples."""
    stats = [(file, file.stat()) for file in source_files(data)]
    return digest((file.name, stat.st_size, stat.st_mtime) for file, stat in stats)


def work_folder(config: CorpusConfig) -> Path:
    """Return the work folder: `work`, or by default a hidden folder beside `out`."""
    if config.work is not None:
        return Path(config.work)
    out = Path(config.name if object_store.is_remote(config.out) else config.out)
    return out.with_name(f".{out.name}-work")


def _refuse_other(where: str | Path, wanted: dict, there: dict, key: str = "out") -> None:
    differing = [name for name in wanted | there if wanted.get(name) != there.get(name)]
    if "format" in differing:
        raise _refusal(where, "files of an earlier version of Rotary Foundry", key)
    if differing == ["files"]:
        sources = [name for name in wanted["files"] if wanted["files"][name] != there["files"].get(name)]
        raise _refusal(where, f"other documents: the files of {', '.join(sources)} have changed since", key)
    if differing:
        raise _refusal(where, f"shards made with other values of {', '.join(differing)}", key)


def _refusal(where: str | Path, what: str, key: str = "out") -> DataError:
    return DataError(f"{where}: holds {what}; delete it, or choose another folder with {key}=…")


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _kept(folder: Path) -> dict | None:
    """Read the output and settings that a work folder belongs to; None if no work has begun in it.

    Raises:
        DataError: the folder was not made by preparation.
    """
    if (folder / SETTINGS).is_file():
        return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    if folder.exists() and not {path.name for path in folder.iterdir()} <= {LOCK, "parts", ARRIVING}:
        raise _refusal(folder, "something else", "work")
    return None


def open_work(config: CorpusConfig, folder: Path, made_of: dict) -> Work:
    """Resume the work in a folder, or begin it."""
    kept = _kept(folder)
    if kept is not None:
        return Work(config, folder, kept["parts"])
    counts, rank = {}, 0
    (folder / "parts").mkdir(exist_ok=True)
    for name, source in config.sources.items():
        parts = readers.parts(source)
        counts[name] = len(parts)
        for part in parts:
            (folder / "parts" / f"{rank:05d}.json").write_text(json.dumps(part), encoding="utf-8")
            rank += 1
    content = json.dumps(
        {"out": config.out, "work_format": WORK_FORMAT, "settings": made_of, "parts": counts}, indent=2
    )
    (folder / ARRIVING).write_text(content + "\n", encoding="utf-8")
    (folder / ARRIVING).replace(folder / SETTINGS)
    return Work(config, folder, counts)
