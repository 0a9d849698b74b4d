"""Code in a directory of a model or tokenizer is never run, and nobody is asked whether it should be.

transformers asks on the terminal and waits; sentence-transformers runs the modules of a local directory without asking.
"""

import builtins
import json
import shutil
from pathlib import Path

import pytest
from transformers import ModernBertConfig

from rotary_foundry.data_prep.self_instruct.local_generator import LocalGenerator
from rotary_foundry.data_prep.tokenizer import open_brought
from rotary_foundry.evaluation.models import open_model
from rotary_foundry.evaluation.retrieval_models import open_retriever
from rotary_foundry.finetuning.example_encoding import load_tokenizer
from rotary_foundry.interop.importing import import_model
from rotary_foundry.utils.errors import DataError
from tests.command import rotary_foundry
from tests.models import peers

CODE = """raise SystemExit("this was run")

class OwnConfig: pass
class OwnModel: pass
class OwnTokenizer: pass
class OwnModule: pass
"""
NEVER = "code of its own, which is never run here"


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    questions = []
    monkeypatch.setattr(builtins, "input", lambda text="": questions.append(text) or "y")
    yield questions
    assert not questions


@pytest.fixture
def directory(tokenizer_dir, tmp_path) -> Path:
    path = tmp_path / "model"
    shutil.copytree(tokenizer_dir, path)
    peers.their_network(peers.our_network(hidden_size=32, num_attention_heads=2)).save_pretrained(path)
    (path / "own.py").write_text(CODE)
    return path


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def own_tokenizer(directory: Path) -> Path:
    auto = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    change(directory / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=auto)
    return directory


def own_model(directory: Path) -> Path:
    auto = {"AutoConfig": "own.OwnConfig"}
    auto |= {f"AutoModelFor{head}": "own.OwnModel" for head in ("MaskedLM", "CausalLM", "SequenceClassification")}
    change(directory / "config.json", model_type="own", auto_map=auto)
    return directory


def finetuning(model: Path, folder: Path) -> str:
    """Return what `finetune` says."""
    rows = "".join(json.dumps({"text": f"a b {row}", "label": "ab"[row % 2]}) + "\n" for row in range(8))
    (folder / "rows.jsonl").write_text(rows)
    (folder / "mine.yaml").write_text(
        f"model: {model}\nout: {folder}/out\nseeds: [1]\n"
        "search: {lr: [1e-2], weight_decay: [0], max_duration: [1ep], global_train_batch_size: [4]}\n"
        f"tasks: {{mine: {{data: {{train: {folder}/rows.jsonl, validation: [{folder}/rows.jsonl]}}}}}}\n"
    )
    done = rotary_foundry("finetune", folder / "mine.yaml")
    assert done.returncode == 2
    return done.stderr


def test_code_of_a_tokenizer_is_not_run_and_such_a_tokenizer_is_refused(directory):
    own_tokenizer(directory)
    (directory / "config.json").unlink()
    for open_ in (open_brought, LocalGenerator):
        with pytest.raises(DataError, match=NEVER):
            open_(directory)


def test_code_of_a_tokenizer_is_not_needed_beside_a_model_that_transformers_has(directory, tmp_path):
    own_tokenizer(directory)
    import_model(directory, tmp_path / "imported")
    for path in (directory, tmp_path / "imported"):
        assert open_brought(path).tokenizer.encode("a b", add_special_tokens=False).ids == [5, 6]
        assert open_model(path).encode("a b").ids.tolist() == [5, 6]
        opened = load_tokenizer(str(path), str(path), ModernBertConfig(vocab_size=192, pad_token_id=3))
        assert opened("a b")["input_ids"] == [1, 5, 6, 2]


@pytest.mark.parametrize("door", ["evaluate", "finetune", "retrieval"])
def test_code_of_a_model_is_not_run_by(door, directory, tmp_path):
    own_model(directory)
    if door == "finetune":
        assert NEVER in finetuning(directory, tmp_path)
        return
    with pytest.raises(DataError, match=NEVER):
        open_model(directory) if door == "evaluate" else open_retriever(directory, None)


def test_a_module_of_a_retriever_that_is_code_of_its_own_is_not_run(directory):
    modules = [{"idx": 0, "name": "0", "path": "", "type": "own.OwnModule"}]
    (directory / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(DataError, match=rf"modules\.json: own\.OwnModule is {NEVER}"):
        open_retriever(directory, None)


def test_a_model_that_transformers_has_is_opened_by_its_own_class_although_the_directory_brings_code(directory):
    change(directory / "config.json", auto_map={"AutoModelForMaskedLM": "own.OwnModel"})
    assert open_model(directory).encode("a b").ids.tolist() == [5, 6]
