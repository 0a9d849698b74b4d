"""A source read whole, and files of every kind for it, written by the libraries that users write them with."""

import csv
import gzip
import json
from io import BytesIO
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from datatrove.data import Document
from streaming import MDSWriter
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from rotary_foundry.data_prep.readers import BadInput, SourceConfig, parts, read

PAGE = """<!doctype html><html><head><title>Of tokens</title></head><body><nav><a href="/">Home</a></nav>
<article><h1>Of tokens</h1><p>{}</p></article><footer>All rights reserved.</footer></body></html>"""


def documents(source: SourceConfig, bad: BadInput | None = None) -> list[Document]:
    """The documents of all parts."""
    return [document for part in parts(source) for document in read(source, part, bad or BadInput("mine", limit=0))]


def texts(reader: str, path, **keys) -> list[str]:
    return [document.text for document in documents(SourceConfig(reader, str(path), **keys))]


def write_jsonl(path: Path, rows: list[str]) -> None:
    path.write_text("".join(json.dumps({"id": n, "text": row}) + "\n" for n, row in enumerate(rows)))


def write_gzip(path: Path, rows: list[str]) -> None:
    write_jsonl(path, rows)
    path.write_bytes(gzip.compress(path.read_bytes()))


def write_zstandard(path: Path, rows: list[str]) -> None:
    """A frame for each row, as parallel compressors write them."""
    write_jsonl(path, rows)
    path.write_bytes(b"".join(zstandard.compress(line) for line in path.read_bytes().splitlines(keepends=True)))


def write_csv(path: Path, rows: list[str]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(rows)])


def write_parquet(path: Path, rows: list[str]) -> None:
    """A row group for every two rows."""
    pq.write_table(pa.table({"id": range(len(rows)), "text": rows}), path, row_group_size=2)


def write_text(path: Path, rows: list[str]) -> None:
    path.write_text("\n".join(rows), encoding="utf-8")


def write_warc(path: Path, rows: list[str]) -> None:
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=path.suffix == ".gz")
        writer.write_record(writer.create_warcinfo_record(path.name, {"software": "a test"}))
        for number, row in enumerate(rows):
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
            page = BytesIO(PAGE.format(row).encode())
            url = f"http://example.org/{number}"
            writer.write_record(writer.create_warc_record(url, "response", payload=page, http_headers=headers))


def write_wet(path: Path, rows: list[str]) -> None:
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=path.suffix == ".gz")
        for number, row in enumerate(rows):
            record = writer.create_warc_record(
                f"http://example.org/{number}",
                "conversion",
                payload=BytesIO(row.encode()),
                warc_content_type="text/plain",
                warc_headers_dict={"WARC-Identified-Payload-Type": "text/plain"},
            )
            writer.write_record(record)


def write_mds(path: Path, rows: list[str], compression: str | None = "zstd", **columns: str) -> None:
    """Shards of a few rows."""
    encodings = {"id": "int", "text": "str"} | columns
    with MDSWriter(
        out=str(path), columns=encodings, compression=compression, hashes=["sha1"], size_limit=400
    ) as writer:
        for number, row in enumerate(rows):
            writer.write({"id": number, "text": row} | dict.fromkeys(columns, number))


def write_dataset(path: Path, rows: list[str]) -> None:
    datasets.Dataset.from_dict({"id": list(range(len(rows))), "text": rows}).save_to_disk(path)
