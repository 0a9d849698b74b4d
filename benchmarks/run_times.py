"""Read from the records of a run how long it trained."""

from pathlib import Path

from rotary_foundry.runs.run_folder import RunFolder


def update_times(run: Path) -> list[tuple[dict, float]]:
    """Return the record of each update, and the seconds from the end of the update before it to its own.

    Evaluations do not count. After a checkpoint only the step itself counts, because the rest is the checkpoint's.
    """
    folder = RunFolder(run)
    saved = {int(path.name.removeprefix("ba")) for path in folder.checkpoints.iterdir()}
    return [
        (line, line["step_seconds"] if line["batch"] - 1 in saved else line["real_tokens"] / line["tokens_per_second"])
        for line in folder.records(folder.metrics)
    ]
