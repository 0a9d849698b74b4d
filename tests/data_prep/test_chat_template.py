"""The tokens that the assistant says, under every chat template that was tried."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from rotary_foundry.data_prep.conversations.chat_template import ChatTemplate, open_template
from rotary_foundry.data_prep.conversations.response_tokens import ConversationEncoder
from rotary_foundry.data_prep.readers.messages import Unusable, read_conversation
from rotary_foundry.utils.errors import DataError

TEMPLATES = Path(__file__).parent / "chat_templates"
ROLES = {"bos_token": "<s>", "eos_token": "</s>"}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SYSTEM = {"role": "system", "content": " Answer in few words. "}
CONVERSATION = [
    {"role": "user", "content": "  What is the capital of France?\n"},
    {"role": "assistant", "content": " Paris, naïvely 🙂.\n\n"},
    {"role": "user", "content": "And assistant of Italy?"},
    {"role": "assistant", "content": "assistant"},  # the name of its role
]
SAID = {  # what counts of CONVERSATION, the end of each turn included
    "llama2": [" Paris, naïvely 🙂. </s>", " assistant </s>"],
    "chatml": [" Paris, naïvely 🙂.\n\n<|im_end|>", "assistant<|im_end|>"],
    "llama3": ["Paris, naïvely 🙂.<|eot_id|>", "assistant<|eot_id|>"],
    "smollm2": [" Paris, naïvely 🙂.\n\n<|im_end|>", "assistant<|im_end|>"],
}


def byte_level() -> Tokenizer:
    """As Llama 3's: lines' ends are words; a post-processor leaves blanks out of offsets and adds a token."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r"\s*\n+| ?[^\s]+|\s+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([message["content"] for message in CONVERSATION] * 4, trainer)
    frame = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), frame])
    return tokenizer


