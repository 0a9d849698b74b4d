"""The data of a multi-task stage, from files to rows: what they hold, what is left out, and what is refused."""

import io
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rotary_foundry.data.rows import Manifest, decode_row
from rotary_foundry.data.task_file import Task
from rotary_foundry.data_prep.corpus_config import CorpusConfig, TokenizerConfig, load_corpus_config
from rotary_foundry.data_prep.inspection.held_out_texts import held_out
from rotary_foundry.data_prep.inspection.shard_folder import ShardFolder
from rotary_foundry.data_prep.inspection.show import documents_of, print_row
from rotary_foundry.data_prep.inspection.source_folders import Texts
from rotary_foundry.data_prep.inspection.verify import verify
from rotary_foundry.data_prep.labelled.data_config import DataConfig
from rotary_foundry.data_prep.pipeline import prepare, work_folder
from rotary_foundry.data_prep.readers import SourceConfig
from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.data_prep.statistics_table import table
from rotary_foundry.data_prep.task_config import TaskConfig
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.data_prep.labelled.tokenizers import write_byte_tokenizer
from tests.data_prep.small_corpus import content, write_jsonl
from tests.data_prep.tasks import COUNT, NAMES, ROW_LENGTH, mood, numbers, task_corpus, write_files, write_lines
from tests.test_documents import CHINESE as FILES_OF_CHINESE

ROOT = Path(__file__).parents[2]
CHINESE = [f"data/chinese_texts/{file}" for file in FILES_OF_CHINESE]
TOKENIZERS = ("data/chinese/tokenizer", "runs/roformer_v2_base/tokenizer")
LABELLED = ("mood", "pairs", "score", "reading", "dialogues", "names")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> CorpusConfig:
    config = task_corpus(tmp_path_factory.mktemp("tasks"))
    prepare(config)
    return config


def rows(config: CorpusConfig, task: str, split: str = "train") -> list[dict]:
    folder = ShardFolder(Path(config.out) / task / str(config.row_lengths[0]) / split)
    return [sample for shard in folder.shards for sample in folder.rows(shard)]


def documents(config: CorpusConfig, task: str, split: str = "train") -> list[tuple[str, list[tuple[float, ...]], dict]]:
    """The text of each document without blanks, its targets, and the tokens from one to another of it as text."""
    texts = Texts(Path(config.out) / "tokenizer")
    found = []
    for row in rows(config, task, split):
        targets = row["targets"].reshape(-1, 4)
        for number, tokens in enumerate(decode_row(row)):
            its = [tuple(target[1:]) for target in targets if target[0] == number]
            found.append((texts.decode([tokens])[0], its, tokens))
    return found


def span(config: CorpusConfig, tokens: np.ndarray, first: float, last: float) -> str:
    return Texts(Path(config.out) / "tokenizer").decode([tokens[int(first) - 1 : int(last) + 2]])[0]


def test_the_whole_corpus_verifies_and_every_task_says_what_it_is(config):
    assert verify(config.out).problems == []
    kinds = {name: Task.read(Path(config.out) / name).kind for name in config.tasks}
    assert kinds == {name: task.kind for name, task in config.tasks.items()}
    assert Task.read(Path(config.out) / "mood") == Task("classification", ("bad", "good"), 2.0)
    assert Task.read(Path(config.out) / "names").labels == ("company", "name")
    assert Task.read(Path(config.out) / "reading").labels == ()


@pytest.mark.parametrize("split", ["train", "dev"])
def test_every_text_keeps_its_class_and_short_ones_share_a_row(config, split):
    stored = "validation" if split == "dev" else "train"
    expected = {f"the film {n} was {mood(n)}": n % 2 for n in numbers(split)}
    assert {text: target[0][0] for text, target, _ in documents(config, "mood", stored)} == expected
    assert len(documents(config, "mood", stored)) == COUNT[split] > 2 * len(rows(config, "mood", stored))


