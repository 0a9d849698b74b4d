import shutil
from pathlib import Path

import pytest

from tests.data_prep.inspection.tree import Tree, write_tree


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Tree:
    """A prepared corpus, to be read only."""
    return write_tree(tmp_path_factory.mktemp("corpus") / "out")


@pytest.fixture
def copied(tree, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    unpacked = shutil.ignore_patterns("shard.*.mds")  # what a run that reads it leaves beside the shards
    return Path(shutil.copytree(tree.root, tmp_path / "out", ignore=unpacked))
