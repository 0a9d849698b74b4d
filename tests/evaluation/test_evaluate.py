"""The commands `evaluate` and `compare`, as they are given."""

import io
import os
import shutil
import sys
from importlib import metadata

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from rotary_foundry import cli
from rotary_foundry.evaluation import suites
from rotary_foundry.evaluation.compare import find_results, write_comparison
from rotary_foundry.evaluation.evaluate import PACKAGES, evaluate
from rotary_foundry.evaluation.results import Measure, Result, name_of, results_folder
from rotary_foundry.runs.run_lock import LOCK, LockFile, RunLock
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.evaluation.test_suites import CONTEXT


@pytest.fixture(scope="module")
def evaluated(model_of, corpus, tmp_path_factory):
    """One command over two suites and two models."""
    out = tmp_path_factory.mktemp("evaluations")
    path = out / "both.yaml"
    longest = "\n".join(one.replace("=", ": ") for one in CONTEXT)
    folder = suites.FOLDER.resolve()
    path.write_text(f"extends: [{folder}/context.yaml]\n{longest}\n")
    arguments = [str(model_of("modernbert")), f"masked_lm,{path}", f"data={corpus}", "resamples=50", f"out={out}"]
    return out, CliRunner().invoke(cli.app, ["evaluate", *arguments, "--beside", str(model_of("bert"))])


def test_each_suite_of_each_model_has_its_json_and_picture(evaluated):
    out, done = evaluated
    assert done.exit_code == 0, done.output
    for model in "modernbert", "bert":
        for suite in "masked_lm", "context":
            result = Result.read(out / model / suite / "result.json")
            assert result.model["name"] == model
            assert result.suite == suite
            assert result.config["seed"] == 0
            assert result.config["resamples"] == 50
            assert result.headlines[-1].within == ((0.0, 1.0) if suite == "masked_lm" else None)
            assert result.environment["packages"] == {name: metadata.version(name) for name in PACKAGES}
            assert "commit" in result.environment
            with Image.open(out / model / suite / "picture.png") as picture:
                assert model in picture.text["Description"]
                assert picture.width > 1000


def test_tables_are_printed_whole_and_models_compared(evaluated):
    _, done = evaluated
    assert "masked-LM, 15% of the tokens masked" in done.output
    assert "… less modernbert's" in done.output
    # windows and targets of `context` are one to both; the documents of `masked_lm` are cut, to the 128 of this BERT
    assert "masked_lm: bert and modernbert were asked different questions" in done.output
    assert "context: bert was not" not in done.output
    assert "…]" not in done.output


