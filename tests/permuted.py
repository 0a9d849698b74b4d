"""A tokenizer that sizes and special tokens do not tell from a model's own."""

import json
import shutil
from pathlib import Path


def permuted(folder: Path, out: Path) -> Path:
    """Write a copy of a folder's tokenizer to `out`, with the ids of `b` and `d` exchanged."""
    shutil.copytree(folder, out, ignore=lambda _, names: [name for name in names if "token" not in name])
    content = json.loads((out / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["b"], vocabulary["d"] = vocabulary["d"], vocabulary["b"]
    (out / "tokenizer.json").write_text(json.dumps(content))
    return out
