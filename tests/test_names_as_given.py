"""Names that users give are kept as they are written: of runs, sources, columns, labels and files.

YAML 1.1 reads `no` as a boolean and 1.10 as a number, file systems take any bytes, and JSON, CSV and Parquet may have
two columns of one name. What cannot be kept is refused by its name, never changed without a word.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rotary_foundry.data_prep.corpus_config import load_corpus_config
from rotary_foundry.data_prep.labelled.data_config import DataConfig
from rotary_foundry.data_prep.labelled.examples import read_split
from rotary_foundry.data_prep.labelled.labels import Labels
from rotary_foundry.data_prep.readers import BadInput, SourceConfig
from rotary_foundry.finetuning.finetune_config import load_finetune_config
from rotary_foundry.recipe.loading import load_config, load_keys
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.command import rotary_foundry
from tests.data_prep.reading import documents, texts, write_csv, write_gzip, write_parquet

NANO = "yamls/main/nano.yaml"
LOOK_LIKE_SOMETHING_ELSE = ("2026_11_28", "007", "1e3", "1.10", "1.1", "no", "on", "y", "0x1F", "1_000", ".5", "true")
CORPUS = "sources: {{{}}}\ntokenizer: {{train: {{vocab_size: 512}}}}\nrow_lengths: [64]\nout: out\n"


@pytest.mark.parametrize("name", LOOK_LIKE_SOMETHING_ELSE)
def test_a_run_has_the_name_that_was_given(name, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: [{Path(NANO).resolve()}]\nrun_name: {name}\n")
    if name == ".5":  # a folder's name begins with a letter or digit
        with pytest.raises(ConfigurationError, match=r"'run_name': '\.5' has to be the name of a folder"):
            load_recipe(path)
        return
    assert load_recipe(path).run_name == load_recipe(NANO, [f"run_name={name}"]).run_name == name
    assert load_keys(path, ["run_name"])["run_name"] == name


def test_nothing_is_still_nothing_and_numbers_are_numbers(tmp_path):
    recipe = load_recipe(NANO, ["init_from=null", "save_folder=~", "seed=0x10", "stages.pretrain.lr=1e-3"])
    assert (recipe.init_from, recipe.save_folder, recipe.seed, recipe.stages["pretrain"].lr) == (None, None, 16, 1e-3)


@dataclass
class Text:
    path: str = ""


@pytest.mark.parametrize(
    "text", ["*.csv", "@home", "%d", "&a", "!b", "|", "> x", "a: b.csv", "a #b", "# c", "- x", "a,b", "1:30", "`x`"]
)
def test_the_value_of_an_override_is_text_however_it_begins(text, tmp_path):
    (tmp_path / "a.yaml").write_text("{}")
    assert load_config(tmp_path / "a.yaml", Text, [f"path={text}"]).path == text


def test_text_that_yaml_takes_for_something_else_is_to_be_put_in_quotes(tmp_path):
    (tmp_path / "a.yaml").write_text("path: *.csv\n")
    with pytest.raises(ConfigurationError, match=r"a\.yaml: not valid YAML: .*; put text .* in quotes"):
        load_config(tmp_path / "a.yaml", Text)
    (tmp_path / "a.yaml").write_text("path: '*.csv'\n")
    assert load_config(tmp_path / "a.yaml", Text).path == "*.csv"
    with pytest.raises(ConfigurationError, match=r"argument 'path=\[ab\]\*\.csv': .*in quotes"):
        load_config(tmp_path / "a.yaml", Text, ["path=[ab]*.csv"])
    assert load_config(tmp_path / "a.yaml", Text, ["path='[ab]*.csv'"]).path == "[ab]*.csv"
    with pytest.raises(ConfigurationError, match=r"argument b'path=caf\\xe9\.csv': expected UTF-8"):
        load_config(tmp_path / "a.yaml", Text, [os.fsdecode(b"path=caf\xe9.csv")])


def test_sources_columns_and_mixtures_have_the_names_that_were_given(tmp_path):
    (tmp_path / "a.csv").write_text("no,1.10\na,b\n")
    source = f"{{reader: csv, path: {tmp_path}/a.csv, text_column: no}}"
    (tmp_path / "mine.yaml").write_text(CORPUS.format(f"2024_01: {source}, 1.10: {source}, no: {source}"))
    config = load_corpus_config(tmp_path / "mine.yaml", ["sources.no.text_column=1.10"])
    columns = {name: its.text_column for name, its in config.sources.items()}
    assert columns == {"2024_01": "no", "1.10": "no", "no": "1.10"}
    mixture = "stages.decay.mixture={2024_01: 0.5, 007: 0.5}"
    recipe = load_recipe(NANO, ["data.sources=[2024_01, 007]", mixture, "stages.pretrain.mixture=null"])
    assert recipe.data.sources == ["2024_01", "007"]
    assert recipe.stages["decay"].mixture == {"2024_01": 0.5, "007": 0.5}


FINETUNE = """
model: {folder}
search: {{lr: [1e-2], weight_decay: [0], max_duration: [3ep], global_train_batch_size: [16]}}
task: [007]
tasks: {{007: {{labels: [no, yes], data: {{train: {folder}/train.csv, validation: [{folder}/train.csv]}}}}}}
"""


def test_labels_and_tasks_have_the_names_that_were_given(tmp_path):
    (tmp_path / "mine.yaml").write_text(FINETUNE.format(folder=tmp_path / "gone"))
    config = load_finetune_config(tmp_path / "mine.yaml")
    assert (config.chosen(), config.tasks["007"].labels) == (["007"], ["no", "yes"])
    config = load_finetune_config(tmp_path / "mine.yaml", ["tasks.007.labels=[1.0, 2.0]", "task=007"])
    assert (config.chosen(), config.tasks["007"].labels) == (["007"], ["1.0", "2.0"])


def test_labels_of_json_are_spelled_as_json_spells_them():
    labels = Labels(["false", "true"], "the training data", numbered=True)
    assert [labels.number(value, "here") for value in (False, True, "true")] == [0, 1, 1]
    assert Labels(["False", "True"], "a head of before", numbered=True).number(True, "here") == 1


def write_rows(path: Path, columns: list[str], *rows: list[str]) -> Path:
    """Write a file with columns of any names, as a join of two tables does."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table([pa.array(of) for of in zip(*rows, strict=True)], names=columns), path)
    elif path.suffix == ".jsonl":
        pairs = ([f'"{name}": {json.dumps(text)}' for name, text in zip(columns, row, strict=True)] for row in rows)
        path.write_text("".join(f"{{{', '.join(row)}}}\n" for row in pairs))
    else:
        path.write_text("".join(",".join(row) + "\n" for row in (columns, *rows)))
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_column_that_is_there_twice_is_refused_and_another_that_is_does_no_harm(kind, tmp_path):
    doubled = write_rows(tmp_path / f"a.{kind}", ["text", "text", "n"], ["one", "two", "3"])
    bad = BadInput("mine", limit=5)
    if kind == "jsonl":  # each row has names of its own
        assert documents(SourceConfig(kind, str(doubled)), bad) == []
        assert bad.listed == [f"{doubled}:1: the column 'text' occurs twice; rename or remove one of the two"]
    else:
        with pytest.raises(DataError, match=r"the column 'text' occurs twice; rename or remove one of the two"):
            documents(SourceConfig(kind, str(doubled)), bad)
    with pytest.raises(DataError, match=r"'text' occurs twice"):
        read_split(DataConfig(label="n"), str(doubled))
    other = write_rows(tmp_path / f"b.{kind}", ["text", "url", "url"], ['a "text" of text', "two", "3"])
    assert texts(kind, other) == ['a "text" of text']


