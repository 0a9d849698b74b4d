"""A checkpoint from elsewhere may be read; what it would like to run is not run."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dist_cp
from torch.distributed.checkpoint.metadata import Metadata

from encoder_foundry.errors import DataError
from encoder_foundry.interop.checkpoints import CheckpointWeights
from encoder_foundry.interop.safe_reading import METADATA, refuse_code

WEIGHTS = {"state.model.network.weight": torch.arange(6.0).reshape(2, 3)}


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def saved(folder: Path, **items: object) -> Path:
    dist_cp.save(WEIGHTS | items, storage_writer=dist_cp.FileSystemWriter(folder), no_dist=True)
    return folder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_value_that_would_run_code_is_refused_by_name_and_does_not_run(tmp_path):
    mark = tmp_path / "mark"
    folder = saved(tmp_path / "checkpoint", **{"state.run_name": Hostile(mark)})
    with pytest.raises(DataError, match=r"__0_0\.distcp: 'state\.run_name': reading it would use posix\.mkdir"):
        CheckpointWeights(folder)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_metadata_that_would_run_code_is_refused_by_name_and_does_not_run(tmp_path, protocol):
    mark = tmp_path / "mark"
    folder = saved(tmp_path / "checkpoint")
    (folder / METADATA).write_bytes(pickle.dumps(Metadata({"key": Hostile(mark)}), protocol))
    with pytest.raises(DataError, match=r"\.metadata: reading it would use (posix\.mkdir|copy_reg)"):
        CheckpointWeights(folder)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"cos\nsystem.fork\n.", b"}.", b"\x80\x04\x8c\x05hello."])
def test_metadata_that_is_none_is_refused_in_one_line(tmp_path, content):
    folder = saved(tmp_path / "checkpoint")
    (folder / METADATA).write_bytes(content)
    with pytest.raises(DataError, match=r"\.metadata: ") as raised:
        refuse_code(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_value_that_no_checkpoint_has_in_this_form_is_refused(tmp_path):
    folder = saved(tmp_path / "checkpoint", **{"state.run_name": "tiny"})
    part = folder / "__0_0.distcp"
    part.write_bytes(part.read_bytes().replace(b"PK\x03\x04", b"PK\x03\x05"))
    with pytest.raises(DataError, match=r"'state\.run_name' cannot be looked through"):
        refuse_code(folder)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_weights_are_read_as_they_were_written(tmp_path):
    weights = CheckpointWeights(saved(tmp_path / "checkpoint", **{"state.run_name": "tiny"}))
    assert {name: weight.tolist() for name, weight in weights.items()} == {"weight": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]}
