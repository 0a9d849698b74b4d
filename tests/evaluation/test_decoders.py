"""The suites for decoders measure what they say, on tiny random models and on ones whose answers are known."""

import json
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.data_prep.inspection.held_out_texts import held_out
from rotary_foundry.evaluation import causal_models, recall
from rotary_foundry.evaluation.causal_models import CausalModel, open_causal_model
from rotary_foundry.evaluation.decoder_texts import PIECE, Filler
from rotary_foundry.evaluation.evaluate import evaluate, is_decoder
from rotary_foundry.evaluation.recall_tasks import Prompt, Tokens, make_prompt, rouge_l
from rotary_foundry.evaluation.results import Result
from rotary_foundry.evaluation.suites import find_suites
from rotary_foundry.finetuning.search import load_search
from rotary_foundry.interop import load_model
from rotary_foundry.interop.export import export_checkpoint
from rotary_foundry.models.config_json import family_of
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.evaluation.decoders import TRAINED_LENGTH, save_decoder
from tests.interop.runs import make_run

SENTENCES = "Snow lay on the hill. The lamp, an old one, was out! Who had seen it? Nobody knew.\n"
TEXT = "\n\n".join(f"Part {number} of the story begins here. {SENTENCES}" for number in range(60))
CONTEXT = ("longest=128", "shortest=32", "target_tokens=8", "windows=2")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


@pytest.fixture(scope="module")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "story.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def suite_of(name: str, data: Path, *overrides: str):
    (suite,) = find_suites([name], [f"data={data}", "resamples=20", *overrides])
    return suite


def measured(name: str, model: Path, data: Path, *overrides: str) -> Result:
    suite = suite_of(name, data, *overrides)
    return suite.run(model, suite.config)


def opened(path: Path, *overrides: str) -> CausalModel:
    return open_causal_model(path, suite_of("recall", Path("unused"), *overrides).config)


once = cache(opened)


@torch.no_grad()
def direct(path: Path, ids: np.ndarray) -> np.ndarray:
    """The loss of every token but the first, from all logits at once."""
    row = torch.from_numpy(ids)
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    return F.cross_entropy(model(row[None]).logits[0, :-1], row[1:], reduction="none").numpy()


@pytest.mark.parametrize("chunk", [1024, 50, 7])
@pytest.mark.parametrize("kind", ["decoder", "gpt2"])
def test_the_loss_of_a_row_is_the_one_of_all_logits_in_chunks_of_any_size(kind, chunk, request, monkeypatch):
    path = request.getfixturevalue(kind)
    model, ids = opened(path), np.random.default_rng(0).integers(3, 384, size=151)
    monkeypatch.setattr(causal_models, "CHUNK", chunk)
    loss = direct(path, ids)
    np.testing.assert_allclose(model.score(ids).loss, loss, rtol=1e-4, atol=1e-4)
    for last in (1, 60, 150):
        np.testing.assert_allclose(model.score(ids, last).loss, loss[-last:], rtol=1e-4, atol=1e-4)


def test_loss_by_position_and_by_context_are_those_of_a_direct_computation(decoder, corpus):
    result = measured("causal_context", decoder, corpus, *CONTEXT)
    model = opened(decoder)
    assert model.before.tolist() == [0]  # <s>
    windows = []
    for text in held_out(corpus, 10, 0, at_least=127):
        ids = model.encode(text.text).ids
        windows += [ids[:127], ids[len(ids) - 127 :]]
    rows = [np.concatenate([[0], ids]) for ids in windows]
    whole = np.stack([direct(decoder, row) for row in rows])
    found = {row.labels["tokens"]: row.measures for row in result.rows}
    for label, band in {"1 – 31": slice(31), "32 – 63": slice(31, 63), "64 – 127": slice(63, 127)}.items():
        assert found[label]["loss by position"].value == pytest.approx(whole[:, band].mean(), abs=1e-4)
    for length in (32, 64, 128):
        loss = np.mean([direct(decoder, np.concatenate([[0], ids[1 - length :]]))[-8:] for ids in windows])
        assert found[f"{length} given"]["loss given them"].value == pytest.approx(loss, abs=1e-4)
    assert result.data["windows"] == len(windows) == 8
    assert len(result.headlines[0].units) == 4  # documents