def test_a_pair_is_one_document_and_a_regression_keeps_its_number(config):
    pairs = {text: target[0][0] for text, target, _ in documents(config, "pairs")}
    assert pairs == {f"book {n}[SEP]song {n}": n % 3 // 2 for n in numbers("train")}
    assert Counter(target[0][0] for _, target, _ in documents(config, "score")) == Counter(
        n / 2 for n in numbers("train")
    )


def test_a_span_holds_its_answer_and_windows_without_it_point_nowhere(config):
    found = documents(config, "reading")
    spans = [(tokens, target[0]) for _, target, tokens in found]
    answered = [span(config, tokens, first, last) for tokens, (first, last, _) in spans if first]
    assert set(answered) == {"6397千米"}
    assert COUNT["train"] <= len(answered) < len(found)
    assert all(len(tokens) <= 64 for tokens, _ in spans)


def test_the_choices_of_a_question_lie_in_one_row(config):
    for row in rows(config, "dialogues"):
        first, choices, right = row["targets"].reshape(-1, 4)[:, :3].T
        assert first.tolist() == list(range(0, len(row["lengths"]), 4))
        assert set(choices) == {4}  # C3's are filled up
        assert set(right) == {1}
        assert all(len(set(of)) == 1 for of in np.split(row["documents"], 4 * np.arange(1, len(first))))


def test_entities_are_where_they_stand_and_a_text_without_any_says_so(config):
    for text, targets, tokens in documents(config, "names"):
        found = [(kind, span(config, tokens, first, last)) for kind, first, last in targets if kind >= 0]
        assert found == ([(0, "浙商银行"), (1, "叶老桂")] if int(text[:2]) % 2 else [])
        assert found or targets == [(-1, 0, 0)]


def test_sources_of_one_task_of_masked_lm_are_one_folder(config):
    manifest = Manifest.read(Path(config.out) / "text" / str(ROW_LENGTH) / "train")
    statistics = Statistics.read(config.out)
    of_sources = [source.train.rows[str(ROW_LENGTH)] for source in statistics.sources.values()]
    assert manifest.rows == sum(of_sources) == len(rows(config, "text"))
    assert list(statistics.sources) == ["some", "others"]
    assert not (Path(config.out) / "some").exists()


def test_the_report_has_counts_lengths_and_shares_of_labels(config):
    statistics = Statistics.read(config.out)
    assert list(statistics.tasks) == list(LABELLED)
    train = statistics.tasks["mood"].train
    assert train.labels == {"bad": COUNT["train"] // 2, "good": COUNT["train"] // 2}
    assert (train.examples, train.documents, train.truncated) == (COUNT["train"], COUNT["train"], 0)
    assert statistics.tasks["score"].train.labels == {"least": 0.0, "mean": 5.75, "largest": 11.5}
    score = statistics.tasks["score"].validation
    assert score.truncated == COUNT["dev"]
    assert score.first_truncated.endswith("mood-dev.jsonl:1")
    assert score.lengths[-1] == 12
    console = Console(width=150, file=io.StringIO())
    console.print(table(config.out, statistics))
    printed = console.file.getvalue()
    assert "bad 50.0% (50.0%), good 50.0% (50.0%) of training (validation)" in printed
    assert "shares of the blocks: text 46.2%, mood 15.4%" in printed
    assert f"score: cut {COUNT['dev']} examples of validation, the first at" in printed


def test_show_says_what_is_predicted_of_each_document(config):
    def shown(task: str, split: str = "train") -> list[tuple[str, tuple[str, ...]]]:
        folder = ShardFolder(Path(config.out) / task / str(ROW_LENGTH) / split)
        return [(one.text, one.targets) for row in range(folder.size) for one in documents_of(folder, row)]

    assert dict(shown("mood"))["the film 3 was good"] == ("label good",)
    assert dict(shown("score", "validation"))["the film 91"] == ("number 45.5",)
    assert [targets for _, targets in shown("dialogues")[:2]] == [
        *(("choice 1 of 4",), ("choice 2 of 4, the right one",))
    ]
    names = dict(shown("names"))
    assert [said.split(", tokens")[0] for said in names[f"01{NAMES}"]] == ["company 浙商银行", "name 叶老桂"]
    assert names[f"02{NAMES}"] == ("no entity",)
    answers = Counter(targets[0].split(", tokens")[0] for _, targets in shown("reading"))
    assert answers.keys() == {"answer 6397千米", "no answer here"}
    console = Console(width=200, highlight=False, file=io.StringIO())
    print_row(Path(config.out) / "mood" / str(ROW_LENGTH) / "train", 0, console=console)
    assert console.file.getvalue().count("→ label ") == len(rows(config, "mood")[0]["lengths"])


def test_held_out_texts_are_of_text_only(config, tmp_path):
    assert {text.source for text in held_out(config.out, 5, seed=0)} == {"text"}
    shutil.copytree(Path(config.out), tmp_path / "labelled", ignore=shutil.ignore_patterns("text"))
    with pytest.raises(DataError, match=r"no held-out text there, only labelled tasks \(dialogues, mood, names"):
        held_out(tmp_path / "labelled", 5, seed=0)


def test_entities_that_end_within_a_token_are_counted_and_named(tmp_path):
    label = {"person": {"Anna": [[0, 3]]}, "place": {"Berlin": [[12, 17]], "Ber": [[12, 14]]}}
    train = [
        {"text": "Anna was long", "label": {"person": {"Anna": [[0, 3]]}}},
        {"text": "Anna was in Berlin", "label": label},
    ]
    data = DataConfig(
        train=str(write_lines(tmp_path / "train.json", train)),
        validation=[str(write_lines(tmp_path / "dev.json", [{"text": "the film", "label": {}}]))],
        form="cluener",
    )
    tokenizer = str(write_byte_tokenizer(tmp_path / "tokenizer"))
    corpus = only(tmp_path, tokenizer, names=TaskConfig("entities", data))
    prepare(corpus)
    statistics = Statistics.read(corpus.out)
    counts = statistics.tasks["names"].train
    assert (counts.unmatched, counts.labels) == (1, {"person": 2, "place": 1, "none": 0})
    assert counts.first_unmatched.endswith("train.json:2")
    console = Console(width=150, file=io.StringIO())
    console.print(table(corpus.out, statistics))
    assert (
        "names: 1 entities of train begin or end within a token and cannot be learned, the first at"
        in console.file.getvalue()
    )


def test_a_second_start_finishes_at_once_and_other_files_are_refused(config, tmp_path, monkeypatch):
    before = content(Path(config.out))
    with monkeypatch.context() as patch:
        patch.setattr("rotary_foundry.data_prep.pipeline.open_work", None)
        assert prepare(config)
    with pytest.raises(DataError, match=r"holds shards made with other values of tasks"):
        prepare(replace(config, tasks=config.tasks | {"mood": replace(config.tasks["mood"], weight=3.0)}))
    file = Path(config.tasks["mood"].data.train)
    text = file.read_text()
    file.write_text(text + text.splitlines()[0].replace("film", "book"))
    with pytest.raises(DataError, match=r"holds other documents: the files of mood, score have changed since; delete"):
        prepare(config)
    assert content(Path(config.out)) == before


def only(tmp_path: Path, tokenizer: str, **tasks: TaskConfig) -> CorpusConfig:
    """A corpus of labelled tasks alone."""
    local = {"local": {"workers": 1}}
    return CorpusConfig(
        {}, TokenizerConfig(path=tokenizer), [64], str(tmp_path / "out"), 0.25, executor=local, tasks=tasks
    )


def moods(path: Path, texts: dict[str, str]) -> str:
    return str(write_lines(path, [{"text": text, "label": label} for text, label in texts.items()]))


@pytest.fixture
def tokenizer(config) -> str:
    return str(Path(config.out) / "tokenizer")


def test_what_a_task_holds_out_no_task_and_no_text_is_trained_on(config, tokenizer, tmp_path):
    held_out = "one document  of some length that a task holds out"
    others = {f"text {n} of another file": mood(n) for n in range(8)}
    a = DataConfig(
        train=moods(tmp_path / "a.jsonl", others), validation=[moods(tmp_path / "dev.jsonl", {held_out: "bad"})]
    )
    again = others | {" ".join(held_out.split()): "good", "text 8": "bad"}
    b = DataConfig(train=moods(tmp_path / "b.jsonl", again), validation=[])
    text = SourceConfig("jsonl", str(write_jsonl(tmp_path / "text.jsonl", [held_out, *(f"{t} " * 9 for t in others)])))
    both = {name: TaskConfig("classification", data) for name, data in {"a": a, "b": b}.items()}
    corpus = only(tmp_path, tokenizer, lm=TaskConfig("masked_lm"), **both)
    prepare(replace(corpus, sources={"mine": text}))
    statistics = Statistics.read(corpus.out)
    assert statistics.sources["mine"].left_out == {"held out by a task": 1}
    found = {name: {text for text, *_ in documents(corpus, name)} for name in both}
    kept_from_b = {text for text, *_ in documents(corpus, "b", "validation")}
    assert found["a"] == others.keys() - kept_from_b
    assert found["b"] == others.keys() - kept_from_b | {"text 8"} - kept_from_b
    assert statistics.tasks["a"].dropped == len(kept_from_b & others.keys()) > 0
    assert statistics.tasks["b"].dropped == 1  # the same text, but for white space
    assert 0 < len(kept_from_b) < 6


def test_a_task_of_which_all_is_held_out_is_refused(tokenizer, tmp_path):
    path = moods(tmp_path / "a.jsonl", {"one": "good", "two": "bad"})
    corpus = only(tmp_path, tokenizer, a=TaskConfig("classification", DataConfig(train=path, validation=[path])))
    with pytest.raises(DataError, match=r"tasks.a: the texts of all its 2 training examples are held out by a task"):
        prepare(corpus)
    assert not Path(corpus.out).exists()
    assert work_folder(corpus).exists()


def test_labelled_tasks_need_no_text_and_workers_change_nothing(tokenizer, tmp_path, config):
    without = {name: config.tasks[name] for name in ("mood", "names")}
    made = []
    for workers in (1, 2):
        corpus = replace(only(tmp_path / str(workers), tokenizer, **without), executor={"local": {"workers": workers}})
        prepare(corpus)
        made.append(content(Path(corpus.out)))
    assert made[0] == made[1]
    assert Statistics.read(corpus.out).unigram_entropy is None


def test_a_text_that_is_too_long_is_refused_if_asked_for(tokenizer, tmp_path):
    path = moods(tmp_path / "a.jsonl", {"short": "good", "long " * 70: "bad"})
    dev = moods(tmp_path / "dev.jsonl", {"other": "good"})
    task = TaskConfig("classification", DataConfig(train=path, validation=[dev]), long_documents="refuse")
    with pytest.raises(DataError, match=r"a.jsonl:2: over the tokens that tasks.a.max_seq_len or a row allows"):
        prepare(only(tmp_path, tokenizer, a=task))


GOOD, DEV = [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}], [{"text": "three", "label": "a"}]


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        (
            GOOD[:1],
            DEV,
            r"tasks.mine: all training examples, from .*train.jsonl:1 on, have the label 'a'; there is nothing to",
        ),
        ([], DEV, r"train.jsonl: the split is empty; expected at least one example"),
        (GOOD, [], r"dev.jsonl: the split is empty"),
        ([*GOOD, {"text": "x"}], DEV, r"train.jsonl:3: no column 'label'; the columns there are text"),
        (GOOD, [{"text": "x", "label": "c"}], r"dev.jsonl:1: label 'c' is not among those of the training data \(a, b"),
        ([*GOOD, {"text": 5, "label": "a"}], DEV, r"train.jsonl:3: column 'text': expected text, got 5"),
        ([*GOOD, {"text": "x", "label": None}], DEV, r"train.jsonl:3: the label is empty"),
    ],
)
def test_bad_examples_are_refused_by_file_and_row(tokenizer, tmp_path, train, dev, message):
    data = DataConfig(
        train=str(write_lines(tmp_path / "train.jsonl", train)),
        validation=[str(write_lines(tmp_path / "dev.jsonl", dev))],
    )
    with pytest.raises(DataError, match=message):
        prepare(only(tmp_path, tokenizer, mine=TaskConfig("classification", data)))


