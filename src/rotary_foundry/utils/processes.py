"""Rank and world size from the launcher's environment variables; imports no torch.

A process that no launcher has started is the only one.
"""

import os


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int:
    """Return the number of processes on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def is_first() -> bool:
    return rank() == 0


def is_first_of_node() -> bool:
    return int(os.environ.get("LOCAL_RANK", 0)) == 0
