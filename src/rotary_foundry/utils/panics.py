"""An exception in place of a panic of the tokenizers library, as some broken tokenizer.json cause.

A panic is raised as pyo3's PanicException, which is no Exception and cannot be imported, and so passes every handler.
Rust writes a line of its own about it on stderr.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a RuntimeError for a panic.

    Raises:
        RuntimeError: with the panic's message.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from None
