"""Fine-tuning's YAMLs: the published ones load, and what is wrong is named by its key before data is read."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rotary_foundry.finetuning.finetune_config import SearchConfig, load_finetune_config
from rotary_foundry.finetuning.search import load_search
from rotary_foundry.utils.errors import ConfigurationError

FOLDER = Path(__file__).parents[2] / "yamls/finetune"


def test_glue_has_its_nine_tasks_with_their_metrics_and_the_search_of_the_modernbert_paper():
    config = load_finetune_config(FOLDER / "glue.yaml", ["model=m"])
    few, many = ["1ep", "2ep", "3ep"], ["2ep", "5ep", "10ep"]
    table = {  # metrics, epochs, batch size, evaluated every, begins with the best of
        "mnli": (["accuracy"], few, 48, "2300ba", None),
        "sst2": (["accuracy"], few, 16, "500ba", None),
        "qqp": (["accuracy", "f1"], many, 16, "2000ba", None),
        "qnli": (["accuracy"], many, 16, "1000ba", None),
        "cola": (["mcc"], many, 32, "250ba", None),
        "mrpc": (["accuracy", "f1"], many, 32, "100ba", "mnli"),
        "stsb": (["spearman", "pearson"], many, 32, "200ba", "mnli"),
        "rte": (["accuracy"], few, 16, "100ba", "mnli"),
        "wnli": (["accuracy"], few, 16, "1ep", None),
    }
    assert list(config.tasks) == list(table)
    for name, (metrics, epochs, batch, interval, start) in table.items():
        task = config.of(name)
        assert (task.metrics, task.eval_interval, task.init_from_task) == (metrics, interval, start), name
        assert task.search == SearchConfig([1e-5, 3e-5, 5e-5, 8e-5], [1e-6, 5e-6, 8e-6, 1e-5], epochs, [batch]), name
    assert (config.t_warmup, config.alpha_f, config.patience) == ("0.06dur", 0.0, "1ep")
    assert (config.betas, config.eps, config.max_seq_len, config.seeds) == ([0.9, 0.98], 1e-6, 256, [1, 2, 3, 4, 5])


def test_a_task_comes_after_the_one_that_it_starts_from():
    config = load_finetune_config(FOLDER / "glue.yaml", ["model=m", "task=[rte,stsb,mnli,sst2]"])
    assert config.chosen() == ["mnli", "sst2", "rte", "stsb"]


def test_a_key_given_for_all_serves_the_tasks_that_have_none_of_their_own():
    config = load_finetune_config(FOLDER / "glue.yaml", ["model=m", "data_path=here", "search.lr=[1e-4]"])
    assert (config.of("rte").data.path, config.of("rte").data.name) == ("here", "rte")
    assert config.of("rte").search.lr == [1e-4]


def test_clue_has_its_eleven_tasks_with_the_published_settings():
    config = load_finetune_config(FOLDER / "clue.yaml", ["model=m"])
    table = {  # type, tokens, epochs, examples an update
        **dict.fromkeys(("iflytek", "tnews", "afqmc", "cmnli", "ocnli", "csl"), ("sequence", 128, "10ep", 32)),
        "wsc": ("sequence", 128, "30ep", 32),
        "cmrc2018": ("answer", 512, "10ep", 32),
        "c3": ("choice", 512, "10ep", 16),
        "chid": ("choice", 64, "5ep", 24),
        "cluener": ("entities", 256, "10ep", 32),
    }
    assert config.tasks.keys() == table.keys()
    for name, (type_, length, epochs, batch) in table.items():
        task = config.of(name)
        assert (task.type, task.max_seq_len, task.search) == (
            type_,
            length,
            SearchConfig([5e-4], [0.0], [epochs], [batch]),
        ), name
    assert (config.optimizer, config.betas[0], config.t_warmup, config.alpha_f) == ("adafactor", 0.9, "0dur", 1.0)
    adamw = load_finetune_config(FOLDER / "clue_adamw.yaml", ["model=m"])
    assert adamw.of("tnews").search == SearchConfig([2e-5], [2e-7], ["10ep"], [32])
    assert (adamw.optimizer, adamw.t_warmup, adamw.alpha_f) == ("decoupled_adamw", "0.1dur", 0.0)


@pytest.mark.parametrize("name", ["glue", "files", "conll", "installation", "clue", "clue_adamw", "chinese"])
def test_each_published_yaml_wants_no_more_than_a_model(name):
    assert load_finetune_config(FOLDER / f"{name}.yaml", ["model=m"]).chosen()


@pytest.mark.parametrize("tasks", ["rte", "[cola,rte]"])
def test_a_task_without_the_one_that_it_starts_from_is_refused_before_any_job(tasks, tmp_path):
    with pytest.raises(ConfigurationError, match=r"init_from_task: .*/out has no result of mnli yet; run it too"):
        load_search(FOLDER / "glue.yaml", ["model=m", f"task={tasks}", f"out={tmp_path}/out", "data_path=nowhere"])


@pytest.mark.parametrize("file", ["finetune/glue.yaml", "eval/glue.yaml"])
def test_the_tasks_that_a_comment_gives_as_an_example_can_be_run(file, tmp_path):
    examples = re.findall(r"task=(\w+|\[.*?\])", (FOLDER.parent / file).read_text())
    assert examples
    for tasks in examples:
        load_search(FOLDER / "glue.yaml", ["model=m", f"task={tasks}", f"out={tmp_path}/out", f"data_path={tmp_path}"])


def test_the_folder_of_results_is_named_after_the_model():
    assert load_finetune_config(FOLDER / "glue.yaml", ["model=runs/nano/export"]).folder == Path(
        "runs/finetune/runs-nano-export"
    )


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("task=rte", "'task': no task 'rte'; there are mine"),
        (
            "tasks.mine.type=classification",
            "'tasks.mine.type': expected one of sequence, regression, token, choice, answer, entities, got 'classi",
        ),
        (
            "tasks.mine.metrics=[pearson]",
            "'tasks.mine.metrics': type sequence has no metric 'pearson'; there are accuracy",
        ),
        ("tasks.mine.init_from_task=mnli", "'tasks.mine.init_from_task': no task 'mnli'"),
        ("tasks.mine.init_from_task=mine", "tasks start from each other"),
        ("tasks.mine.data.text=[a,b,c]", "'tasks.mine.data.text': expected one or two columns, got 3"),
        ("tasks.mine.data.form=cmrc", "'tasks.mine.data.form': 'cmrc' is not known; did you mean 'cmrc2018'?"),
        ("tasks.mine.data.form=c3", "'tasks.mine.type': expected choice, the type of data.form=c3, got sequence"),
        ("optimizer=lamb", "'optimizer': expected one of decoupled_adamw, adafactor, got 'lamb'"),
        ("tasks.mine.max_seq_len=2", "'tasks.mine.max_seq_len': 2 is too short; expected at least 3"),
        ("tasks.mine.type=answer", "'tasks.mine.data.form': type answer needs one of afqmc, tnews"),
        ("tasks.mine.data.test={a: test.json}", "'tasks.mine.data.test': predictions are written only for data in"),
        ("search.lr=[]", "'tasks.mine.search.lr': expected a list of numbers above 0, got []"),
        (
            "search.max_duration=[3]",
            "'tasks.mine.search.max_duration': expected a list of epochs or batches, as in 3ep",
        ),
        ("seeds=[1,1]", "'seeds': expected at least one seed and no duplicates, got [1, 1]"),
        ("seeds=[1,-1]", "'seeds': expected integers from 0 to 4294967295, got [1, -1]"),
        ("alpha_f=-3", "'alpha_f': expected a fraction of the peak from 0 to 1, got -3.0"),
        ("t_warmup=1dur", "'t_warmup': expected a time such as 0.06dur or 50ba, got '1dur'"),
        ("search_seeds=3", "'search_seeds': expected 1 to 2, the number of seeds; got 3"),
        ("patience=2", "'patience': expected epochs or batches, as in 1ep or 100ba, got '2'"),
        ("long_documents=drop", "'long_documents': expected truncate or refuse, got 'drop'"),
        ("tasks.mine.lables=[a]", "unknown key 'tasks.mine.lables'; did you mean 'labels'?"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(write_yaml, override, complaint):
    with pytest.raises(ConfigurationError) as error:
        load_finetune_config(write_yaml(), [override])
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("warmup", ["0dur", "0.0dur", ".06dur", "0.5dur"])
def test_a_warm_up_is_a_part_of_the_whole(write_yaml, warmup):
    assert load_finetune_config(write_yaml(), [f"t_warmup={warmup}"]).t_warmup == warmup


def test_a_run_folder_is_refused_with_the_command_that_exports_it(write_yaml, tmp_path):
    with pytest.raises(ConfigurationError, match=r"has no config\.json; .* `rotary-foundry export`"):
        load_finetune_config(write_yaml(), [f"model={tmp_path}"])


def test_glue_without_a_network_says_so_at_once_and_exits_with_status_3(tmp_path, model):
    """The hub's address is one that no name server knows, here as on machines that have a network."""
    run = subprocess.run(
        [
            str(Path(sys.executable).parent / "rotary-foundry"),
            "finetune",
            "yamls/finetune/glue.yaml",
            f"model={model}",
            "task=wnli",
            f"out={tmp_path}",
        ],
        env=os.environ | {"HF_ENDPOINT": "https://hub.invalid"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 3, run.stderr
    assert run.stderr.startswith(
        "error: nyu-mll/glue: not a local folder; a data set of the Hugging Face hub has to be downloaded; "
    )
    assert len(run.stderr.splitlines()) == 1
