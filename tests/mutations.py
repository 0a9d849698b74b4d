"""Change an input at random: stretches of its bytes or, of JSON, YAML, Parquet and the like, the values in it."""

import copy
import gzip
import io
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

DEEP = b"[" * 100_000
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, math.nan, math.inf),
    *("", " ", "x", "0", "null", "../..", "/", "\0", "\ud83d", "漢字", "long " * 20_000),
    *([], [None], [[]], {}, {"": None}),
]


def damaged(content: bytes, generator: random.Random) -> bytes:
    """The content cut off, or with a stretch of it replaced, removed, repeated or turned over bit by bit."""
    start = generator.randrange(max(1, len(content)))
    end = min(len(content), start + generator.choice([1, 2, 8, 64, 512]))
    stretch = content[start:end]
    other = generator.choice(
        [
            b"",
            generator.randbytes(len(stretch)),
            stretch * 3,
            b"\0" * len(stretch),
            b"\xff" * len(stretch),
            bytes(byte ^ 1 << generator.randrange(8) for byte in stretch),
            generator.choice([b'"', b"\n", b"{", b"\\ud83d", b"\xed\xa0\x80", b"\r", b",", b"999999999999", DEEP]),
        ]
    )
    return content[:start] if generator.random() < 0.15 else content[:start] + other + content[end:]


def repacked(content: bytes, generator: random.Random) -> bytes:
    """A gzip file that is whole, of content that is not."""
    return gzip.compress(damaged(gzip.decompress(content), generator))


def changed(tree: Any, generator: random.Random) -> Any:
    """A copy of nested lists and dicts in which a value or two are others, are gone, or have another key."""
    tree = {"": copy.deepcopy(tree)}
    for _ in range(generator.choice([1, 1, 1, 2, 4])):
        inside, key = _place(tree, generator)
        value, action = inside[key], generator.choice(["other", "other", "like", "like", "gone", "renamed", "moved"])
        if action == "other":
            inside[key] = copy.deepcopy(generator.choice(ODD))  # the next change may be inside it
        elif action == "like":
            inside[key] = _like(value, generator)
        elif inside is tree:
            continue
        elif action == "gone":
            del inside[key]
        elif action == "renamed" and isinstance(inside, dict):
            inside[f"{key}x"] = inside.pop(key)
        else:
            there, other = _place(tree, generator)
            inside[key] = copy.deepcopy(there[other])
    return tree[""]


def _place(tree: dict, generator: random.Random) -> tuple[Any, Any]:
    """Any place in a tree: what holds it, and its key or index."""
    inside, key = tree, ""
    while isinstance(value := inside[key], dict | list) and value and generator.random() < 0.85:
        inside, key = value, generator.choice(list(value) if isinstance(value, dict) else range(len(value)))
    return inside, key


def _like(value: Any, generator: random.Random) -> Any:
    """Another value of a similar kind."""
    if isinstance(value, bool) or value is None:
        return generator.choice([not value, str(value), int(bool(value))])
    if isinstance(value, int | float):
        return generator.choice([value + 1, value - 1, -value, value * 1000, value / 3, str(value), [value]])
    if isinstance(value, str):
        return generator.choice([value[:-1], value + value, value.upper(), f" {value}", [value], {value: value}])
    if isinstance(value, list):
        return generator.choice([value[1:], value * 2, value[::-1], [value], dict.fromkeys(map(str, value))])
    if isinstance(value, dict):
        return generator.choice([list(value), list(value.values()), {"": value}, dict(reversed(value.items()))])
    return copy.deepcopy(generator.choice(ODD))


def _json(content: bytes, generator: random.Random) -> bytes:
    try:
        tree = json.loads(content)
    except ValueError:  # an object a line, whatever the file is called
        return _json_lines(content, generator)
    return json.dumps(changed(tree, generator)).encode()


def _json_lines(content: bytes, generator: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    place = generator.randrange(len(lines))
    lines[place] = _json(lines[place], generator) + b"\n"
    return b"".join(lines)


def _yaml(content: bytes, generator: random.Random) -> bytes:
    return yaml.safe_dump(changed(yaml.safe_load(content), generator), sort_keys=False).encode("utf-8", "surrogatepass")


def _safetensors(content: bytes, generator: random.Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = _json(content[8 : 8 + size], generator)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def _torch(content: bytes, generator: random.Random) -> bytes:
    tree = torch.load(io.BytesIO(content), weights_only=False)
    made = io.BytesIO()
    torch.save(changed(tree, generator), made)
    return made.getvalue()


def _parquet(content: bytes, generator: random.Random) -> bytes:
    """A table with a column of another type."""
    table = pq.read_table(io.BytesIO(content))
    place, count = generator.randrange(table.num_columns), table.num_rows
    column = generator.choice(
        [
            pa.nulls(count),
            pa.array([number % 3 for number in range(count)]),
            pa.array([b"\xff"] * count),
            pa.array([["a", None]] * count),
            pa.array([{"a": 1}] * count),
            pa.array([None, "x"] * count)[:count].dictionary_encode(),
            pa.array([0.5] * count, pa.float32()),
            pa.array(["\0"] * count, pa.large_string()),
        ]
    )
    name = generator.choice([table.column_names[place], "", "x", table.column_names[-1]])
    made = io.BytesIO()
    pq.write_table(table.set_column(place, name, column), made)
    return made.getvalue()


TREES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".yaml": _yaml,
    ".safetensors": _safetensors,
    ".pt": _torch,
    ".bin": _torch,
    ".parquet": _parquet,
    ".gz": repacked,
}


def mutated(path: Path, content: bytes, generator: random.Random) -> bytes:
    """The content of a file with something changed in it."""
    if path.suffix in TREES and generator.random() < 0.6:
        return TREES[path.suffix](content, generator)
    return damaged(content, generator)


def mutations(files: dict[Path, bytes], seed: str) -> Iterator[Path]:
    """Change one file after another, for the time of a step each; yield it. The others are as they were.

    Args:
        files: those that may be changed, with their content.
        seed: a sequence has the same changes again.
    """
    number = 0
    while True:
        generator = random.Random(f"{seed} {number}")
        path = generator.choice(sorted(files))
        if generator.random() < 0.02:
            path.unlink()
        else:
            path.write_bytes(mutated(path, files[path], generator))
        yield path
        path.write_bytes(files[path])
        number += 1
