"""A checkpoint from elsewhere may be read; what it would like to run is not run."""

import collections
import datetime
import json
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy
import pytest
import torch
from torch.distributed import checkpoint as dist_cp
from torch.distributed.checkpoint.metadata import Metadata

from rotary_foundry.interop.checkpoint_weights import CheckpointWeights
from rotary_foundry.runs.safe_reading import METADATA, StandIn, read_saved, refuse_code
from rotary_foundry.utils.errors import DataError
from tests.models.peers import FAMILY

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
        CheckpointWeights(folder, FAMILY)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_metadata_that_would_run_code_is_refused_by_name_and_does_not_run(tmp_path, protocol):
    mark = tmp_path / "mark"
    folder = saved(tmp_path / "checkpoint")
    (folder / METADATA).write_bytes(pickle.dumps(Metadata({"key": Hostile(mark)}), protocol))
    with pytest.raises(DataError, match=r"\.metadata: reading it would use (posix\.mkdir|copy_reg)"):
        CheckpointWeights(folder, FAMILY)
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
    with pytest.raises(DataError, match=r"'state\.run_name' cannot be checked"):
        refuse_code(folder)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_weights_are_read_as_they_were_written(tmp_path):
    weights = CheckpointWeights(saved(tmp_path / "checkpoint", **{"state.run_name": "tiny"}), FAMILY)
    assert {name: weight.tolist() for name, weight in weights.items()} == {"weight": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]}


class Calls:
    """Names a function, with arguments, in the pickle."""

    def __init__(self, function: object, *arguments: object):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.mkdir, ("{mark}",), r"posix\.mkdir"),
        (exec, ("open('{mark}', 'w')",), r"builtins\.exec"),
        (__import__, ("os",), r"builtins\.__import__"),
        (subprocess.check_output, (["touch", "{mark}"],), r"commands\.check_output"),
    ],
)
def test_a_pt_file_that_would_run_something_is_refused_by_name_and_runs_nothing(tmp_path, function, arguments, named):
    mark, path = tmp_path / "mark", tmp_path / "hostile.pt"
    filled = json.loads(json.dumps(arguments).replace("{mark}", str(mark)))
    torch.save({"state": {"model": WEIGHTS}, "rng": Calls(function, *filled)}, path)
    with pytest.raises(DataError, match=rf"hostile\.pt: reading it would use {named}"):
        read_saved(path)
    assert not mark.exists()


def writes_a_file(path: str) -> str:
    Path(path).touch()
    return path


def test_what_a_pt_file_names_beside_weights_is_not_even_imported(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "odd.pt"
    module = types.ModuleType("module_of_their_project")
    module.State = type("State", (), {"__module__": module.__name__, "__qualname__": "State"})
    sys.modules[module.__name__] = module
    state = module.State()
    state.position = 3
    odd = [
        Calls(writes_a_file, str(mark)),
        state,
        datetime.timedelta(1),
        numpy.arange(3),
        collections.defaultdict(list),
    ]
    odd[-1]["a"].append(1)
    torch.save({"state": {"model": WEIGHTS, "callbacks": odd}}, path)
    del sys.modules[module.__name__]
    read = read_saved(path)["state"]
    assert torch.equal(read["model"]["state.model.network.weight"], torch.arange(6.0).reshape(2, 3))
    assert [type(value) for value in read["callbacks"]] == [StandIn] * 4 + [dict]
    assert read["callbacks"][-1] == {"a": [1]}
    assert not mark.exists() and module.__name__ not in sys.modules


def test_the_stand_ins_are_gone_when_a_file_is_read(tmp_path):
    torch.save({"rng": datetime.timedelta(1)}, tmp_path / "file.pt")
    read_saved(tmp_path / "file.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "file.pt", weights_only=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", pickle.dumps({"state": 1}), b"\x80\x02cos\nsystem\n."])
def test_a_file_that_torch_did_not_write_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"file\.pt: cannot be read") as raised:
        read_saved(tmp_path / "file.pt")
    assert "\n" not in str(raised.value)


def test_a_truncated_pt_file_is_refused_in_one_line_without_torchs_advice(tmp_path):
    path = tmp_path / "file.pt"
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"file\.pt: cannot be read") as raised:
        read_saved(path)
    assert "\n" not in str(raised.value) and "weights_only" not in str(raised.value)


def test_tensors_that_nobody_asks_for_stay_in_the_file(tmp_path):
    moments = torch.zeros(64 * 2**20)  # 256 MiB
    torch.save({"state": {"model": WEIGHTS, "optimizers": {"exp_avg": moments}}}, tmp_path / "file.pt")
    del moments
    before = _resident()
    read = read_saved(tmp_path / "file.pt")
    assert _resident() - before < 64 * 2**20
    assert read["state"]["optimizers"]["exp_avg"].shape == (64 * 2**20,)


def _resident() -> int:
    """Bytes of this process's memory that are in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("damage", ["no path", "negative offset", "no dtype"])
def test_descriptions_that_lack_something_are_named(tmp_path, damage):
    folder = saved(tmp_path / "checkpoint")
    metadata = pickle.loads((folder / METADATA).read_bytes())
    (place,) = metadata.storage_data.values()
    if damage == "no path":
        del place.relative_path
    elif damage == "negative offset":
        place.offset = -1
    else:
        metadata.state_dict_metadata["state.model.network.weight"].properties.dtype = None
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(DataError, match=r"checkpoint/\.metadata: cannot be read: "):
        CheckpointWeights(folder, FAMILY)
