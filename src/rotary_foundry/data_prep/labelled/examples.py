"""Read labelled examples row by row, each with its location, so that errors name file and row.

Files are not read by `datasets`, because its CSV reader takes texts such as "None" and "NA" as missing, and its errors
do not name the row. TSV, such as GLUE's own, has no quotes: the text is everything between two tabs. `datasets` reads
only data sets: a folder of its `save_to_disk`, or a name on the hub. A folder may also have one file for each split,
`train.csv` or `train-00000-of-00001.parquet`, as in a clone of a data set of the hub. Data in a published form (`form`)
are read by the reader of that form.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rotary_foundry.data_prep.labelled import chinese_packages, clue_files
from rotary_foundry.data_prep.labelled import offline_tasks as installation
from rotary_foundry.data_prep.labelled.bio_labels import with_entities
from rotary_foundry.data_prep.labelled.data_config import ANSWERS, CHOICES, CONLL, OF_ROWS, DataConfig
from rotary_foundry.data_prep.labelled.labelled_example import Example, json_lines
from rotary_foundry.data_prep.labelled.question_columns import with_answers, with_choices
from rotary_foundry.data_prep.readers.text_columns import twice
from rotary_foundry.data_prep.readers.unpacking import wide_encoding
from rotary_foundry.utils.errors import DataError, NeedsNetwork
from rotary_foundry.utils.hub import check_hub
from rotary_foundry.utils.wording import one_line

csv.field_size_limit(1 << 30)
CONLL_SUFFIXES = (".conll", ".bio", ".iob", ".iob2", ".txt")
FROM_ROWS = {CONLL: with_entities, ANSWERS: with_answers, CHOICES: with_choices}


def read_split(data: DataConfig, split: str, labelled: bool = True) -> list[Example]:
    """Read the examples of a split or of a file.

    Args:
        data, split: where the examples are.
        labelled: whether examples in a published form must have labels; those of a test file have none.

    Raises:
        DataError: the data is missing or invalid; the message names the file and row, and what would be right.
        NeedsNetwork: the data is on the hub, which cannot be reached.
    """
    found = list(_examples(data, split))
    if not found:
        place = split if data.path is None else f"{data.path}{f'/{data.name}' if data.name else ''}: split '{split}'"
        raise DataError(f"{place}: the split is empty; expected at least one example")
    if data.form is not None and labelled:
        for example in found:
            if example.label is None:
                raise DataError(f"{example.where}: the label is missing; unlabelled files belong under data.test")
    return found


def _examples(data: DataConfig, split: str) -> Iterator[Example]:
    if data.form is not None:
        yield from _in_form(data, split)
        return
    if data.path is None:
        yield from _files(data, [Path(split)])
        return
    if data.path == installation.PATH:
        for name, row in installation.rows(data.name or "", split):
            yield _row(data, row, f"{data.path}: {name}")
        return
    folder = Path(data.path)
    if data.name is not None and (folder / data.name).is_dir():
        folder /= data.name
    if not folder.is_dir():
        yield from _data_set(data, _from_hub(data, split), f"{data.path}: {split}")
    elif (folder / "dataset_dict.json").is_file():
        splits = _from_disk(folder)
        if split not in splits:
            raise DataError(f"{folder}: no split '{split}'; the splits there are {', '.join(splits)}")
        yield from _data_set(data, splits[split], f"{folder}: {split}")
    elif (folder / "state.json").is_file():
        raise DataError(
            f"{folder}: a single Dataset is saved there, without splits; save a DatasetDict that has it as '{split}'"
        )
    else:
        yield from _files(data, _split_files(folder, split))


def _in_form(data: DataConfig, split: str) -> Iterator[Example]:
    """Yield the examples of a split in a published form: from a file, from a folder of such files, or from the hub."""
    if data.form in FROM_ROWS:
        yield from map(FROM_ROWS[data.form], _examples(replace(data, form=None), split))
        return
    if data.form in chinese_packages.PACKAGES:
        yield from chinese_packages.read_package(data.form, Path(data.path), split)
        return
    folder = None if data.path is None else clue_files.find_folder(Path(data.path), data.name or data.form)
    if folder is None or Path(data.path).is_dir():
        for file in clue_files.find_files(
            Path(split) if folder is None else folder / clue_files.FILES.get(split, split)
        ):
            with _readable(file):
                yield from clue_files.read_file(data.form, file)
        return
    data = replace(data, name=data.name or data.form)
    loaded = _from_hub(data, clue_files.HUB_SPLITS.get(split, split))
    names = getattr(loaded.features.get("label"), "names", None)
    for number, row in enumerate(loaded):
        row |= {"label": _named(row["label"], names)} if "label" in row else {}
        yield from clue_files.read_rows(data.form, [(f"{data.path}: {split}: row {number}", row)])


def _split_files(folder: Path, split: str) -> list[Path]:
    """Return the file of a split, or all of its numbered parts.

    Raises:
        DataError: there is no file, a part is missing, or several files could be meant.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in READERS)
    whole = [file for file in files if file.stem == split and file.is_file()]
    part = re.compile(rf"{re.escape(split)}-(\d{{5}})-of-(\d{{5}})(?:-[0-9a-f]+)?(\.\w+)")  # older ones have a hash
    parts = [file for file in files if part.fullmatch(file.name)]
    if not whole and not parts:
        raise DataError(
            f"{folder}: no file of the split '{split}', such as {split}.csv, {split}.jsonl or {split}.parquet, and the "
            "folder is not one that DatasetDict.save_to_disk wrote"
        )
    if whole and (whole[1:] or parts):
        names = ", ".join(file.name for file in (*whole, *parts))
        raise DataError(f"{folder}: expected one file for the split '{split}', found {names}; remove the others")
    if whole:
        return whole
    found = [part.fullmatch(file.name).groups() for file in parts]
    _, count, suffix = found[0]
    wanted = [(f"{number:05}", count, suffix) for number in range(int(count))]
    if missing := [number for number, *_ in wanted if (number, count, suffix) not in found]:
        raise DataError(f"{folder}: {split}-{missing[0]}-of-{count}{suffix} is missing beside {parts[0].name}")
    if len(parts) > len(wanted):
        odd = next(file for number, file in enumerate(parts) if found[: number + 1] != wanted[: number + 1])
        raise DataError(f"{folder}: {odd.name} does not belong to the parts of {parts[0].name}; move it elsewhere")
    return parts


