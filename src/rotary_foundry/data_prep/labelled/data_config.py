"""The keys that say where labelled examples are, in the YAMLs of fine-tuning and of multi-task stages."""

from dataclasses import dataclass, field

LONG_DOCUMENTS = "truncate", "refuse"
PACKAGES = "reviews", "help_pages", "terms", "newspaper"  # forms that `chinese_packages.py` reads
CONLL = "conll"  # words with BIO labels (bio_labels.py), in files of columns or in columns of lists
ANSWERS, CHOICES = "answers", "choices"  # rows with columns of any name (question_columns.py)
OF_ROWS = CONLL, ANSWERS, CHOICES  # forms of rows, which any reader of rows can read
FORMS = {  # the type of task of each form of data
    **dict.fromkeys(("afqmc", "tnews", "iflytek", "cmnli", "ocnli", "wsc", "csl"), "sequence"),
    **{"c3": "choice", "chid": "choice", "cmrc2018": "answer", "cluener": "entities"},
    **dict.fromkeys(PACKAGES[:-1], "sequence"),
    PACKAGES[-1]: "entities",
    CONLL: "entities",
    ANSWERS: "answer",
    CHOICES: "choice",
}


@dataclass
class DataConfig:
    """The location of examples: a data set with splits, or files."""

    path: str | None = None  # a data set: a folder, or its name on the Hugging Face hub; default: `data_path`
    name: str | None = None  # the name of a configuration of it, such as rte of nyu-mll/glue
    form: str | None = None  # one of FORMS; in a published form, splits are names of files in `path`/`name`
    train: str = "train"  # the split, or, without a path, the file: .csv .tsv .jsonl .parquet .conll
    validation: list[str] = field(default_factory=lambda: ["validation"])  # the first decides which model is best
    text: list[str] = field(default_factory=lambda: ["text"])  # a column, or the two of a pair; see question_columns.py
    label: str = "label"  # the column; in CoNLL files, the first column has the words and the last the labels
    test: dict[str, str] = field(default_factory=dict)  # predictions to write: their file's name → the unlabelled split


def columns_complaint(data: DataConfig, most: int = 2) -> str | None:
    """Return what is wrong with the number of columns in `text`; None if nothing is.

    Args:
        data: the data, with their columns.
        most: the most columns of data without a form.
    """
    found = len(data.text)
    if data.form == ANSWERS:
        return None if found == 2 else f"expected the columns of the question and of the passage, got {found}"
    if data.form == CHOICES:
        return None if found in (2, 3) else f"expected one or two columns of text, then that of choices, got {found}"
    expected = "one column" if most == 1 else "one or two columns"
    return None if 1 <= found <= most else f"expected {expected}, got {found}"