def test_a_span_outside_its_text_is_refused_by_file_and_row(tokenizer, tmp_path):
    files = write_files(tmp_path / "files")
    rows_of_file = (files / "cluener/train.json").read_text().splitlines()
    row = json.loads(rows_of_file[1])
    row["label"]["name"] = {"叶老桂": [[21, 23]]}
    (files / "cluener/train.json").write_text("\n".join([rows_of_file[0], json.dumps(row)]))
    task = TaskConfig("entities", DataConfig(path=str(files), form="cluener"))
    with pytest.raises(DataError, match=r"train.json:2: the name '叶老桂' at 21 to 24 lies outside the text of 15"):
        prepare(only(tmp_path, tokenizer, names=task))


def test_questions_of_rows_with_columns_by_name_become_rows_and_examples_held_out_are_dropped(tokenizer, tmp_path):
    pages = [
        {"asked": f"Which {n}?", "page": f"It was the film {n} of one text", "said": f"film {n}"} for n in range(6)
    ]
    quizzes = [
        {"asked": f"What is {n}?", "options": [f"a {n}", f"b {n}", "none"][: 2 + n % 2], "right": 1} for n in range(6)
    ]
    files = {}
    for name, rows_of_file in (("reading", pages), ("quiz", quizzes)):
        train, dev = (str(write_lines(tmp_path / f"{name}-{split}.jsonl", part)) for split, part in (
            ("train", rows_of_file[:5]), ("dev", [rows_of_file[4], rows_of_file[5]]),
        ))  # fmt: skip
        files[name] = {"train": train, "validation": [dev]}
    corpus = only(
        tmp_path,
        tokenizer,
        reading=TaskConfig(
            "answer", DataConfig(form="answers", text=["asked", "page"], label="said", **files["reading"])
        ),
        quiz=TaskConfig(
            "choice", DataConfig(form="choices", text=["asked", "options"], label="right", **files["quiz"])
        ),
    )
    prepare(corpus)
    found = documents(corpus, "reading")
    assert {span(corpus, tokens, *target[0][:2]) for _, target, tokens in found} == {f"film {n}" for n in range(4)}
    targets = [target for row in rows(corpus, "quiz") for target in row["targets"].reshape(-1, 4)]
    assert Counter(int(target[1]) for target in targets) == {2: 2, 3: 2}  # choices of a question
    assert {int(target[2]) for target in targets} == {1}
    assert [Statistics.read(corpus.out).tasks[name].dropped for name in files] == [1, 1]
    assert verify(corpus.out).problems == []


