"""What is compared between runs."""

from pathlib import Path

import torch

from rotary_foundry.interop.checkpoint_weights import CheckpointWeights
from rotary_foundry.runs.run_folder import RunFolder, read_lines


def records(run: Path) -> list[dict]:
    """An entry an update of the kept trajectory."""
    return RunFolder(run).records(RunFolder(run).metrics)


def column(run: Path, key: str) -> list:
    return [record[key] for record in records(run)]


def digests(run: Path) -> list[str]:
    """What rows and masks each update saw."""
    return column(run, "rows_digest")


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(CheckpointWeights(RunFolder(run).newest_checkpoint().folder))


def assert_same_run(run: Path, undisturbed: Path) -> None:
    """Rows, masks, losses, shares drawn, rollbacks, evaluations and final weights are the same, to the bit."""
    for key in ("rows_digest", "loss", "lr", "drawn"):
        assert column(run, key) == column(undisturbed, key), key
    for name in ("ledger", "evaluations"):
        files = getattr(RunFolder(run), name), getattr(RunFolder(undisturbed), name)
        assert {str(line) for line in read_lines(files[0])} == {str(line) for line in read_lines(files[1])}, name
    expected, found = final_weights(undisturbed), final_weights(run)
    assert expected.keys() == found.keys()
    for key, weight in expected.items():
        assert torch.equal(weight, found[key]), key
