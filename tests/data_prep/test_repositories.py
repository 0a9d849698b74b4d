"""Whole repositories as documents."""

import json

import pytest

from rotary_foundry.data_prep.corpus_config import load_corpus_config
from rotary_foundry.data_prep.readers import BadInput, SourceConfig, fingerprint, parts, repositories
from rotary_foundry.utils.errors import ConfigurationError, DataError

from .reading import documents

FILES = {
    "one/setup.py": "import one\n\n",
    "one/README.md": "# One",
    "one/src/b.py": "b = 2\n",
    "one/src-old/a.py": "a = 1\n",
    "one/.git/config.py": "hidden",
    "one/logo.png": "\x89PNG\0",
    "two/x.c": "int x;\n",
    "two/empty.py": "",
    "three/data.bin": "\0",
    "loose.py": "of no repository\n",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        (tmp_path / "repos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repos" / name).write_bytes(text.encode("latin-1"))
    return tmp_path / "repos"


def test_a_repository_is_one_document_its_files_in_the_order_of_their_paths(folder):
    one, two = documents(SourceConfig("repositories", str(folder)))
    assert (one.id, two.id) == (f"{folder}/one", f"{folder}/two")
    assert one.text == (
        "# one/README.md\n# One\n\n# one/setup.py\nimport one\n\n# one/src/b.py\nb = 2\n\n# one/src-old/a.py\na = 1\n"
    )
    assert two.text == "# two/x.c\nint x;\n"


def test_endings_and_depth_choose_files_and_folders(folder):
    assert [document.text for document in documents(SourceConfig("repositories", str(folder), endings=[".md"]))] == [
        "# one/README.md\n# One\n"
    ]
    deeper = documents(SourceConfig("repositories", str(folder), depth=2))
    assert [(document.id.removeprefix(f"{folder}/"), document.text) for document in deeper] == [
        ("one/src", "# one/src/b.py\nb = 2\n"),
        ("one/src-old", "# one/src-old/a.py\na = 1\n"),
    ]
    with pytest.raises(DataError, match=r"repos: no folders at depth 4 with files .* change 'depth'"):
        parts(SourceConfig("repositories", str(folder), depth=4))


def test_a_file_that_is_not_text_is_listed_and_the_rest_of_its_repository_is_read(folder):
    bad = BadInput("mine", limit=2)
    found = documents(SourceConfig("repositories", str(folder), endings=[".py", ".png", ".bin"]), bad)
    assert [document.id.rpartition("/")[2] for document in found] == ["one"]
    assert "logo" not in found[0].text and "b = 2" in found[0].text
    assert [line.removeprefix(f"{folder}/").split(":")[0] for line in bad.listed] == ["one/logo.png", "three/data.bin"]


def test_a_repository_is_whole_in_its_part_and_too_large_a_one_is_listed(folder, monkeypatch):
    source = SourceConfig("repositories", str(folder))
    whole = documents(source)
    monkeypatch.setattr("rotary_foundry.data_prep.readers.listing.PART_BYTES", 10)
    apart = parts(source)
    assert [list(part["repositories"]) for part in apart] == [["one"], ["two"]]
    assert json.loads(json.dumps(apart)) == apart
    assert [document.text for document in documents(source)] == [document.text for document in whole]
    monkeypatch.setattr(repositories, "LONGEST", 20)
    bad = BadInput("mine", limit=1)
    assert [document.id for document in documents(source, bad)] == [f"{folder}/two"]
    assert "one: files of more than 0 MiB together; choose a larger depth" in bad.listed[0]


def test_a_changed_file_changes_the_fingerprint(folder):
    source = SourceConfig("repositories", str(folder))
    before = fingerprint(source)
    (folder / "two/x.c").write_text("int y, z;\n")
    assert fingerprint(source) != before


def test_installed_packages_are_whole_documents_of_a_bounded_length():
    source = SourceConfig("repositories")
    found = {document.id: document.text for document in documents(source)}
    assert {"numpy", "pytest", "rotary-foundry"}.isdisjoint(found)  # too large; not required by this project; itself
    assert len(found) > 20 and 2e6 < sum(len(text.encode()) for text in found.values()) <= 6e6
    assert min(map(len, found.values())) > 0.9 * repositories.SMALLEST
    assert "# tqdm/std.py\n" in found["tqdm"] and "# tqdm/auto.py\n" in found["tqdm"]
    assert fingerprint(source) == fingerprint(SourceConfig("repositories"))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["sources.packages.depth=0"], r"sources\.packages\.depth'.* at least 1 below 'path', got 0"),
        (["sources.packages.depth=1"], r"sources\.packages\.depth'.* below 'path'"),
        (["sources.packages.endings=[]"], r"sources\.packages\.endings'.* such as \[\.py, \.md\], got \[\]"),
        (["sources.code.endings=[.py]"], r"sources\.code\.endings'.*python_files takes none"),
    ],
)
def test_keys_of_repositories_are_checked(changes, key):
    with pytest.raises(ConfigurationError, match=key):
        load_corpus_config("yamls/data/llama_nano_long.yaml", changes)


def test_the_long_corpus_of_the_nano_needs_the_tokenizer_of_the_short_one(tmp_path, monkeypatch):
    path = "yamls/data/llama_nano_long.yaml"
    with pytest.raises(ConfigurationError, match=r"tokenizer\.path'.*data/none/tokenizer/tokenizer\.json is missing"):
        load_corpus_config(path, ["tokenizer.path=data/none/tokenizer"])
    (tmp_path / "tokenizer.json").touch()
    config = load_corpus_config(path, [f"tokenizer.path={tmp_path}"])
    assert (list(config.sources), config.row_lengths) == (["code", "docs", "web", "packages"], [4096])
    assert (config.tokenizer.train, config.tokenizer.causal) == (None, True)
