"""A whole rehearsal by the real command, and the list that it ends with."""

import shutil

import pytest
from omegaconf import OmegaConf

from rotary_foundry import load_recipe
from rotary_foundry.data_prep.conversations.chat_template import ChatTemplate
from rotary_foundry.data_prep.readers import BadInput, SourceConfig, parts, read
from rotary_foundry.data_prep.readers.messages import from_text
from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.data_prep.tokenizer import CAUSAL_TOKENS
from rotary_foundry.reporting.transitions import print_transitions, transitions
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.runs.run_lock import LOCK
from rotary_foundry.training.rehearsal_stand_ins import TEMPLATE, _conversations, _forget_another, _small_corpus
from rotary_foundry.utils.errors import ConfigurationError, FoundryError
from tests.command import output_of
from tests.data_prep.small_corpus import write_jsonl

from .conftest import REPOSITORY, Tiny
from .runs import column


@pytest.fixture(scope="module")
def rehearsed(tiny):
    small = "model.num_hidden_layers=4"  # as a rehearsal has; a shallower model would be rehearsed by a wider one
    run = tiny.launch("rehearse=true", "init_from=runs/there-is-none-yet", small)
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout, tiny.folder / "runs/tiny-rehearsal"


def test_every_transition_happens_where_the_plan_has_it(rehearsed):
    said, folder = rehearsed
    listed = transitions(RunFolder(folder))
    found = {transition.what: transition for transition in listed}
    for what in (
        "rows 2 → 4",
        "rows 4 → 6",
        "end of the warm-up, learning rate 0.00256 → 0.005",
        "weight decay 1e-05 → 0.001",
        "stage pretrain → extend",
        "row length 64 → 256",
        "rope_theta 10,000 → 160,000",
        "mixture every row once → one 0.3, two 0.7",
        "rollback 1",
        "evaluation after decay",
        "checkpoints",
        "export for transformers",
    ):
        assert found[what].as_planned, found
    assert f"all {len(listed)} transitions went as planned" in said


def test_a_rehearsal_of_a_grown_model_grows_one(rehearsed):
    _, folder = rehearsed
    first, *_ = RunFolder(folder).records(RunFolder(folder).evaluations)
    assert first["batch"] == 0
    assert (folder / "grown_from/config.json").is_file()


def test_what_did_not_go_as_planned_is_named(rehearsed, tmp_path, capsys):
    _, folder = rehearsed
    other = RunFolder(tmp_path / "other")
    shutil.copytree(folder, other.path)
    lines = other.metrics.read_text().splitlines(keepends=True)
    other.metrics.write_text("".join(line.replace('"rope_theta": 160000.0', '"rope_theta": 10000.0') for line in lines))
    shutil.rmtree(other.checkpoints / "ba20")
    with pytest.raises(FoundryError, match=r"2 of \d+ did not go as planned: rope_theta 10,000 → 160,000; checkpoints"):
        print_transitions(other)
    assert "nowhere" in capsys.readouterr().out


def test_a_rehearsal_takes_the_place_of_another_but_never_of_a_run(tmp_path):
    recipe = load_recipe("yamls/main/nano.yaml", ["rehearse=true"])
    folder = RunFolder(tmp_path / "nano-rehearsal")
    for rehearse, lr in ((True, 1e-3), (True, 2e-3), (False, 1e-3)):
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        there = load_recipe("yamls/main/nano.yaml", [f"rehearse={rehearse}", f"stages.pretrain.lr={lr}"])
        (folder.path / LOCK).touch()
        folder.recipe.write_text(OmegaConf.to_yaml(OmegaConf.structured(there)))
        if rehearse:
            _forget_another(recipe, folder)
            assert folder.checkpoints.exists() == folder.recipe.exists() == (there == recipe)
            assert (folder.path / LOCK).exists()  # this launch's
        else:
            with pytest.raises(ConfigurationError, match="a run that is not a rehearsal has the name"):
                _forget_another(recipe, folder)
            assert folder.checkpoints.exists()


@pytest.mark.long
def test_instruction_tuning_is_rehearsed_without_a_corpus_with_long_prompts(tmp_path):
    recipe = f"extends: [{REPOSITORY}/yamls/main/llama_nano_instruct.yaml]\nprecision: fp32\nprogress_bar: false\n"
    (tmp_path / "tiny.yaml").write_text(f"{recipe}runs_folder: {tmp_path}/runs\ndata: {{local: {tmp_path}/none}}\n")
    stage = ["row_length=1024", "long_share=null", "prompt_loss_weight={start: 1.0, end: 0.1}"]
    overrides = ["data.sources=[questions_from_1024]", *(f"stages.tune.{override}" for override in stage)]
    run = Tiny(tmp_path).launch("rehearse=true", *overrides, ranks=1)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "transitions went as planned" in run.stdout and "response accuracy" in run.stdout
    of_longest = Statistics.read(tmp_path / "none-rehearsal").conversations["questions_from_1024"].train.by_length
    examples, tokens, responses = of_longest["1024"]
    assert examples > 50 and responses < tokens / 4
    folder = tmp_path / "runs/llama_nano_instruct-rehearsal"
    assert "Unigram entropy of the held-out responses: " in " ".join(output_of("summary", folder).split())
    weights = column(folder, "prompt_loss_weight")
    assert len(weights) == 8 and weights[0] == 1 > weights[1] > weights[-1] > 0.1


@pytest.mark.parametrize(("overrides", "kind"), [([], None), (["objective.whole_words=true"], "pre_tokenizer")])
def test_stand_ins_have_word_starts_where_an_objective_needs_them(overrides, kind):
    assert _small_corpus(load_recipe("yamls/main/nano.yaml", overrides)).word_starts == kind


def test_stand_ins_for_conversations_are_documents_that_end_with_an_answer_and_their_template_renders_them(tmp_path):
    texts = ["one half, and the other", "</s> is a special token", "x", "a long one" * 500]
    write_jsonl(tmp_path / "texts.jsonl", texts)
    source = _conversations(SourceConfig("jsonl", str(tmp_path / "texts.jsonl")), tmp_path / "made/mine.jsonl")
    (part,) = parts(source)
    short, long = (from_text(document.text) for document in read(source, part, BadInput("mine", limit=0)))
    assert [message["content"] for message in short] == ["one half, an", "d the other"]
    assert [len(message["content"]) for message in long] == [4500, 500]
    rendered = ChatTemplate(TEMPLATE, CAUSAL_TOKENS, "test").render(short)
    assert [rendered.text[start:end] for start, end in rendered.turns] == ["d the other</s>"]
