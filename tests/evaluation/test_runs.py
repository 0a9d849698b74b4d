"""A run of ours and a checkpoint of it are evaluated as they lie there, and as what export makes of them."""

import json
import shutil

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

from rotary_foundry.evaluation import glue
from rotary_foundry.evaluation import retrieval_suite as retrieval
from rotary_foundry.evaluation.evaluate import evaluate
from rotary_foundry.evaluation.results import Result
from rotary_foundry.evaluation.suites import FOLDER, find_suites
from rotary_foundry.interop.export import export_checkpoint
from tests.command import rotary_foundry
from tests.interop.runs import make_run
from tests.models.peers import our_network

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
MASKED_LM = (FOLDER / "masked_lm.yaml").absolute()
THETA = 160_000.0  # of the stage at whose end the checkpoint is


@pytest.fixture(scope="module")
def network():
    return our_network(vocab_size=384)


@pytest.fixture
def run(network, corpus, tmp_path):
    return make_run(tmp_path / "run", network.shape, corpus, network.state_dict())


@pytest.fixture
def checkpoint(run):
    (folder,) = run.checkpoints.iterdir()
    return folder


def test_a_run_its_checkpoint_and_its_export_have_the_same_loss(run, checkpoint, corpus, tmp_path):
    export_checkpoint(run.path, run.path / "export")
    models = [str(run.path), str(checkpoint), str(run.path / "export")]
    results = evaluate(models, ["masked_lm"], [f"data={corpus}", "resamples=50", f"out={tmp_path / 'out'}"])
    assert [result.model["name"] for result in results] == ["run", f"run-{checkpoint.name}", "run-export"]
    for result in results:
        assert (result.model["rope_theta"], result.model["tokenizer"]) == (THETA, results[-1].model["tokenizer"])
        assert [str(row) for row in result.rows] == [str(row) for row in results[-1].rows]


def test_the_results_of_a_checkpoint_lie_in_its_run(run, checkpoint, corpus):
    evaluate([str(checkpoint)], ["masked_lm"], [f"data={corpus}", "resamples=50"])
    written = Result.read(run.path / "evaluations" / checkpoint.name / "masked_lm/result.json")
    assert written.model["name"] == f"run-{checkpoint.name}"


def test_a_checkpoint_is_fine_tuned_as_its_export(network, run, checkpoint, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "rotary_foundry.finetuning.search.finetune",
        lambda _, overrides: asked.update(override.split("=", 1) for override in overrides) or [],
    )
    (suite,) = find_suites(["glue"])
    suite.check(checkpoint, suite.config)
    folder = run.path / "evaluations" / checkpoint.name / "glue"
    assert not folder.exists()
    glue.run(checkpoint, suite.config)
    assert asked == {"model": str(folder / "model"), "out": str(folder / "finetune")}
    exported = load_file(folder / "model/model.safetensors")
    name = "model.embeddings.tok_embeddings.weight"
    assert exported[name].equal(network.state_dict()[name])


@pytest.mark.long
def test_a_run_retrieves_as_its_export(run, tmp_path):
    (suite,) = find_suites(["retrieval"], ["max_pairs=20", "resamples=50"])
    export_checkpoint(run.path, tmp_path / "export")
    ours, theirs = (retrieval.run(path, suite.config) for path in (run.path, tmp_path / "export"))
    assert ours.headlines == theirs.headlines
    assert len(ours.headlines[0].units) == 20


@pytest.fixture
def elsewhere(run, corpus, tmp_path, monkeypatch):
    """Another folder than the one where the run was started, to which the path of its data is relative."""
    recipe = OmegaConf.load(run.recipe)
    recipe.data.local = "corpus"
    OmegaConf.save(recipe, run.recipe)
    environment = {"working_directory": str(tmp_path), "python": "3.11.7", "packages": {}, "ranks": 1}
    run.environment.write_text(json.dumps(environment))
    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    return tmp_path


def test_a_run_is_evaluated_from_any_folder_on_the_data_that_its_recipe_names(run, checkpoint, elsewhere):
    export_checkpoint(run.path, run.export)
    for model in (run.path, checkpoint, run.export):
        (result,) = evaluate([str(model)], ["masked_lm"], ["resamples=5"])
        assert result.config["data"] == result.data["folder"] == str(elsewhere / "corpus")
    (result,) = evaluate([str(run.path)], ["masked_lm"], ["resamples=5", "data=../corpus"])
    assert result.config["data"] == "../corpus"


def test_data_of_a_suite_s_own_yaml_are_not_replaced_by_the_runs(run, elsewhere):
    shutil.move(elsewhere / "corpus", elsewhere / "moved")
    yaml = f"extends: [{MASKED_LM}]\ndata: {elsewhere / 'moved'}\nresamples: 5\n"
    (elsewhere / "own.yaml").write_text(yaml)
    (result,) = evaluate([str(run.path)], [str(elsewhere / "own.yaml")])
    assert result.config["data"] == str(elsewhere / "moved")


def test_a_suite_that_cannot_be_measured_is_named_and_the_others_are_measured(run, elsewhere):
    out = elsewhere / "out"
    done = rotary_foundry("evaluate", run.path, "needle,masked_lm", "resamples=5", f"out={out}", "at_least=999_999")
    assert done.returncode == 2
    named = f"needle on {run.path}: not measured: {elsewhere}/corpus: no held-out document of at least 999,999 tokens"
    assert done.stderr.startswith(f"error: {named}")
    assert done.stderr.endswith("; the other results are written\n")
    assert named in done.stdout
    assert [path.parent.name for path in out.rglob("result.json")] == ["masked_lm"]


def test_if_the_runs_data_are_gone_the_suites_that_need_them_are_named_and_the_others_measured(run, elsewhere):
    shutil.move(elsewhere / "corpus", elsewhere / "moved")
    gone = f"{elsewhere}/corpus: no such folder; `python data_prep` writes one"
    given, out = ["masked_lm,needle", "resamples=5", f"out={elsewhere / 'out'}"], elsewhere / "out"
    done = rotary_foundry("evaluate", run.path, *given)
    assert (done.returncode, out.exists()) == (2, False)
    assert done.stderr.startswith(f"error: {gone}")
    yaml = f"extends: [{MASKED_LM}]\ndata: {elsewhere / 'moved'}\n"
    (elsewhere / "own.yaml").write_text(yaml)
    done = rotary_foundry("evaluate", run.path, f"needle,{elsewhere / 'own.yaml'}", *given[1:])
    assert (done.returncode, [path.parent.name for path in out.rglob("result.json")]) == (2, ["masked_lm"])
    assert done.stderr.startswith(f"error: needle on {run.path}: not measured: {gone}")
    assert not (out / "run/needle").exists()