def sentence_piece() -> Tokenizer:
    """As Llama 2's: a blank is a character, and one is put before a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", *(AddedToken(token, special=True, normalized=False) for token in SPECIAL)],
        show_progress=False,
    )
    texts = [message["content"] for message in CONVERSATION] + ["[INST] <<SYS>>\n<</SYS>>\n\n [/INST]", "user system"]
    tokenizer.train_from_iterator([*texts, SYSTEM["content"]] * 2, trainer)
    return tokenizer


@pytest.fixture(scope="module", params=[byte_level, sentence_piece])
def tokenizer_folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param.__name__)
    request.param().save(str(folder / "tokenizer.json"))
    return folder


def template(name: str) -> ChatTemplate:
    return open_template(None, TEMPLATES / f"{name}.jinja", ROLES)


def runs(responses: np.ndarray) -> list[tuple[int, int]]:
    """The first token and the end of each run of ones."""
    edges = np.diff(np.r_[0, responses, 0].astype(int))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


@pytest.mark.parametrize("system", [[], [SYSTEM]], ids=["no system", "system"])
@pytest.mark.parametrize("name", SAID)
def test_the_assistants_tokens_are_those_that_rendering_turn_by_turn_adds(name, system, tokenizer_folder):
    messages, chat = [*system, *CONVERSATION], template(name)
    encoder = ConversationEncoder(tokenizer_folder, chat)
    found = encoder(messages)
    plain = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))

    def ids(turns: list[dict], ask: bool = False) -> list[int]:
        return plain.encode(chat.text(turns, ask), add_special_tokens=False).ids

    assert found.tokens.tolist() == ids(messages)
    expected = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            asked, said = ids(messages[:number], ask=True), ids(messages[: number + 1])
            assert said[: len(asked)] == asked  # what the model is asked with is what stands before its answer
            while plain.id_to_token(said[-1]) not in SPECIAL:  # ChatML's newline, which no generation reaches
                said.pop()
            expected.append((len(asked), len(said)))
    assert runs(found.responses) == expected
    said = [plain.decode(found.tokens[start:end].tolist(), skip_special_tokens=False) for start, end in expected]
    if "▁" not in plain.get_vocab():
        assert said == SAID[name]


def test_generation_tags_are_used_and_a_template_without_a_header_to_ask_with_needs_none(tokenizer_folder):
    chatml = (TEMPLATES / "chatml.jinja").read_text()
    header = "{%- if add_generation_prompt"
    unasked = chatml[: chatml.index(header)]
    tagged = unasked.replace(
        "message['content'] + '<|im_end|>\\n' -}}",
        "'' -}}{% if message['role'] == 'assistant' %}{% generation %}{{- message['content'] + '<|im_end|>' -}}"
        "{% endgeneration %}{% else %}{{- message['content'] + '<|im_end|>' -}}{% endif %}{{ '\\n' }}",
    )
    expected = ConversationEncoder(tokenizer_folder, template("chatml"))(CONVERSATION)
    for source in (unasked, tagged):
        found = ConversationEncoder(tokenizer_folder, ChatTemplate(source, ROLES, "test"))(CONVERSATION)
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert found.responses.tolist() == expected.responses.tolist()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('no luck') }}", "the chat template raised: no luck"),
        ("{{ messages[0].content.words() }}", "the chat template raised: .*words"),
        ("{% for m in messages %}{{ m.content }}{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}", "turn 1"),
        ("{% for m in messages %}{{ m.content.split('ris')[0] }}</s>{% endfor %}", "does not write turn 1"),
        ("{{ messages[0].content }}", "turn 1"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "generation tags"),
    ],
)  # fmt: skip
def test_a_turn_that_is_not_found_is_refused_and_not_guessed(source, says, tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(Unusable, match=says):
        ConversationEncoder(tmp_path, ChatTemplate(source, ROLES, "test"))(CONVERSATION)


def test_a_special_token_in_a_content_and_a_token_across_a_turns_bound_are_refused(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    encoder = ConversationEncoder(tmp_path, template("chatml"))
    question, answer = CONVERSATION[:2]
    with pytest.raises(Unusable, match=r"turn 1 \(assistant\) holds <\|im_end\|>, a special token"):
        encoder([question, answer | {"content": "I end <|im_end|> here"}])
    across = ChatTemplate("{% for m in messages %}{{ m.content.strip() }}{% endfor %}", ROLES, "test")
    with pytest.raises(Unusable, match="a token lies across the bound of a turn"):
        ConversationEncoder(tmp_path, across)([question | {"content": "What c"}, answer | {"content": "apital?"}])


@pytest.mark.parametrize("name", SAID)
def test_a_cut_from_the_left_takes_tokens_of_the_first_question_and_no_others(name, tokenizer_folder):
    chat = template(name)
    encoder = ConversationEncoder(tokenizer_folder, chat)
    messages = [{"role": "user", "content": "What is the capital of France? " * 9}, *CONVERSATION[1:]]
    whole = encoder(messages)
    cut = encoder.without_first(messages, whole, 30)
    first = int(np.flatnonzero(whole.tokens[: len(cut.tokens)] != cut.tokens)[0])  # the header is as it was
    assert len(cut.tokens) == len(whole.tokens) - 30
    assert cut.tokens[first:].tolist() == whole.tokens[first + 30 :].tolist()
    assert cut.tokens[cut.responses == 1].tolist() == whole.tokens[whole.responses == 1].tolist()
    with pytest.raises(Unusable, match=r"has \d+ tokens, 5,000 too many, and only \d+ of the first user's turn"):
        encoder.without_first(messages, whole, 5000)


TURNS = [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("form", "row", "says"),
    [
        ("messages", {"messages": "text"}, "expected a list of at least one turn"),
        ("messages", {"messages": []}, "expected a list of at least one turn"),
        ("messages", {"messages": [{"role": "user"}]}, "turn 0: expected an object with 'role' and 'content'"),
        ("messages", {"messages": [{"role": "tool", "content": "a"}]}, "turn 0: role 'tool' is not known"),
        ("sharegpt", {"conversations": [{"from": ["human"], "value": "a"}]}, r"turn 0: role \['human'\] is not known"),
        ("messages", {"messages": [{"role": "user", "content": " "}]}, r"turn 0 \(user\) is empty"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, r"turn 0 \(user\) holds null"),
        ("messages", {"messages": [{"role": "user", "content": "a"}]}, "ends with a turn of the user, after which"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": "a"}]}, "turn 0 is of the assistant, expected"),
        ("prompt_response", {"prompt": "a", "response": ""}, r"turn 1 \(assistant\) is empty"),
    ],
)  # fmt: skip
def test_a_conversation_that_is_none_is_refused_by_its_turn(form, row, says):
    with pytest.raises(Unusable, match=says):
        read_conversation(form, row)


def test_the_three_forms_give_the_same_conversation():
    expected = [{"role": role, "content": content} for role, content in TURNS]
    rows = {
        "messages": {"messages": [{**message, "name": "ignored"} for message in expected]},
        "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        "prompt_response": {"prompt": "a", "response": "b", "score": 3},
    }
    assert [read_conversation(form, row) for form, row in rows.items()] == 3 * [expected]


def test_a_template_is_the_given_one_or_the_tokenizers_own(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(
        '{"eos_token": {"content": "</s>"}, "chat_template": [{"name": ["default"], "template": "x"},'
        ' {"name": "default", "template": "{{ eos_token }}"}]}'
    )
    assert open_template(tmp_path, None, {}).text([]) == "</s>"
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<begin>", "eos_token": "<old>"}')
    assert open_template(tmp_path, None, {}).special_tokens == {"bos_token": "<begin>", "eos_token": "</s>"}
    (tmp_path / "chat_template.jinja").write_text("beside")
    assert open_template(tmp_path, None, {}).source == "beside"
    (tmp_path / "given.jinja").write_text("given")
    assert open_template(tmp_path, tmp_path / "given.jinja", {}).source == "given"
    with pytest.raises(DataError, match=r"no chat template; give a file of Jinja with `tokenizer\.chat_template`"):
        open_template(tmp_path / "elsewhere", None, {})
    (tmp_path / "given.jinja").write_text("{% for %}")
    with pytest.raises(DataError, match=r"given\.jinja: line 1: not a chat template in Jinja"):
        open_template(tmp_path, tmp_path / "given.jinja", {}).text([])
