"""Turn a panic of the tokenizers library, which some broken tokenizer.json cause, into an exception.

A panic is raised as pyo3's PanicException. It is not an Exception and cannot be imported, so no handler catches it.
Rust also writes a line about it on stderr.
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