def test_results_that_are_there_make_one_table_and_a_picture_of_each_suite(evaluated, tmp_path):
    out, _ = evaluated
    done = CliRunner().invoke(cli.app, ["compare", str(out / "bert"), str(out / "modernbert"), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "comparison.md").read_text()
    loss = Result.read(out / "bert/masked_lm/result.json").headlines[0].measure
    assert f"| masked_lm | loss (nats per token) | {loss} |" in text
    assert "| … less bert's |" in text
    assert {path.name for path in tmp_path.iterdir()} == {"comparison.md", "masked_lm.png", "context.png"}


def test_a_difference_is_given_of_the_same_questions_only(evaluated, model_of, corpus, tmp_path):
    """The documents, and what they are called, are the same in all four."""
    found = [Result.read(evaluated[0] / "modernbert/masked_lm/result.json")]
    for overrides in [], ["mlm_probability=0.3"], ["seed=1"]:
        given = [f"data={corpus}", f"out={tmp_path}", "resamples=50", *overrides]
        found += evaluate([str(model_of("modernbert"))], ["masked_lm"], given)
    assert len({tuple(result.headlines[0].units) for result in found}) == 1
    first, again, *others = (result.asked for result in found)
    assert first == again
    assert len({first, *others}) == 3


def test_no_difference_is_given_of_results_that_do_not_say_what_was_asked(evaluated, tmp_path):
    results = [Result.read(evaluated[0] / f"{model}/context/result.json") for model in ("modernbert", "bert")]
    for result in results:
        result.asked = ""
    console = Console(file=io.StringIO(), width=200)
    write_comparison(results, tmp_path, console)
    assert "less modernbert's" not in console.file.getvalue()
    assert "context: bert and modernbert were asked different questions" in console.file.getvalue()


def test_a_result_of_a_fine_tuning_is_none_to_compare(evaluated, tmp_path):
    folder = shutil.copytree(evaluated[0] / "bert", tmp_path / "bert")
    (folder / "glue/finetune/bert/seed-1").mkdir(parents=True)
    (folder / "glue/finetune/bert/seed-1/result.json").write_text('{"score": 0.5}')
    assert [result.suite for result in find_results([folder])] == ["context", "masked_lm"]


def test_two_yamls_of_one_suite_are_refused():
    with pytest.raises(ConfigurationError, match=r"needle\.yaml: another YAML is for the same suite, needle"):
        suites.find_suites(["masked_lm", "needle", str(suites.FOLDER.resolve() / "needle.yaml")])


def test_a_result_is_read_as_it_was_written(evaluated, tmp_path):
    out, _ = evaluated
    result = Result.read(out / "bert/context/result.json")
    assert Result.read(result.write(tmp_path)) == result


def test_what_is_no_result_is_named(tmp_path):
    (tmp_path / "result.json").write_text('{"suite": "context"}')
    with pytest.raises(DataError, match=r"result\.json: cannot be read as a result of `rotary-foundry evaluate`"):
        Result.read(tmp_path / "result.json")


def refused(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()  # what a fixture has printed
    monkeypatch.setattr(sys, "argv", ["rotary-foundry", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err


def test_an_unknown_suite_is_refused_with_the_list_of_all(monkeypatch, capsys, model_of):
    status, said = refused(monkeypatch, capsys, "evaluate", str(model_of("bert")), "contxt")
    assert status == 2
    assert said.startswith("error: no suite 'contxt'; there are masked_lm, context, needle")
    assert said.count("\n") == 1


def test_a_model_that_is_not_there_is_refused(monkeypatch, capsys):
    status, said = refused(monkeypatch, capsys, "evaluate", "nowhere", "context")
    assert (status, said) == (
        2,
        "error: nowhere: no such file or folder; expected a run, a checkpoint or a model directory\n",
    )


def test_data_that_is_not_there_is_refused_before_the_first_suite(monkeypatch, capsys, tmp_path, model_of):
    given = ["evaluate", str(model_of("modernbert")), "retrieval,needle", f"data={tmp_path}/none", f"out={tmp_path}"]
    status, said = refused(monkeypatch, capsys, *given)
    assert (status, list(tmp_path.iterdir())) == (2, [])
    assert said.startswith(f"error: {tmp_path}/none: no such folder; `python data_prep` writes one")


@pytest.mark.parametrize("folder", ["bert-theta-20000/masked_lm", "modernbert-theta-20000/context", "compared"])
def test_a_second_evaluation_into_the_same_folder_is_refused_before_anything_is_measured(
    monkeypatch, capsys, tmp_path, model_of, corpus, folder
):
    given = [str(model_of("bert")), "masked_lm,context", f"data={corpus}", f"out={tmp_path}", "rope_theta=20000"]
    with RunLock(LockFile(tmp_path / folder, "out")):
        status, said = refused(monkeypatch, capsys, "evaluate", *given, "--beside", str(model_of("modernbert")))
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / folder / LOCK]
    assert status == 2
    assert said.startswith(f"error: 'out': {tmp_path / folder}: process {os.getpid()} on ")
    assert said.count("\n") == 1


def test_comparing_nothing_is_refused(monkeypatch, capsys, tmp_path):
    status, said = refused(monkeypatch, capsys, "compare", str(tmp_path))
    assert status == 2
    assert "no result.json; `rotary-foundry evaluate` writes them" in said


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        (["masked_lm,retrieval", "tasks=[BEIR]"], 3, "BEIR: the data has to be downloaded"),
        (["masked_lm,glue", "finetune=yamls/finetune/glue.yaml"], 3, "nyu-mll/glue: not a local folder"),
        (
            ["masked_lm,glue", "task=BEIR"],
            2,
            "yamls/finetune/installation.yaml: 'task': no task 'BEIR'; there are",
        ),
    ],
)
def test_what_a_later_suite_lacks_is_said_before_the_first_is_measured(
    monkeypatch, capsys, model_of, corpus, tmp_path, no_network, given, status, message
):
    arguments = ["evaluate", str(model_of("bert")), *given, f"data={corpus}", f"out={tmp_path}"]
    found, said = refused(monkeypatch, capsys, *arguments)
    assert (found, said.count("\n")) == (status, 1)
    assert said.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_results_of_a_run_go_into_its_folder_and_others_beside(tmp_path):
    checkpoint = tmp_path / "runs/nano/checkpoints/ba224"
    checkpoint.mkdir(parents=True)
    (tmp_path / "runs/nano/recipe.yaml").write_text("")
    run = tmp_path / "runs/nano"
    assert results_folder(checkpoint) == run / "evaluations/ba224"
    assert results_folder(run / "export") == run / "evaluations/export"
    assert name_of(checkpoint) == "nano-ba224"
    assert results_folder(tmp_path / "bert").as_posix() == "evaluations/bert"
    assert results_folder(checkpoint, str(tmp_path)) == tmp_path / "nano-ba224"


def test_nothing_is_written_into_a_run_that_another_model_is_compared_with(tmp_path):
    """`--beside` another run, or another checkpoint of the same one."""
    for run in ("one", "two"):
        (tmp_path / run / "checkpoints").mkdir(parents=True)
        (tmp_path / run / "recipe.yaml").write_text("")
    one, two = (tmp_path / name for name in ("one", "two"))
    assert results_folder(two / "checkpoints/ba3", beside=one).as_posix() == "evaluations/two-ba3"
    assert results_folder(two, beside=tmp_path / "bert").as_posix() == "evaluations/two"
    assert results_folder(two, beside=two / "export") == two / "evaluations/two"
    assert results_folder(one / "checkpoints/ba3", beside=one) == one / "evaluations/ba3"


def test_two_models_of_one_name_are_refused(monkeypatch, capsys, tmp_path, evaluated):
    out, _ = evaluated
    other = tmp_path / "bert"
    other.mkdir()
    status, said = refused(monkeypatch, capsys, "evaluate", str(out / "bert"), "context", "--beside", str(other))
    assert (status, "another model has the same name, bert" in said) == (2, True)
    file = str(out / "bert/context/result.json")
    status, said = refused(monkeypatch, capsys, "compare", file, file)
    assert (status, "are both called bert; give only one" in said) == (2, True)


def test_another_theta_is_another_model_to_tables_and_folders(model_of, corpus, tmp_path, capsys):
    evaluate([str(model_of("modernbert"))], ["masked_lm"], [f"data={corpus}", f"out={tmp_path}", "rope_theta=10_000"])
    result = Result.read(tmp_path / "modernbert-theta-10000/masked_lm/result.json")
    assert result.model["name"] == "modernbert-theta-10000"
    assert result.model["rope_theta"] == 10_000


def test_a_measure_is_told_with_its_interval():
    assert str(Measure(5.5912, 5.4018, 5.7744)) == "5.591 [5.402, 5.774]"
    assert str(Measure(0.00123)) == "0.0012"


def test_all_are_the_suites_that_run_offline():
    assert [suite.name for suite in suites.find_suites(["all"])] == list(suites.ENCODERS)
    of_decoders = [name for name in suites.DECODERS if name != "question_answering"]  # its data have to be named
    assert [suite.name for suite in suites.find_suites(["all"], decoder=True)] == of_decoders


def test_an_override_is_for_the_suites_that_have_its_key_and_for_none_it_is_refused():
    given = ["data=mine", "max_pairs=7", "seed=3", "tasks=[BEIR]"]
    found = {suite.name: suite.config for suite in suites.find_suites(["all"], given)}
    assert {found[name].data for name in ("masked_lm", "context", "needle")} == {"mine"}
    assert (found["retrieval"].max_pairs, found["retrieval"].tasks, found["glue"].task) == (7, ["BEIR"], None)
    assert {found[name].seed for name in suites.ENCODERS if name != "glue"} == {3}
    with pytest.raises(ConfigurationError, match="unknown key 'seed'"):  # its seeds are the fine-tuning's
        suites.find_suites(["glue"], ["seed=3"])
    with pytest.raises(ConfigurationError, match="unknown key 'maxpairs'; did you mean 'max_pairs'"):
        suites.find_suites(["retrieval", "glue"], ["maxpairs=7"])