def test_loss_at_short_context_is_over_all_tokens_but_the_first(decoder, corpus):
    result = measured("causal_lm", decoder, corpus, "longest=100")
    model = opened(decoder)
    rows = [model.row(model.encode(text.text).ids)[:100] for text in held_out(corpus, 100, 0)]
    losses = np.concatenate([direct(decoder, row) for row in rows])
    every = result.rows[-1]
    assert every.labels == {"documents of": "all", "documents": 10, "targets": len(losses)}
    assert every.measures["loss"].value == pytest.approx(losses.mean(), abs=1e-4)
    sizes = sum(len(model.tokenizer.decode(row[1:])) for row in rows)  # characters, of which a few have several bytes
    assert 0.8 < losses.sum() / every.measures["loss per byte"].value / sizes < 1.5
    assert {row.labels["documents of"] for row in result.rows} >= {"short", "long"}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_run_its_checkpoint_its_export_and_a_download_have_the_same_numbers(decoder, corpus, tmp_path):
    shape, _ = family_of(decoder).huggingface.read_config(decoder)
    weights = load_model(decoder).state_dict()
    end = compile_plan(load_recipe("yamls/main/llama_nano.yaml")).total_tokens
    run = make_run(tmp_path / "run", shape, corpus, weights, name="llama_nano", token=end)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (run.tokenizer / name).write_bytes((decoder / name).read_bytes())
    (checkpoint,) = run.checkpoints.iterdir()
    export_checkpoint(run.path, run.path / "export")
    for suite, overrides in (
        ("causal_lm", ["longest=100"]),
        ("recall", ["tasks=[passkey]", "lengths=[300]", "depths=[50]", "prompts=1"]),
    ):
        first, *others = (
            measured(suite, path, corpus, *overrides) for path in (run.path, checkpoint, run.path / "export", decoder)
        )
        for other in others:
            assert (other.rows, other.asked) == (first.rows, first.asked)
            assert other.model["parameters"] == shape.parameters


def tokens_of(model: CausalModel) -> Tokens:
    return Tokens(model.encode, model.before)


def parts(prompt: Prompt, model: CausalModel) -> str:
    assert prompt.ids[: len(model.before)].tolist() == model.before.tolist()
    return model.tokenizer.decode(prompt.ids[len(model.before) :])


@settings(max_examples=40, deadline=None)
@given(
    task=st.sampled_from(recall.TASKS),
    length=st.integers(700, 1500),
    depth=st.integers(0, 100),
    number=st.integers(0, 5),
    seed=st.integers(0, 3),
)
def test_a_prompt_and_its_answer_fill_their_length_and_hold_every_needle(decoder, task, length, depth, number, seed):
    model = once(decoder)
    depth = depth if task in recall.WITH_DEPTHS else None
    filler = Filler.of(model.encode, [TEXT])
    prompt = make_prompt(task, length, depth, number, seed, tokens_of(model), filler)
    again = make_prompt(task, length, depth, number, seed, tokens_of(model), filler)
    assert np.array_equal(prompt.ids, again.ids) and prompt.answers == again.answers
    assert length - 130 < len(prompt.ids) + prompt.room <= length
    text = parts(prompt, model)
    assert answer(task, text) == (", ".join(prompt.answers))
    assert prompt.score(answer(task, text)) == 1.0
    if depth is not None:
        body, needle = {
            "passkey": (r"Remember it\.\n\n(.*)\n\nQuestion", r"The pass key is .* is the pass key\. ?"),
            "needle": (r"Remember it\.\n\n(.*)\n\nQuestion", r"The code of .* is \d+\. ?"),
            "key_value": (r"\{\n(.*)\n.*\n\}\n", rf'"[^"]*": "{prompt.answers[0]}",\n'),  # the last pair is fixed
        }[task]
        (body,) = re.findall(body, text, re.DOTALL)
        before, after = re.split(needle, body + "\n")
        before, after = (len(model.encode(part).ids) for part in (before, after))
        assert abs(before - depth / 100 * (before + after)) < 50  # tokens: half of the longest piece, a pair


