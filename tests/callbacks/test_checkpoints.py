"""A checkpoint of nodes with disks of their own is no checkpoint without a store, and that is said when it is saved."""

import pytest

from rotary_foundry.callbacks import checkpoint_saver as checkpoints
from rotary_foundry.utils.errors import FoundryError


def test_parts_that_lie_on_another_nodes_disk_end_the_run_at_its_first_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHOWS_UP", 0.0)
    folder = tmp_path / "ba2"
    folder.mkdir()
    (folder / "__0_0.distcp").write_bytes(b"x")
    checkpoints._check_seen(folder, {"__0_0.distcp": 1})
    with pytest.raises(
        FoundryError, match=r"rank 0 cannot see .*__8_0\.distcp, which another node has written, .* save_folder="
    ):
        checkpoints._check_seen(folder, {"__0_0.distcp": 1, "__8_0.distcp": 1})
    assert not folder.exists()  # else the start with a store, as advised, would find a checkpoint that is not whole


def test_a_shared_disk_has_time_to_show_a_part(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.time, "sleep", lambda _: (tmp_path / "__8_0.distcp").touch())
    checkpoints._check_seen(tmp_path, {"__8_0.distcp": 0})
