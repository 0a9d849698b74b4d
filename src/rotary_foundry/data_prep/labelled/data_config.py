"""The keys that say where labelled examples are, in the YAMLs of fine-tuning and of multi-task stages."""

from dataclasses import dataclass, field

LONG_DOCUMENTS = "truncate", "refuse"
PACKAGES = "reviews", "help_pages", "terms", "newspaper"  # forms that `chinese_packages.py` reads
CONLL = "conll"  # words with BIO labels (bio_labels.py), in files of columns or in columns of lists
FORMS = {  # published forms of data, and their types of task
    **dict.fromkeys(("afqmc", "tnews", "iflytek", "cmnli", "ocnli", "wsc", "csl"), "sequence"),
    **{"c3": "choice", "chid": "choice", "cmrc2018": "answer", "cluener": "entities"},
    **dict.fromkeys(PACKAGES[:-1], "sequence"),
    PACKAGES[-1]: "entities",
    CONLL: "entities",
}


@dataclass
class DataConfig:
    """The location of examples: a data set with splits, or files."""

    path: str | None = None  # a data set: a folder, or its name on the Hugging Face hub; `data_path` if not given
    name: str | None = None  # of a configuration of it, such as rte of nyu-mll/glue
    form: str | None = None  # a published form, such as cmrc2018; splits are then names of files in `path`/`name`
    train: str = "train"  # the split, or, without any path, the file: .csv .tsv .jsonl .parquet .conll
    validation: list[str] = field(default_factory=lambda: ["validation"])  # the first decides which model is best
    text: list[str] = field(default_factory=lambda: ["text"])  # a column, or the two of a pair; of a list of words
    label: str = "label"  # the column; CoNLL files have none: words are their first column, labels their last
    test: dict[str, str] = field(default_factory=dict)  # predictions to write: their file's name → the unlabelled split
