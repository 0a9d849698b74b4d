"""Read WARC and WET files: plain or compressed by gzip or Zstandard, local or in a store.

datatrove's own reader raises at a damaged record and loses the file. We use its recognition of HTML and encodings, and
its extraction of a page's main text by Trafilatura in a separate process.

Two settings of Trafilatura differ from its defaults: its memory of earlier pages is off, and its time limit is long. By
default, the text kept of a page would depend on the pages that this worker read before and on the machine's load.
"""

import logging
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from datatrove.data import Document
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.extractors.base import ExtractorSandbox
from datatrove.pipeline.readers import WarcReader
from datatrove.pipeline.readers.warc import process_record
from datatrove.utils.logging import logger

from rotary_foundry.data_prep.readers import BadInput, Part, SourceConfig
from rotary_foundry.data_prep.readers.files import Files, is_fault, read_files
from rotary_foundry.data_prep.readers.listing import fingerprint, parts
from rotary_foundry.data_prep.readers.unpacking import Damaged

if TYPE_CHECKING:
    from warcio.recordloader import ArcWarcRecord

__all__ = ["fingerprint", "parts", "read"]

EXTRACTION_SECONDS = 60.0  # time limit per page; only pages that would never end reach it


def read(source: SourceConfig, part: Part, bad: BadInput) -> Iterator[Document]:
    yield from read_files(Warc, source, part, bad)


class Warc(Files, WarcReader):
    """Reads one document per page: the main text of the HTML in a WARC file, or the plain text in a WET file.

    Other records give no document. Pages without a main text, and pages of unknown encoding, are without text.
    """

    has_columns = False
    nothing = "no page in it"

    def read_file(self, filepath: str) -> Iterator[Document]:
        import_module("trafilatura")  # import now, so that forked processes need not
        from warcio.archiveiterator import ArchiveIterator

        path = self.path(filepath)
        number = -1
        extract = partial(_main_text, Trafilatura(deduplicate=False))
        logger.disable("datatrove.pipeline.extractors.base")  # it logs its process count at the end of each file
        logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it logs a message for each page without a text
        with self.unpacked(filepath) as stream, ExtractorSandbox(EXTRACTION_SECONDS) as sandbox:
            records = iter(ArchiveIterator(stream.raw))  # raw, to yield the records before damage
            while True:
                number += 1
                where = f"{path}:{number}"
                try:
                    record = next(records)
                except StopIteration:
                    return
                except Exception as error:  # warcio's errors have no common class
                    if is_fault(error):
                        raise
                    why = f"the file is cut off or damaged here: {error or type(error).__name__}"
                    self.bad.add(where, f"{why}; this record and all after it are lost")
                    return
                try:
                    page = process_record(record)
                    if page and _is_cut_off(record):
                        raise Damaged("the file ends within it")
                    if page and record.rec_type != "conversion":
                        page["text"] = sandbox.process_document(page["text"], extract)
                except Exception as error:  # nor have those of datatrove and Trafilatura
                    if is_fault(error):
                        raise
                    ends = isinstance(error, Damaged)
                    lost = "; it and all after it are lost" if ends else ""
                    self.bad.add(where, f"a record that cannot be read: {error or type(error).__name__}{lost}")
                    if ends:
                        return
                    continue
                if page and page["text"]:
                    yield from self.document(page["text"], where, page["url"])
                elif page:
                    self.bad.add_without_text(where, f"no main text in the page {page['url']}")
                elif _is_page(record):
                    self.bad.add_without_text(where, "a page that is empty, of unknown encoding or not text")


def _is_page(record: "ArcWarcRecord") -> bool:
    """Return whether the headers of a record call it an HTML page or the text of one."""
    kind = record.rec_headers.get_header("WARC-Identified-Payload-Type") or ""
    if record.rec_type == "response" and not kind and record.http_headers is not None:
        kind = record.http_headers.get_header("Content-Type") or ""
    return record.rec_type == "conversion" or (record.rec_type == "response" and "html" in kind.lower())


def _is_cut_off(record: "ArcWarcRecord") -> bool:
    """Return whether a record, after reading, is shorter than its header says; warcio does not report that."""
    while record.raw_stream.read(1 << 16):
        pass
    return getattr(record.raw_stream, "limit", 0) > 0


def _main_text(extractor: Trafilatura, html: str) -> str | Exception | None:
    """Extract a page's text in the sandbox; return exceptions, because raising one would kill the sandbox process."""
    try:
        return extractor.extract(html)
    except Exception as error:
        return RuntimeError(f"{type(error).__name__}: {error}")