def test_a_key_that_is_there_twice_in_other_spellings_is_refused(tmp_path):
    rows = [r'{"text": "one", "te\u0078t": "two"}', r'{"text": "\u0078, \u00e9", "\u00e9t\u00e9": 1}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    bad = BadInput("mine")
    assert [document.text for document in documents(SourceConfig("jsonl", str(tmp_path / "a.jsonl")), bad)] == ["x, é"]
    assert bad.listed == [f"{tmp_path}/a.jsonl:1: the column 'text' occurs twice; rename or remove one of the two"]


def test_a_key_that_a_text_quotes_is_not_taken_for_a_second_one(tmp_path):
    row = {"kind": "text", "inner": {"text": "x"}, "text": '"text": "text"'}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert texts("jsonl", tmp_path / "a.jsonl") == ['"text": "text"']


def test_endings_in_upper_case_are_endings(tmp_path):
    rows = ["one", "two"]
    write_csv(tmp_path / "a.CSV", rows)
    write_parquet(tmp_path / "b.Parquet", rows)
    write_gzip(tmp_path / "c.JSONL.GZ", rows)
    (tmp_path / "d.TXT").write_text("three")
    found = {reader: texts(reader, tmp_path) for reader in ("csv", "parquet", "jsonl", "text")}
    assert found == {"csv": rows, "parquet": rows, "jsonl": rows, "text": ["three"]}
    (tmp_path / "train.CSV").write_text("text,label\na,b\n")
    assert read_split(DataConfig(path=str(tmp_path)), "train")[0].label == "b"
    assert read_split(DataConfig(), str(tmp_path / "train.CSV"))[0].text == "a"


def test_a_file_name_that_is_not_utf_8_is_refused_by_name(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(path, "w") as file:
        file.write("a text")
    for source in (tmp_path, tmp_path / "*.txt"):
        with pytest.raises(DataError, match=r"caf\\xe9\.txt': the name of this file or folder is not UTF-8; rename it"):
            texts("text", source)


@pytest.mark.parametrize(
    "command",
    [
        ("import", "{bad}", "out"),
        ("import", "model", "{bad}"),
        ("import", "model", "out", "--tokenizer", "{bad}"),
        ("export", "{bad}", "out"),
        ("export", "run", "{bad}"),
        ("evaluate", "{bad}", "masked_lm"),
        ("evaluate", "model", "masked_lm", "--beside", "{bad}"),
    ],
)
def test_a_folder_of_a_model_whose_name_is_not_utf_8_is_refused_in_one_sentence(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = os.fsdecode(b"caf\xe9")
    for folder in ("model", "run", bad):
        Path(folder).mkdir()
    ended = rotary_foundry(*(word.format(bad=bad) for word in command))
    said = "error: b'caf\\xe9': the name of this file or folder is not UTF-8; rename it\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", said)
