"""A family is named in its folder, in the table of families, and where a docstring gives a source; nowhere else."""

from pathlib import Path

from rotary_foundry.models.family import FAMILIES, families

SRC = Path(__file__).parents[2] / "src/rotary_foundry"
ALLOWED = {  # by file, what a line that names one says
    "models/family.py": '": "rotary_foundry.models.',
    "models/growing.py": "as ModernBERT-large began from base (arXiv 2412.13663",
    "recipe/schedules.py": "# arXiv 2405.18392, and ModernBERT",
}


def test_no_family_is_named_outside_its_folder():
    words = {word.lower() for family in families() for word in (family.name, family.title)}
    folders = [SRC / "models" / name for name in FAMILIES]
    found = {
        (path.relative_to(SRC).as_posix(), line.strip())
        for path in SRC.rglob("*.py")
        if not any(path.is_relative_to(folder) for folder in folders)
        for line in path.read_text(encoding="utf-8").splitlines()
        if any(word in line.lower() for word in words)
    }
    assert not [named for named in found if ALLOWED.get(named[0], "\n") not in named[1]]
    assert {file for file, _ in found} == ALLOWED.keys(), "an exception that nothing needs"
