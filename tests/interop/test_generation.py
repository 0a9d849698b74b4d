"""Chat template, stop tokens and generation settings go from an imported model through training to its export."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.data.same_tokenizer import keep_tokenizer
from rotary_foundry.data.special_tokens import rewrite_config
from rotary_foundry.data_prep.tokenizer import save_copy
from rotary_foundry.evaluation.causal_models import open_causal_model
from rotary_foundry.evaluation.suites import find_suites
from rotary_foundry.interop import load_model
from rotary_foundry.interop.export import export_checkpoint
from rotary_foundry.interop.generation import end_of_turn
from rotary_foundry.interop.importing import import_model
from rotary_foundry.models.config_json import family_of
from rotary_foundry.models.llama.gguf_tokenizer import tokenizer_files
from rotary_foundry.utils.errors import DataError
from tests.evaluation.decoders import save_decoder
from tests.interop.gguf_files import CHAT, SPECIAL, VOCABULARY, settings_of, tensors_of, write_gguf
from tests.interop.runs import make_run
from tests.models.llama.peers import our_network

TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' + message['content'] + '<pad>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "the token attends"}]
SETTINGS = {"eos_token_id": [1], "temperature": 0.6, "top_p": 0.9, "do_sample": True, "transformers_version": "4.0"}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A model with a chat template, settings, and two ends, one of which it generates as its third token."""
    path = save_decoder(tmp_path_factory.mktemp("models") / "llama")
    rewrite_config(path, chat_template=TEMPLATE)
    prompt = AutoTokenizer.from_pretrained(path).apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(path)
    length = prompt["input_ids"].shape[1]
    made = model.generate(**prompt, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, length:].tolist()
    third = next(token for index, token in enumerate(made) if index >= 2 and token not in made[:index])
    (path / "generation_config.json").write_text(json.dumps(SETTINGS | {"eos_token_id": [1, third]}))
    (path / "generated.json").write_text(json.dumps(made[: made.index(third) + 1]))
    return path


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory) -> Path:
    """The export of a run that began from the imported model, with data of its tokenizer."""
    path = tmp_path_factory.mktemp("run")
    import_model(source, path / "imported")
    save_copy(path / "imported", path / "corpus/tokenizer", 256, causal=True)
    shape, _ = family_of(path / "imported").huggingface.read_config(path / "imported")
    end = compile_plan(load_recipe("yamls/main/llama_nano.yaml")).total_tokens
    weights = load_model(path / "imported").state_dict()
    run = make_run(path / "run", shape, path / "corpus", weights, name="llama_nano", token=end)
    keep_tokenizer(path / "corpus/tokenizer", run.tokenizer, begun=True)
    export_checkpoint(run.path, path / "export")
    return path / "export"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_servers_loader_finds_template_ends_and_settings_in_the_export(source, exported):
    third = json.loads((source / "generated.json").read_text())[-1]
    found = json.loads((exported / "generation_config.json").read_text())
    assert found.pop("eos_token_id") == [1, third, 2]  # the document's, the model's, and the template's <pad>
    assert found == {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "bos_token_id": 0, "pad_token_id": 2}
    assert json.loads((exported / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE
    assert json.loads((exported / "config.json").read_text())["eos_token_id"] == 1
    loaded = GenerationConfig.from_pretrained(exported).to_diff_dict()  # as vLLM reads it
    assert loaded["eos_token_id"] == [1, third, 2] and loaded["temperature"] == 0.6


def test_a_pipeline_takes_messages_and_stops_at_any_end(source, exported):
    expected = json.loads((source / "generated.json").read_text())
    answer = pipeline("text-generation", model=str(exported))(MESSAGES, max_new_tokens=12, do_sample=False)
    *asked, said = answer[0]["generated_text"]
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert asked == MESSAGES and said["role"] == "assistant"
    assert said["content"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_evaluation_stops_a_run_where_its_export_stops(source, exported):
    config = find_suites(["recall"])[0].config
    made = json.loads((source / "generated.json").read_text())
    for path in (source, exported.parent / "run", exported):
        model = open_causal_model(path, config)
        assert set(model.model.generation_config.eos_token_id) == {1, 2, made[-1]}
        said = model.generate(model.chat(MESSAGES[0]["content"]), 12)
        assert said == model.tokenizer.decode(made, skip_special_tokens=True)


def test_a_gguf_file_brings_its_template_and_its_ends(tmp_path):
    ours = our_network(vocab_size=320, num_hidden_layers=1)
    ends = {"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 2}
    path = write_gguf(tmp_path / "model.gguf", tensors_of(ours), settings_of(ours) | VOCABULARY | ends)
    import_model(path, tmp_path / "out")
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": [0, 2],
    }
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == CHAT
    broken = settings_of(ours) | VOCABULARY | {"tokenizer.ggml.eot_token_id": 999}
    with pytest.raises(DataError, match=r"tokenizer\.ggml\.eot_token_id: expected an id below 302, found 999"):
        tokenizer_files(broken, 256)


def test_several_templates_travel_wherever_transformers_saves_them(source, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = {"default": TEMPLATE, "tool_use": "tools: " + TEMPLATE}
    shutil.copytree(source, tmp_path / "theirs")
    rewrite_config(tmp_path / "theirs", chat_template=None)
    tokenizer.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs/additional_chat_templates/tool_use.jinja").is_file()
    (tmp_path / "theirs/generated.json").unlink()
    import_model(tmp_path / "theirs", tmp_path / "imported")
    import_model(tmp_path / "theirs", tmp_path / "imported")  # replaces its own
    save_copy(tmp_path / "imported", tmp_path / "copy", 256, causal=True)
    for path in (tmp_path / "imported", tmp_path / "copy"):
        assert AutoTokenizer.from_pretrained(path).chat_template == tokenizer.chat_template


TURNS = "{% for message in messages %}"
TEMPLATES = {
    "chatml": (TURNS + "{{ '<|im_start|>' + message['content'] + '<|im_end|>\n' }}{% endfor %}", 2),
    "llama 2": (TURNS + "{{ message['content'] + ' <|endoftext|>' }}{% endfor %}", 0),
    "no special token after a turn": (TURNS + "{{ message['content'] + '\n\n' }}{% endfor %}", None),
    "answers left out": ("{{ messages[0]['content'] + '<|im_end|>' }}", None),
    "raises": ("{{ raise_exception('no') }}", None),
    "none": (None, None),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_a_turn_is_the_special_token_after_an_answer(name, tmp_path):
    template, expected = TEMPLATES[name]
    for file, content in tokenizer_files(VOCABULARY, 256).items():
        (tmp_path / file).write_text(content)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = template
    assert [tokenizer.convert_ids_to_tokens(id) for id in range(3)] == SPECIAL
    assert end_of_turn(tokenizer) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"generation_config\.json: cannot be read: "),
        ("[1]", r"generation_config\.json: cannot be read: expected a JSON object, got list"),
        (
            '{"eos_token_id": ["</s>"]}',
            r"generation_config\.json: eos_token_id: expected an id or a list of ids, found",
        ),
        (
            '{"eos_token_id": [1, 999]}',
            r"generation_config\.json: eos_token_id: 999, but the model has a vocabulary of 384",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_by_file_and_key(source, tmp_path, content, said):
    path = shutil.copytree(source, tmp_path / "broken")
    (path / "generation_config.json").write_text(content)
    with pytest.raises(DataError, match=said):
        import_model(path, tmp_path / "out")