def _files(data: DataConfig, files: list[Path]) -> Iterator[Example]:
    for file in files:
        if file.suffix.lower() not in READERS:
            raise DataError(f"{file}: expected a file ending in {', '.join(READERS)}, got '{file.suffix}'")
        with _readable(file):
            yield from READERS[file.suffix.lower()](data, file)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        encoding = wide_encoding(error.object)
        said = f"it is {encoding[:6].upper()}" if encoding else one_line(error)
        raise DataError(f"{file}: not UTF-8: {said}; convert the file") from None


def _csv(data: DataConfig, file: Path) -> Iterator[Example]:
    form, advice = {"strict": True}, "quote texts with commas"
    if file.suffix.lower() == ".tsv":
        form, advice = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}, "remove tabs from texts"
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, **form)
        try:
            names = reader.fieldnames or []
            if several := [name for name in names if names.count(name) > 1]:
                raise DataError(f"{file}:1: {twice(several[0])}")
            for row in reader:
                where = f"{file}:{reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: expected the {len(names)} columns of the first line; {advice}")
                yield _row(data, row, where)
        except csv.Error as error:
            raise DataError(
                f"{file}: after line {reader.line_num}: not valid {file.suffix[1:].upper()}: {error}"
            ) from None


def _jsonl(data: DataConfig, file: Path) -> Iterator[Example]:
    for where, row in json_lines(file):
        yield _row(data, row, where)


def _parquet(data: DataConfig, file: Path) -> Iterator[Example]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            _check_columns(data, opened.schema_arrow.names, str(file))
            batches = opened.iter_batches(columns=[*data.text, data.label])
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield _row(data, row, f"{file}: row {number}")
    except pa.ArrowException as error:
        raise DataError(f"{file}: cannot be read as Parquet: {one_line(error)}") from None


def _conll(_: DataConfig, file: Path) -> Iterator[Example]:
    """Yield the sentences, which blank lines separate. Every line has the same number of columns."""
    words: list[str] = []
    labels: list[str] = []
    start, width = 1, None
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate([*stream, ""], 1):
            columns = line.split()
            if not columns or columns[0] == "-DOCSTART-":
                if words:
                    yield Example(f"{file}:{start}", words, labels)
                words, labels, start = [], [], number + 1
                continue
            width = width or len(columns)
            if len(columns) != width or width < 2:
                raise DataError(
                    f"{file}:{number}: {len(columns)} columns, the lines above have {width}; expected equally many in "
                    "every line, separated by blanks: the word first, its label last"
                )
            words.append(columns[0])
            labels.append(columns[-1])


