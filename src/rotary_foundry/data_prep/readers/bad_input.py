"""What could not be read: listed, passed over, and up to a limit no reason to stop."""

from rotary_foundry.utils.errors import DataError

NAMED = 3  # of the bad documents, in the error


class BadInput:
    """The documents, or pieces of files, of one source that could not be read.

    Args:
        source: the source's name.
        limit: how many there may be.
    """

    def __init__(self, source: str, limit: int = 100):
        self.source = source
        self.limit = limit
        self.listed: list[str] = []  # "file:line: what is wrong"

    def add(self, where: str, why: str) -> None:
        """Note that what is at `where` is passed over.

        Raises:
            DataError: that makes more than `limit`.
        """
        self.listed.append(f"{where}: {' '.join(why.split())}")
        if len(self.listed) > self.limit:
            first = "; ".join(self.listed[:NAMED])
            more = ", …" if len(self.listed) > NAMED else ""
            raise DataError(
                f"source '{self.source}': {len(self.listed)} documents cannot be read, and 'max_bad_documents' allows "
                f"{self.limit}: {first}{more}"
            )