def answer(task: str, text: str) -> str:
    """Read the answer out of a prompt."""
    if task == "passkey":
        return re.search(r"The pass key is (\d+)\. Remember it: \1 is the pass key\.", text)[1]
    if task == "needle":
        name = re.search(r"What is the code of the (.*)\?", text)[1]
        return re.search(rf"The code of the {name} is (\d+)\.", text)[1]
    if task == "key_value":
        pairs = json.loads(re.search(r"\{.*\}", text, re.DOTALL)[0])
        return pairs[re.search(r'Answer: "(.*)":', text)[1]]
    if task == "first_sentence":
        return PIECE.match(text)[0].strip()
    value = re.search(r"have the value (\d+)\?", text)[1]
    values: dict[str, str] = {}
    for name, given_ in re.findall(r"VAR (\w+) = (\w+)\.", text):
        values[name] = values.get(given_, given_)
    assert len(values) == 10
    return ", ".join(name for name, of in values.items() if of == value)


def recalled(decoder: Path, text_file: Path, generate, monkeypatch) -> Result:
    monkeypatch.setattr(CausalModel, "generate", generate)
    return measured("recall", decoder, text_file, "lengths=[800,1000]", "depths=[0,50,100]", "prompts=1")


def test_a_model_that_copies_finds_everything(decoder, text_file, monkeypatch):
    def copy(model, ids, tokens):
        text = model.tokenizer.decode(ids[len(model.before) :])
        asked = {
            "pass key?": "passkey",
            "code of": "needle",
            "value of the key": "key_value",
            "first s": "first_sentence",
        }
        question = text[text.rindex("Question") :]
        said = answer(next((task for part, task in asked.items() if part in question), "variables"), text)
        assert len(model.encode(f" {said}").ids) <= tokens  # there is room for it
        return f" {said}"

    result = recalled(decoder, text_file, copy, monkeypatch)
    assert all(measure.value == 1.0 for row in result.rows for measure in row.measures.values())
    assert [headline.name for headline in result.headlines] == list(recall.TASKS)


def test_a_model_that_is_wrong_finds_nothing_and_numbers_within_numbers_do_not_count(decoder, text_file, monkeypatch):
    result = recalled(decoder, text_file, lambda model, ids, tokens: " zebra", monkeypatch)
    assert all(measure.value == 0.0 for row in result.rows for measure in row.measures.values())
    assert [(row.labels["task"], row.labels["tokens"], row.labels["prompts"]) for row in result.rows] == [
        (task, length, 3) for task in recall.TASKS for length in (800, 1000)
    ]
    prompt = Prompt("passkey", 100, 0, 0, np.zeros(1, np.int64), 9, ("12345",))
    assert [prompt.score(said) for said in (" 12345.", "312345", "123456", "It is 12345")] == [1, 0, 0, 1]
    assert replace(prompt, answers=("AB", "CD")).score(" AB, EF") == 0.5


def test_a_continuation_is_the_likeliest_token_by_token(decoder):
    model, ids = opened(decoder), np.random.default_rng(1).integers(3, 384, size=40)
    with torch.no_grad():
        row = torch.from_numpy(ids)
        for _ in range(6):
            row = torch.cat([row, model.model(row[None]).logits[0, -1:].argmax(dim=1)])
    assert model.generate(ids, 6) == model.tokenizer.decode(row[40:], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("The cat sat.", "the cat SAT", 1.0),
        ("the cat sat on the mat", "the cat lay on a mat", 2 * 4 / 12),
        ("mat the on", "on the mat", 2 / 6),
        ("", "on the mat", 0.0),
        ("dog", "on the mat", 0.0),
    ],
)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence_of_words(answer, reference, score):
    assert rouge_l(answer, reference) == pytest.approx(score)


@given(text=st.text(alphabet=st.sampled_from("ab .!?\n。漢\t"), max_size=400))
def test_pieces_add_up_to_the_text(text):
    text = text.strip()
    assert "".join(PIECE.findall(text)) == text
    assert all(len(piece.strip()) <= 242 for piece in PIECE.findall(text))


POSITIONS = {
    "none": ((), None, {"rope_type": "default", "rope_theta": 10_000.0}),
    "theta": (("rope_theta=500000",), "theta-500000", {"rope_type": "default", "rope_theta": 500_000.0}),
    "linear": (
        ("rope_scaling=linear", "rope_factor=4"),
        "linear-4",
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
    ),
    "ntk": (
        ("rope_scaling=ntk", "rope_factor=4"),
        "ntk-4",
        {"rope_type": "default", "rope_theta": 10_000.0 * 4 ** (16 / 14)},
    ),
    "yarn": (
        ("rope_scaling=yarn", "rope_factor=4", "rope_theta=20000"),
        "yarn-4-theta-20000",
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": TRAINED_LENGTH,
            "rope_theta": 20_000.0,
        },
    ),
}


