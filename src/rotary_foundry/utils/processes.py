"""Which of a run's processes this one is, as Composer's launcher tells it in the environment: known without torch.

What no launcher has started is the only one.
"""

import os


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int:
    """Those on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_first() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def is_first_of_node() -> bool:
    return int(os.environ.get("LOCAL_RANK", 0)) == 0