READERS = {
    **{".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".json": _jsonl, ".parquet": _parquet},
    **dict.fromkeys(CONLL_SUFFIXES, _conll),
}


def _data_set(data: DataConfig, split: Any, where: str) -> Iterator[Example]:
    """Yield the rows of a `datasets.Dataset`; class numbers are replaced by its class names."""
    _check_columns(data, split.column_names, where)
    split = split.select_columns([*data.text, data.label])
    feature = split.features[data.label]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    number = -1
    for batch in split.iter(1000):
        for values in zip(*batch.values(), strict=True):
            number += 1
            row = dict(zip(batch, values, strict=True))
            row[data.label] = _named(row[data.label], names)
            yield _row(data, row, f"{where}: row {number}")


def _named(value: Any, names: list[str] | None) -> Any:
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def _row(data: DataConfig, row: dict, where: str) -> Example:
    _check_columns(data, row, where)
    texts = [row[column] for column in data.text]
    label = row[data.label]
    label = [_as_text(data, one, where) for one in label] if isinstance(label, list) else _as_text(data, label, where)
    return Example(where, texts[0] if len(texts) == 1 else tuple(texts), label)


def _as_text(data: DataConfig, label: Any, where: str) -> Any:
    """Return a label, decoded if it is bytes, as in a binary column of Parquet."""
    if not isinstance(label, bytes):
        return label
    try:
        return label.decode()
    except UnicodeDecodeError:
        raise DataError(f"{where}: column '{data.label}': expected text, got {label!r}, which is not UTF-8") from None


def texts_of(data: DataConfig, example: Example) -> tuple[str, ...]:
    """Return the text of an example, or both texts of a pair.

    Raises:
        DataError: one of them is not text; the message names the row and the column.
    """
    texts = example.text if isinstance(example.text, tuple) else (example.text,)
    if data.form is not None:  # the reader of the form has checked them
        return texts
    for column, text in zip(data.text, texts, strict=True):
        if not isinstance(text, str):
            raise DataError(f"{example.where}: column '{column}': expected text, got {text!r}; leave the row out")
    return texts


def source_files(data: DataConfig) -> list[Path]:
    """Return the files that examples are read from; none for a data set of the hub."""
    if data.path is None:
        files = [data.train, *data.validation]
        found = [of for file in files for of in (clue_files.find_files(Path(file)) if data.form else [Path(file)])]
    elif data.path == installation.PATH:
        found = installation.source_files()
    elif data.form in chinese_packages.PACKAGES:
        found = list(Path(data.path).glob(chinese_packages.FILES[data.form]))
    else:
        folder = Path(data.path)
        if data.form not in (None, *OF_ROWS):
            folder = clue_files.find_folder(folder, data.name or data.form)
        elif data.name is not None and (folder / data.name).is_dir():
            folder /= data.name
        found = list(folder.rglob("*"))
    return sorted(file for file in found if file.is_file())


def _check_columns(data: DataConfig, there: Iterable[str], where: str) -> None:
    there = list(there)
    for column in (*data.text, data.label):
        if column not in there:
            raise DataError(f"{where}: no column '{column}'; the columns there are {', '.join(map(str, there))}")
        if there.count(column) > 1:
            raise DataError(f"{where}: {twice(column)}")


def _from_disk(folder: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(folder)
    except Exception as error:  # from arrow, JSON or the file system
        raise DataError(f"{folder}: datasets cannot load it: {one_line(error)}") from None


def _from_hub(data: DataConfig, split: str) -> Any:
    check_reachable(data)
    import datasets

    try:
        return datasets.load_dataset(data.path, data.name, split=split)
    except ConnectionError as error:
        raise NeedsNetwork(
            f"{data.path}: not a local folder, and cannot be downloaded from the hub: {one_line(error)}"
        ) from None
    except Exception as error:  # from the hub or any builder
        raise DataError(f"{data.path}: datasets cannot load it: {one_line(error)}") from None


def check_reachable(data: DataConfig) -> None:
    """Check in seconds that a data set of the hub can be downloaded, before anything large is imported.

    Raises:
        NeedsNetwork: the hub cannot be reached.
    """
    if data.path not in (None, installation.PATH) and not Path(data.path).is_dir():
        check_hub(f"{data.path}: not a local folder; a data set of the Hugging Face hub has to be downloaded")
