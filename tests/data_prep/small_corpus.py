"""Texts for a small corpus of the tests' own."""

import json
import random
from pathlib import Path

WORDS = ["the", "of", "and", "encoder", "token", "attends", "window", "long", "document", "naïve", "漢字", "🙂"]


def write_jsonl(path: Path, texts: list[str], column: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": n, column: text}) + "\n" for n, text in enumerate(texts)))
    return path


def sentences(seed: int, documents: int) -> list[str]:
    """Texts of 10 to 600 words."""
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(10, 600))) for _ in range(documents)]


def content(directory: Path) -> dict[str, bytes]:
    """All files below a folder, by name."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
