"""A family that transformers does not have is loaded by this package's code, never by a directory's."""

import io
import json

import pytest
from rich.console import Console
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

from rotary_foundry.interop.own_code import copy_own_code, register_own_code
from rotary_foundry.reporting.summary import print_fill_mask
from rotary_foundry.utils.errors import DataError
from tests.interop.test_roformer_v2 import JUNNYU, export
from tests.models.roformer_v2_peers import our_network


@pytest.fixture
def exported(tokenizer_dir, tmp_path):
    return export(our_network(), tokenizer_dir, tmp_path / "export")


def test_a_directory_s_own_code_is_not_run(exported):
    (exported / "modeling_roformer_v2.py").write_text("raise SystemExit('this was run')")
    register_own_code(exported)
    model, loading = AutoModel.from_pretrained(exported, output_loading_info=True)
    assert type(model).__module__ == "rotary_foundry.models.roformer_v2.modeling_roformer_v2"
    assert not loading["missing_keys"]
    copy_own_code(exported, exported)
    assert "RoFormerV2Model" in (exported / "modeling_roformer_v2.py").read_text()


def test_a_summary_fills_masks_without_running_a_directorys_code(exported, monkeypatch):
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "roformer_v2", raising=False)  # as in a process that begins
    (exported / "modeling_roformer_v2.py").write_text("raise SystemExit('this was run')")
    print_fill_mask(exported, ["a b c d e", "e d c b a"], Console(file=(out := io.StringIO())))
    printed = out.getvalue()
    assert printed.count("%") == 3 * 2
    assert printed.count("in the text: ") == 2


@pytest.mark.parametrize("change", [{"auto_map": ["x"]}, {"auto_map": {"AutoModel": 3}}, {"vocab_size": "64"}])
def test_what_a_config_says_of_classes_is_not_looked_at_and_its_sizes_are_checked(exported, change):
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(config | change))
    if "auto_map" in change:
        register_own_code(exported)
    else:
        with pytest.raises(DataError, match=r"config\.json: vocab_size: '64' is not of type int"):
            register_own_code(exported)


def test_another_program_s_form_is_refused_with_the_command_that_imports_it(tmp_path):
    """transformers would load it as the first RoFormer, which predicts noise."""
    (tmp_path / "config.json").write_text(json.dumps(JUNNYU))
    with pytest.raises(DataError, match=r"rotary-foundry import .* DIRECTORY"):
        register_own_code(tmp_path)


def test_any_other_model_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    register_own_code(tmp_path)
    register_own_code("answerdotai/ModernBERT-base")  # of the hub
    copy_own_code(tmp_path, tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "bert"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
