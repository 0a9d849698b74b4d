"""Collect the documents that cannot be read. They are listed and skipped; more than a limit of them is an error."""

from rotary_foundry.utils.errors import DataError

NAMED = 3  # the number of bad documents that the error lists


class BadInput:
    """The documents, or pieces of files, of one source that could not be read.

    Args:
        source: the source's name.
        limit: the number of bad documents that are allowed.
    """

    def __init__(self, source: str, limit: int = 100):
        self.source = source
        self.limit = limit
        self.listed: list[str] = []  # "file:line: what is wrong"
        self.count = 0  # number of bad documents, or of bad lines if documents cannot be told apart

    def add(self, where: str, why: str, documents: int = 1) -> None:
        """Record that the document at `where`, or several documents from there on, are skipped, and why.

        Raises:
            DataError: there are now more than `limit`.
        """
        self.listed.append(f"{where}: {' '.join(why.split())}")
        self.count += documents
        if self.count > self.limit:
            first = "; ".join(self.listed[:NAMED])
            more = ", …" if len(self.listed) > NAMED else ""
            raise DataError(
                f"source '{self.source}': {self.count:,} documents cannot be read, 'max_bad_documents' allows "
                f"{self.limit:,}: {first}{more}"
            )
