"""The tiny corpus and recipe of the tests of whole runs."""

from ..training.conftest import own_temporary_folder, tiny

__all__ = ["own_temporary_folder", "tiny"]  # fixtures, here too