YAML = """
sources: {{web: {{reader: text, path: {path}}}}}
tokenizer: {{train: {{vocab_size: 320}}}}
row_lengths: [64]
out: out
tasks:
  text: {{kind: masked_lm}}
  mine: {{kind: classification, data: {{train: a.csv}}}}
"""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.mine.weight=0", r"'tasks.mine.weight': expected a number above 0, got 0"),
        ("tasks.mine.weight=.nan", r"'tasks.mine.weight': expected a number above 0, got nan"),
        ("tasks.mine.kind=classifcation", r"'tasks.mine.kind': .* did you mean 'classification'"),
        ("tasks.mine.labels=[a]", r"'tasks.mine.labels': expected at least 2 labels, got \['a'\]"),
        ("tasks.mine.labels=[a,a]", r"'tasks.mine.labels': expected different labels"),
        ("tasks.mine.max_seq_len=65", r"'tasks.mine.max_seq_len': expected 3 to 64, the tokens of the shortest row"),
        (
            "tasks.mine.kind=entities",
            r"'tasks.mine.data.form': a task of kind entities needs one of cluener",
        ),
        ("tasks.mine.data.form=c3", r"'tasks.mine.kind': expected choice, the kind of data.form=c3"),
        ("tasks.mine.data.form=reviews", r"'tasks.mine.data.path': expected the folder .* of reviews is unpacked"),
        ("tasks.mine.data.text=[]", r"'tasks.mine.data.text': expected one or two columns, got 0"),
        (
            "tasks.mine.kind=answer & tasks.mine.data.form=answers",
            r"'tasks.mine.data.text': expected the columns of the question and of the passage, got 1",
        ),
        (
            "tasks.mine.kind=choice & tasks.mine.data.form=choices",
            r"'tasks.mine.data.text': expected one or two columns of text, then that of choices, got 1",
        ),
        ("tasks.mine.long_documents=drop", r"'tasks.mine.long_documents': expected truncate or refuse"),
        ("tasks.mine.sources=[web]", r"'tasks.mine.sources': only a task of kind masked_lm has sources"),
        ("tasks.text.sources=[wab]", r"'tasks.text.sources': no source 'wab'; there are web"),
        ("tasks.text.labels=[a,b]", r"'tasks.text.labels': a task of kind masked_lm has no labels"),
        ("tasks.text.kind=choice", r"'tasks.text.data.form': a task of kind choice needs one of c3, chid"),
        ("tasks.more={kind: masked_lm}", r"'sources.web': expected to be of one task of kind masked_lm, found 2"),
        ("tasks.web={kind: masked_lm}", r"'tasks.web': there is a source of this name; rename the task"),
        ("sources.web.length_bands=[99]", r"'sources.web.length_bands': the rows of a task have no bands"),
        (
            "tasks.mine.data.validation=[] & validation=5",
            r"'tasks.mine.data.validation': .*`validation` is not a share",
        ),
        ("tokenizer.causal=true", r"'tokenizer.causal': heads of tasks are for encoders"),
    ],
)
def test_a_wrong_key_is_refused_before_anything_is_read(tmp_path, override, message):
    path = tmp_path / "tasks.yaml"
    path.write_text(YAML.format(path=tmp_path))
    with pytest.raises(ConfigurationError, match=message):
        load_corpus_config(path, override.split(" & "))


def test_two_tasks_of_one_name_are_refused_with_the_line(tmp_path):
    path = tmp_path / "tasks.yaml"
    path.write_text(YAML.format(path=tmp_path) + "  mine: {kind: regression, data: {train: b.csv}}\n")
    with pytest.raises(ConfigurationError, match=r"tasks.yaml: .*duplicate key mine"):
        load_corpus_config(path)


@pytest.mark.parametrize("name", ["nano", "roformer_v2"])
def test_our_yamls_load_where_their_texts_and_tokenizers_are(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in (*CHINESE, "data/text/a.jsonl", *(f"{place}/tokenizer.json" for place in TOKENIZERS)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    loaded = load_corpus_config(ROOT / f"yamls/tasks/{name}.yaml")
    assert {task.kind for task in loaded.tasks.values()} >= {"masked_lm", "classification", "entities"}
    assert loaded.tasks["text"].weight == max(task.weight for task in loaded.tasks.values())
