"""A run of ours and a checkpoint of it are evaluated as they lie there, and as what export makes of them."""

import pytest
from safetensors.torch import load_file

from rotary_foundry.evaluation import glue
from rotary_foundry.evaluation import retrieval_suite as retrieval
from rotary_foundry.evaluation.evaluate import evaluate
from rotary_foundry.evaluation.results import Result
from rotary_foundry.evaluation.suites import find_suites
from rotary_foundry.interop.export import export_checkpoint
from tests.interop.runs import make_run
from tests.models.peers import our_network

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
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