@pytest.mark.parametrize("method", POSITIONS)
def test_positions_can_be_others_than_in_training(decoder, method):
    overrides, variant, rope = POSITIONS[method]
    model = opened(decoder, *overrides)
    assert model.facts.get("variant") == variant
    ids = np.random.default_rng(0).integers(3, 384, size=2 * TRAINED_LENGTH)
    own = LlamaForCausalLM.from_pretrained(decoder).eval()
    own.config.rope_parameters = rope
    theirs = LlamaForCausalLM(own.config).eval()
    theirs.load_state_dict(own.state_dict())
    with torch.no_grad():
        row = torch.from_numpy(ids)
        loss = F.cross_entropy(theirs(row[None]).logits[0, :-1], row[1:], reduction="none").numpy()
    np.testing.assert_allclose(model.score(ids).loss, loss, rtol=1e-4, atol=2e-4)
    assert (opened(decoder, "rope_scaling=none").facts.get("variant")) is None


def test_two_models_beyond_their_length_are_compared_and_drawn(decoder, text_file, tmp_path, capsys):
    given = [f"data={text_file}", "resamples=20", f"out={tmp_path}", "lengths=[600]", "depths=[0,100]", "prompts=1"]
    evaluate([str(decoder)], ["recall"], [*given, "rope_scaling=linear", "rope_factor=4"])
    evaluate([str(decoder)], ["all"], [*given, "longest=512", "shortest=64", "target_tokens=16"])
    said = capsys.readouterr().out
    assert said.count("beyond 256 tokens: longer than it was made for") == 3
    assert {path.name for path in (tmp_path / "llama").iterdir()} == {"causal_lm", "causal_context", "recall"}
    found = [Result.read(tmp_path / name / "recall/result.json") for name in ("llama", "llama-linear-4")]
    assert found[0].asked == found[1].asked and found[0].grid
    assert found[1].model["rope_factor"] == 4.0 and found[1].config["rope_scaling"] == "linear"
    with Image.open(tmp_path / "llama/recall/picture.png") as picture:
        assert "passkey" in picture.text["Description"]


