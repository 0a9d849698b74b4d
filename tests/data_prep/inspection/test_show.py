"""`data show` and `data search`: rows as the texts that went into them, and where those came from."""

import json
import shutil

import pytest
from rich.console import Console
from streaming import MDSWriter

from rotary_foundry.cli import main
from rotary_foundry.data_prep.inspection.shard_folder import ShardFolder
from rotary_foundry.data_prep.inspection.show import documents_of, print_hits, print_row, search
from rotary_foundry.data_prep.inspection.source_folders import printable
from rotary_foundry.utils.errors import DataError


def printed(function, *arguments, **named) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        function(*arguments, **named, console=console)
    return capture.get()


@pytest.mark.parametrize("place", ["mine/256/train", "yours/64/validation"])
def test_a_row_is_shown_with_its_documents_texts_and_ids(tree, place):
    folder = ShardFolder(tree.root / place)
    assert folder.size == len(tree.rows[folder.path])
    pieces = {}
    for row, ids in enumerate(tree.rows[folder.path]):
        shown = documents_of(folder, row)
        assert [document.id for document in shown] == ids
        for document in shown:
            pieces[document.id] = pieces.get(document.id, b"") + document.text.encode()
    broken = "�".encode()  # where a piece ends within a character
    for id_, text in pieces.items():
        assert text == tree.texts[id_].encode() or broken in text
    assert sum(broken not in text for text in pieces.values()) > len(pieces) / 2


def test_a_long_document_is_shortened_unless_all_of_it_is_wanted(tree):
    folder = tree.root / "mine/256/train"
    row, longest = max(
        ((row, tree.texts[id_]) for row, ids in enumerate(tree.rows[folder]) for id_ in ids if len(ids) > 1),
        key=lambda pair: len(pair[1]),
    )
    assert len(longest) > 550
    assert longest in printed(print_row, folder, row, full=True)
    short = printed(print_row, folder, row)
    assert longest not in short
    assert longest[:400] in short
    assert "--full shows them" in short


def test_shards_without_tables_of_documents_are_shown_with_ids_unknown(tree, copied):
    shutil.rmtree(copied / "mine/documents")
    folder = copied / "mine/256/train"
    with pytest.raises(DataError, match=r"mine/documents/train/00000.parquet: no such file"):
        documents_of(ShardFolder(folder), 0)
    index = json.loads((folder / "index.json").read_text())
    shards = folder / "index.json", folder / "00000/index.json"
    for shard in json.loads(shards[1].read_text())["shards"]:  # the layout before there were parts
        (folder / "00000" / shard["zip_data"]["basename"]).rename(folder / shard["zip_data"]["basename"])
    shards[1].rename(shards[0])
    assert len(index["shards"]) > len(json.loads(shards[0].read_text())["shards"])
    shown = documents_of(ShardFolder(folder), 0)
    assert [document.text for document in shown] == [
        document.text for document in documents_of(ShardFolder(tree.root / "mine/256/train"), 0)
    ]
    assert {document.id for document in shown} == {None}


def test_what_cannot_be_shown_is_refused_in_a_line(tree, tmp_path, monkeypatch, capsys):
    for arguments, complaint in (
        ([tree.root / "mine/64/train", "9999"], "mine/64/train: no row 9999; its rows are 0 to "),
        ([tree.root, "0"], "not a folder of shards, but it contains some; give one of them, such as "),
        ([tmp_path / "nothing", "0"], "nothing: no such folder"),
        ([tmp_path, "0"], ": no shards there; give a folder that `python data_prep` wrote"),
    ):
        monkeypatch.setattr("sys.argv", ["rotary-foundry", "data", "show", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert error.count("\n") == 1


def test_columns_that_would_run_code_are_refused(tmp_path):
    with MDSWriter(out=str(tmp_path / "shards"), columns={"tokens": "pkl"}) as writer:
        writer.write({"tokens": [1]})
    with pytest.raises(DataError, match=r"index.json: cannot be read: Column tokens contains an unsafe type: pkl"):
        ShardFolder(tmp_path / "shards")


def test_a_column_that_its_index_calls_by_another_type_is_refused(copied):
    index = copied / "mine/64/train/index.json"
    content = json.loads(index.read_text())
    for shard in content["shards"]:
        shard["column_encodings"][shard["column_names"].index("documents")] = "bytes"
    index.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"row 0: expected integers in the column 'documents'"):
        ShardFolder(copied / "mine/64/train").row(0)


def test_looking_changes_nothing_in_the_folder(copied):
    for path in copied.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(copied.rglob("*"))
    try:
        print_row(copied / "mine/64/train", 3)
        assert list(search(copied, "漢字"))
        assert sorted(copied.rglob("*")) == before
    finally:
        for path in before:
            path.chmod(0o755)


@pytest.mark.parametrize(
    "command",
    ["stats IT", "show IT 3", "verify IT", "search IT word", "trace IT --update=1"],
)
def test_a_stores_address_is_refused_in_a_line_that_says_to_copy_it(command, monkeypatch, capsys):
    words = command.replace("IT", "s3://bucket/corpus").split()
    monkeypatch.setattr("sys.argv", ["rotary-foundry", "data", *words])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    said = "error: s3://bucket/corpus: expected a local folder; copy it to one first\n"
    assert capsys.readouterr().err == said


def test_a_search_finds_every_document_that_has_the_text_and_no_other(tree):
    wanted = "naïve 🙂"
    folder = tree.root / "mine/256/train"
    hits = list(search(folder, wanted))
    found = {hit.id for hit in hits}
    assert found == {id_ for ids in tree.rows[folder] for id_ in ids if wanted in tree.texts[id_]}
    for hit in hits:
        assert wanted in hit.snippet
        assert documents_of(ShardFolder(hit.folder), hit.row)[hit.document].id == hit.id


def test_a_search_covers_a_whole_corpus_and_stops_at_its_limit(tree):
    assert {hit.folder.relative_to(tree.root).parts[0] for hit in search(tree.root, "encoder")} == {"mine", "yours"}
    some = printed(print_hits, tree.root, "encoder", 3)
    assert some.count(" row ") == 3
    assert "--limit 3 is reached" in some
    assert "'zebra' is in no document" in printed(print_hits, tree.root, "zebra", 3)


def test_a_text_cannot_command_the_terminal():
    assert printable("a\x1b[31m\r\nb\tc 漢🙂\u202e") == "a\\x1b[31m\\r\nb\tc 漢🙂\\u202e"
