"""Prompts of the suite are the paper's and are cut as they should be; its scores are those of what a model answers."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rotary_foundry.data.special_tokens import rewrite_config
from rotary_foundry.data_prep.conversations.chat_template import ChatTemplate
from rotary_foundry.data_prep.conversations.response_tokens import ConversationEncoder
from rotary_foundry.evaluation import bootstrap, question_answering
from rotary_foundry.evaluation.answer_metrics import ROUGE, geometric
from rotary_foundry.evaluation.causal_models import CausalModel, open_causal_model
from rotary_foundry.evaluation.evaluate import evaluate
from rotary_foundry.evaluation.results import Result
from rotary_foundry.evaluation.suites import find_suites
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.evaluation.decoders import save_decoder
from tests.evaluation.test_question_files import ARTICLE, MEETING, jsonl

TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' + message['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
STORY = " ".join(f"the token attends window {number} and document" for number in range(60))
LINES = [{"context": f"{STORY} {n}", "question": f"which window {n}?", "answers": [f"window {n}"]} for n in range(12)]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def chatter(decoder) -> Path:
    path = shutil.copytree(decoder, decoder.parent / "chatter")
    rewrite_config(path, chat_template=TEMPLATE)
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    return jsonl(tmp_path_factory.mktemp("questions") / "own.jsonl", *LINES)


def suite_of(data: Path, *overrides: str):
    (suite,) = find_suites(["question_answering"], [f"data={data}", "dataset=examples", "resamples=50", *overrides])
    return suite


def prompts(model: Path, data: Path, *overrides: str) -> list[str]:
    """Return the decoded prompts, special tokens included."""
    config = suite_of(data, *overrides).config
    opened = open_causal_model(model, config)
    asked = [
        question_answering._ask(opened, example, shots, bool(opened.tokenizer.chat_template), config)
        for example, shots in question_answering._with_shots(config)
    ]
    return [opened.tokenizer.decode(one.ids) for one in asked]


def test_prompts_are_the_papers_with_answered_examples_of_other_documents(decoder, questions, tmp_path):
    short = jsonl(tmp_path / "short.jsonl", *({**line, "context": f"story {n}"} for n, line in enumerate(LINES)))
    plain = prompts(decoder, short, "shots=0")
    assert plain[3] == "<s>story 3\n\nQ: which window 3?\nA:"
    few = prompts(decoder, short, "shots=2")
    assert few == prompts(decoder, short, "shots=2")
    for number, prompt in enumerate(few):
        first, second, asked = prompt.removeprefix("<s>").split("\n\nstory ")
        others = {int(first.split()[1]), int(second.split()[0])}
        assert f"story {asked}" == plain[number].removeprefix("<s>")
        assert number not in others and len(others) == 2
        for other in others:
            assert f"Q: which window {other}?\nA: window {other}" in prompt
    assert prompts(decoder, short, "shots=0", "examples=5") == [plain[n] for n in sorted(_drawn(12, 5))]


def _drawn(count: int, examples: int) -> list[int]:
    return np.random.default_rng(0).choice(count, examples, replace=False).tolist()


def test_a_long_prompt_loses_tokens_from_the_left_and_leaves_room_for_the_answer(decoder, chatter, questions):
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    limits = "longest=100", "answer_tokens=20", "examples=1", "shots=0"
    config = suite_of(questions, *limits).config
    ((example, _),) = question_answering._with_shots(config)
    plain = question_answering._ask(open_causal_model(decoder, config), example, [], False, config)
    whole = tokenizer(f"{example.context}\n\nQ: {example.question}\nA:")["input_ids"]
    assert plain.ids.tolist() == [0, *whole[len(whole) - 79 :]] and plain.cut == len(whole) - 80

    chat = question_answering._ask(open_causal_model(chatter, config), example, [], True, config)
    text = tokenizer.decode(chat.ids)
    assert 76 <= len(chat.ids) <= 80 and chat.cut > plain.cut
    assert text.startswith("<s>user\n") and text.endswith(f"\n\nQ: {example.question}\nA:</s>\n<s>assistant\n")
    message = text.removeprefix("<s>user\n").removesuffix("</s>\n<s>assistant\n")
    assert f"{example.context}\n\nQ: {example.question}\nA:".endswith(message)
    messages = [{"role": "user", "content": message}]
    theirs = AutoTokenizer.from_pretrained(chatter).apply_chat_template(messages, add_generation_prompt=True)
    assert chat.ids.tolist() == theirs["input_ids"]


def test_without_a_text_a_chats_message_is_the_question(decoder, chatter, tmp_path):
    chat = [{"role": "user", "content": "which window?"}, {"role": "assistant", "content": "this"}]
    path = jsonl(tmp_path / "chats.jsonl", {"messages": chat})
    assert prompts(chatter, path) == ["<s>user\nwhich window?</s>\n<s>assistant\n"]
    assert prompts(decoder, path) == ["<s>Q: which window?\nA:"]


def test_special_tokens_that_a_message_or_an_answer_spells_stay_text(chatter):
    opened = open_causal_model(chatter, suite_of(Path("unread")).config)
    message, answer = "the <s>window</s>", "window </s> 1"
    ids = opened.chat(message)
    assert [ids.tolist().count(special) for special in (0, 1)] == [2, 1]  # the template's
    answered, targets = opened.answered(message, answer)
    assert answered[:-targets].tolist() == ids.tolist() and answered.tolist().count(1) == 2 and answered[-1] == 1
    assert answered[-targets:-1].tolist() == opened.encode(answer).ids.tolist()


def test_the_right_answer_is_scored_after_the_same_prompt_at_the_tokens_that_training_predicts(
    decoder, chatter, questions
):
    config = suite_of(questions, "shots=0", "longest=300").config
    *_, (example, _) = question_answering._with_shots(config)
    plain = question_answering._ask(open_causal_model(decoder, config), example, [], False, config)
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    assert tokenizer.decode(plain.answered[-plain.targets :]) == " window 11"
    assert plain.answered[: -plain.targets].tolist() == plain.ids.tolist()

    chat = question_answering._ask(open_causal_model(chatter, config), example, [], True, config)
    assert chat.cut and chat.answered[: -chat.targets].tolist() == chat.ids.tolist()
    message = tokenizer.decode(chat.ids).removeprefix("<s>user\n").removesuffix("</s>\n<s>assistant\n")
    turns = [{"role": "user", "content": message}, {"role": "assistant", "content": "window 11"}]
    trained = ConversationEncoder(chatter, ChatTemplate(TEMPLATE, {}, "template"))(turns)
    assert chat.answered[-chat.targets :].tolist() == trained.tokens[trained.responses == 1].tolist()

    short = suite_of(questions, "shots=0", "longest=300", "answer_tokens=2").config
    cut = question_answering._ask(open_causal_model(chatter, short), example, [], True, short)
    assert cut.targets == 2 and cut.answered[-2:].tolist() == chat.answered[-chat.targets :][:2].tolist()


def test_scores_intervals_and_answers_are_those_of_what_is_generated(decoder, questions, tmp_path, monkeypatch, capsys):
    said = iter([" window 0\nQ: more", "window", *["\n document \n\nwindow"] * 10])
    asked = []
    monkeypatch.setattr(CausalModel, "generate", lambda _, ids, room: asked.append((len(ids), room)) or next(said))
    evaluate([str(decoder)], ["question_answering"], [*_given(questions), f"out={tmp_path}", "longest=300"])
    result = Result.read(tmp_path / "llama/question_answering/result.json")
    answers = result.facts["answers"]
    assert [one["answer"] for one in answers.values()] == ["window 0", "window", *["document"] * 10]
    assert answers["2"]["right"] == ["window 1"] and answers["2"]["f1"] == pytest.approx(2 / 3)
    assert asked == [(172, 128)] * 12 and answers["1"]["prompt_tokens"] == 172
    headline, loss, accuracy = result.headlines
    assert headline.name == "f1" and headline.measure.value == pytest.approx((1 + 2 / 3) / 12)
    assert headline.measure == bootstrap.ratio(headline.units, 50, 0, (0.0, 1.0))
    (row,) = result.rows
    assert row.labels == {"dataset": "examples", "examples": 12}
    assert row.measures["exact_match"].value == pytest.approx(1 / 12)
    expected = _right_answers(decoder, questions)
    assert (loss.name, loss.lower_is_better) == ("answer_loss", True)
    assert loss.measure.value == pytest.approx(expected[0].mean(), rel=1e-5)
    assert accuracy.measure.value == pytest.approx(expected[1].mean()) and row.measures["answer_loss"] == loss.measure
    assert sum(tokens for _, tokens in loss.units.values()) == len(expected[0])
    assert "prompts cut from the left: 12" in capsys.readouterr().out
    assert (tmp_path / "llama/question_answering/picture.png").is_file()


def _right_answers(decoder: Path, questions: Path) -> tuple[np.ndarray, np.ndarray]:
    """The loss at each token of all right answers, and whether it is the likeliest, by transformers without a cache."""
    config = suite_of(questions, "longest=300").config
    opened, model = open_causal_model(decoder, config), AutoModelForCausalLM.from_pretrained(decoder)
    losses, found = [], []
    for example, shots in question_answering._with_shots(config):
        one = question_answering._ask(opened, example, shots, False, config)
        with torch.no_grad():
            logits = model(torch.from_numpy(one.answered)[None]).logits[0]
        targets = torch.from_numpy(one.answered[-one.targets :])
        logits = logits[-one.targets - 1 : -1]
        losses += torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
        found += (logits.argmax(1) == targets).tolist()
    return np.array(losses), np.array(found)


def _given(data: Path) -> list[str]:
    return [f"data={data}", "dataset=examples", "resamples=50"]


def test_the_geometric_mean_of_rouge_is_that_of_the_means(decoder, tmp_path, monkeypatch):
    said = iter(["They met.", "They said Hello.\n\nQ: and", "They met\nand ate.", "Nothing"])
    monkeypatch.setattr(CausalModel, "generate", lambda _, ids, room: next(said))
    suite = suite_of(jsonl(tmp_path / "val.jsonl", MEETING, MEETING), "dataset=qmsum")
    assert (suite.config.measured, suite.config.room) == ("rouge_geo", 512)
    result = suite.run(decoder, suite.config)
    answers = result.facts["answers"]
    assert [one["answer"] for one in answers.values()] == [
        "They met.",
        "They said Hello.",
        "They met\nand ate.",
        "Nothing",
    ]
    means = np.mean([[one[name] for name in ROUGE] for one in answers.values()], axis=0)
    geo, *others, _, _ = result.headlines
    assert geo.name == "rouge_geo" and geo.measure.value == pytest.approx(float(geometric(means)))
    assert geo.measure.low < geo.measure.value < geo.measure.high
    assert [one.name for one in others] == list(ROUGE) and not geo.units


def test_a_model_answers_in_a_chat_and_without_one(chatter, questions):
    for chat, how in (("null", "in the tokenizer's chat template"), ("false", "without a chat template")):
        suite = suite_of(questions, "examples=2", "answer_tokens=4", "longest=200", f"chat={chat}")
        result = suite.run(chatter, suite.config)
        assert how in result.notes[0] and len(result.facts["answers"]) == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["dataset=squad"], r"'dataset': 'squad' is not known; known here are narrativeqa, "),
        (["metric=rouge"], r"'metric': 'rouge' is not known; did you mean 'rouge_"),
        (["dataset=longbench", "data=data/trec.jsonl"], r"'metric': null, but the published metric of 'trec' in longb"),
        (["dataset=zeroscrolls", "data=book_sum_sort/validation.jsonl"], r"'metric': null, but .* 'book_sum_sort'"),
        (["longest=128"], r"'longest': 128 tokens leave no room for a question beside 128 of an answer"),
        (["shots=-1"], r"'shots': expected an integer of at least 0, got -1"),
        (["examples=0"], r"'examples': expected an integer of at least 1, got 0"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_key(overrides, said):
    with pytest.raises(ConfigurationError, match=rf"question_answering\.yaml: {said}"):
        suite_of(Path("own.jsonl"), *overrides)
    with pytest.raises(ConfigurationError, match=r"question_answering\.yaml: 'data(set)?' is required and not given"):
        find_suites(["question_answering"])


def test_what_cannot_be_asked_is_refused_before_and_while_asking(decoder, chatter, questions, tmp_path):
    def asked(model: Path, data: Path, *overrides: str):
        return evaluate([str(model)], ["question_answering"], [*_given(data), f"out={tmp_path}", *overrides])

    one = jsonl(tmp_path / "one.jsonl", ARTICLE)
    with pytest.raises(ConfigurationError, match=r"shots: 2, but .*one\.jsonl has 0 examples of other documents than"):
        asked(decoder, one, "dataset=quality")
    with pytest.raises(ConfigurationError, match=r"longest: 25 tokens leave no room for the question of '1' beside 20"):
        asked(decoder, questions, "longest=25", "answer_tokens=20")
    with pytest.raises(ConfigurationError, match=r"chat: true, but the tokenizer of .*llama has no chat template"):
        asked(decoder, questions, "chat=true")
    raising = shutil.copytree(chatter, tmp_path / "raising")
    rewrite_config(raising, chat_template="{{ raise_exception('tools, please') }}")
    with pytest.raises(DataError, match=r"raising: the chat template raises: tools, please; give chat=false"):
        asked(raising, questions)
