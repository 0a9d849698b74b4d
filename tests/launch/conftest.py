"""The tiny corpus and recipe of the tests of whole runs."""

from ..training.conftest import own_temporary_folder, tiny  # noqa: F401