@pytest.mark.parametrize(
    ("suite", "override", "said"),
    [
        ("recall", "tasks=[passkeys]", "'tasks': no task 'passkeys'; did you mean 'passkey'"),
        ("recall", "tasks=[]", r"'tasks': expected a list of different values, got \[\]"),
        ("recall", "lengths=[]", r"'lengths': expected a list of different values, got \[\]"),
        ("recall", "lengths=[0,512]", "'lengths': expected tokens of a prompt, at least 1, got 0"),
        ("recall", "depths=[0,120]", "'depths': expected percents from 0 to 100, got 120"),
        ("recall", "depths=[5,5]", r"'depths': expected a list of different values, got \[5, 5\]"),
        ("recall", "prompts=0", "'prompts': expected an integer of at least 1, got 0"),
        ("recall", "rope_theta=0", "'rope_theta': expected a number above 0, got 0"),
        ("recall", "rope_scaling=yarn", "'rope_factor': null, but rope_scaling is yarn"),
        ("causal_lm", "longest=0", "'longest': expected an integer of at least 1, got 0"),
        ("causal_context", "target_tokens=100", "'target_tokens': 100 is more than half of the shortest context, 64"),
        ("causal_context", "longest=256", "'longest': 256 is less than four times the shortest, 128"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_file_and_key(suite, override, said):
    with pytest.raises(ConfigurationError, match=rf"^yamls/eval/{suite}\.yaml: {said}"):
        find_suites([suite], [override])


@pytest.mark.parametrize(
    ("suite", "overrides", "said"),
    [
        ("recall", ["lengths=[60]"], r"lengths: passkey at 60 tokens leaves no room for text: the question and its"),
        ("recall", ["lengths=[90000]", "tasks=[needle]"], r"data: needle at 90,000 tokens needs [\d,]+ tokens of text"),
        ("recall", ["rope_scaling=dynamic", "rope_factor=2"], "rope_scaling: 'dynamic' is not known"),
        ("recall", ["rope_factor=2"], "rope_factor: 2.0 has no effect with rope_scaling 'none'"),
        ("recall", ["rope_factor=0.5", "rope_scaling=ntk"], "rope_factor: 0.5 is not a finite number of at least 1"),
        ("causal_context", ["longest=100000"], "no held-out document has 100,000 tokens of this tokenizer"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_its_key(decoder, text_file, suite, overrides, said):
    with pytest.raises((ConfigurationError, DataError), match=said):
        measured(suite, decoder, text_file, *overrides)


def test_a_table_of_positions_is_a_limit_and_its_positions_cannot_be_changed(gpt2, text_file):
    for suite, override in (
        ("recall", "lengths=[300]"),
        ("causal_lm", "longest=300"),
        ("causal_context", "longest=300"),
    ):
        shortest = ("shortest=64", "target_tokens=8") if suite == "causal_context" else ()
        with pytest.raises(ConfigurationError, match=r"(lengths|longest): 300 tokens, .* has a table of 256 positions"):
            measured(suite, gpt2, text_file, override, *shortest)
    with pytest.raises(ConfigurationError, match=r"rope_theta: cannot be changed for .*gpt2, which is not a model of"):
        measured("causal_lm", gpt2, text_file, "rope_theta=20000")


def test_a_llama_with_positions_that_our_network_does_not_have_is_measured_as_it_is(decoder, text_file, tmp_path):
    path = shutil.copytree(decoder, tmp_path / "llama3")
    config = json.loads((path / "config.json").read_text())
    config["rope_parameters"] |= {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    (path / "config.json").write_text(json.dumps(config))
    evaluate([str(path)], ["causal_lm"], [f"data={text_file}", f"out={tmp_path / 'out'}", "longest=64"])
    with pytest.raises(DataError, match=r"rope_type: expected default, linear or yarn, got 'llama3'"):
        measured("causal_lm", path, text_file, "rope_scaling=linear", "rope_factor=2")


def test_data_that_is_no_text_is_refused_before_anything_is_measured(decoder, tmp_path):
    for name, content, said in (
        ("a.txt", b"\xff\xfe", "cannot be read as text in UTF-8"),
        ("b.txt", b" \n", "is empty"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=said):
            evaluate([str(decoder)], ["causal_lm"], [f"data={tmp_path / name}", f"out={tmp_path / 'out'}"])
    with pytest.raises(DataError, match=r"none: no such folder; `python data_prep` writes one"):
        evaluate([str(decoder)], ["recall"], [f"data={tmp_path / 'none'}", f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_a_suite_for_the_other_kind_of_model_is_refused_with_those_that_serve_it(decoder, gpt2, model_of):
    for path in (decoder, gpt2):
        with pytest.raises(
            ConfigurationError, match=r": a decoder, which the suite needle does not serve; use causal_lm, "
        ):
            evaluate([str(path)], ["causal_lm", "needle"])
    for family in ("bert", "modernbert"):
        with pytest.raises(
            ConfigurationError, match=r": an encoder, which the suite recall does not serve; use masked_lm, "
        ):
            evaluate([str(model_of(family))], ["recall"])
    with pytest.raises(ConfigurationError, match=r"llama: a decoder, which the suite masked_lm does not serve"):
        evaluate([str(model_of("bert")), str(decoder)], ["all"])


def test_what_a_directory_does_not_say_is_not_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    assert is_decoder(tmp_path) is None
    (tmp_path / "modules.json").write_text("[]")
    assert is_decoder(tmp_path) is False


def test_fine_tuning_a_decoder_is_refused_by_its_key(decoder):
    with pytest.raises(
        ConfigurationError, match=r"'model': .*llama is a Llama, a decoder; fine-tuning serves encoders"
    ):
        load_search("yamls/finetune/installation.yaml", [f"model={decoder}"])


def test_weights_that_are_no_numbers_and_a_headless_model_are_named(decoder, gpt2, model_of, text_file, tmp_path):
    broken = save_decoder(tmp_path / "broken", bias=float("nan"))
    with pytest.raises(DataError, match="the loss is not a number, so nothing can be measured"):
        measured("causal_lm", broken, text_file)
    with pytest.raises(DataError, match="transformers cannot load a causal language model from it"):
        measured("causal_lm", model_of("deberta"), text_file)
