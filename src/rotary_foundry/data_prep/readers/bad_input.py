"""Collect the documents that cannot be read. They are listed and skipped; more than a limit of them is an error.

A page or file that can be read and has no text is counted apart and without a limit, because a crawl has many.
"""

from rotary_foundry.utils.errors import DataError

NAMED = 3  # the number of bad documents that the error lists
MOST_WITHOUT_TEXT = 100  # the number of those without text that are listed for each part; all are counted


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
        self.listed_without_text: list[str] = []  # "file: why"
        self.without_text = 0  # number of pages and files that give no text

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

    def add_without_text(self, where: str, why: str) -> None:
        """Record that the page or file at `where` gives no text, and why."""
        self.without_text += 1
        if self.without_text <= MOST_WITHOUT_TEXT:
            self.listed_without_text.append(f"{where}: {' '.join(why.split())}")
