"""Write docs/status.md from the results of the test commands: `make status`.

Every `make test…` leaves its result in .ci/results/, which git ignores. This command moves what is there to
docs/results/, which git keeps, and writes the page from all that is kept.
"""

import json
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEW, KEPT, PAGE = ROOT / ".ci/results", ROOT / "docs/results", ROOT / "docs/status.md"
COMMANDS = {
    "test": "`make test`",
    "test-long": "`make test-long`",
    "test-oldest": "`make test-oldest`: models, optim and training on the oldest torch",
    "test-gpu": "`make test-gpu`",
}
NOTES = ROOT / "docs/results/notes.md"


def main() -> None:
    KEPT.mkdir(exist_ok=True)
    for path in NEW.glob("*.json"):
        shutil.move(path, KEPT / path.name)
    head = "| command | date, commit | where | result | time |\n| --- | --- | --- | --- | --- |\n"
    rows = "".join(row(name) for name in COMMANDS)
    PAGE.write_text(f"# What was run last\n\nWritten by `make status`.\n\n{head}{rows}\n{NOTES.read_text()}", "utf-8")


def row(name: str) -> str:
    path = KEPT / f"{name}.json"
    if not path.exists():
        return f"| {COMMANDS[name]} | | | no result recorded | |\n"
    of = json.loads(path.read_text(encoding="utf-8"))
    outcomes = [f"{of[kind]} {kind}" for kind in ("passed", "failed", "error", "skipped") if of[kind]]
    skipped = "".join(f"; skipped: {reason}" for reason in of["skipped_because"])
    where = f"torch {of['torch']}, transformers {of['transformers']}, Python {of['python']}, {of['cores']} cores"
    minutes, seconds = divmod(of["seconds"], 60)
    return (
        f"| {COMMANDS[name]} | {of['date']}, {of['commit']} | {where} | {', '.join(outcomes)}{skipped} "
        f"| {minutes} min {seconds} s |\n"
    )


if __name__ == "__main__":
    main()
