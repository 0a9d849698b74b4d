"""What a recipe with `init_from` leaves open of the model is the source's, and what it gives is kept."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from transformers import BertConfig, LlamaConfig, ModernBertConfig

from rotary_foundry import Recipe, compile_plan, load_recipe
from rotary_foundry.runs.run_folder import CompleteCheckpoint, RunFolder, mark_complete
from rotary_foundry.utils.errors import ConfigurationError
from tests.models.peers import in_words_of_4

ROOT = Path(__file__).parents[2]
CONTINUE, NANO = ROOT / "yamls/main/continue.yaml", ROOT / "yamls/main/nano.yaml"
NANOS_PLAN = compile_plan(load_recipe(NANO))
PRETRAINED, EXTENDED, _ = (f"ba{NANOS_PLAN.at(token).update}" for token in NANOS_PLAN.stage_ends.values())


def write_run(path: Path, recipe: Recipe, *tokens: int) -> Path:
    """A run's folder with a recipe and checkpoints, as far as is read without weights."""
    run = RunFolder(path)
    path.mkdir(parents=True)
    run.recipe.write_text(OmegaConf.to_yaml(OmegaConf.structured(recipe)))
    for token in tokens:
        folder = run.checkpoints / f"ba{compile_plan(recipe).at(token).update}"
        folder.mkdir(parents=True)
        mark_complete(CompleteCheckpoint(folder, compile_plan(recipe).at(token).update, token, 0, {}, {}))
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Where there is no runs/continue yet."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def published(tmp_path) -> Path:
    """A transformers directory of ModernBERT-base's shape, without its weights."""
    ModernBertConfig().save_pretrained(tmp_path / "ModernBERT-base")
    return tmp_path / "ModernBERT-base"


@pytest.fixture
def nano(tmp_path) -> Path:
    """A nano run with a checkpoint at the end of each of its first two stages."""
    recipe = load_recipe(NANO)
    return write_run(tmp_path / "runs/nano", recipe, *list(compile_plan(recipe).stage_ends.values())[:2])


def theta(recipe: Recipe) -> float:
    return recipe.knobs_of("continue")["rope_theta"]


def test_a_model_of_the_published_size_gives_the_published_shape_and_theta(published):
    recipe, base = load_recipe(CONTINUE, [f"init_from={published}"]), load_recipe(ROOT / "yamls/main/base.yaml")
    assert recipe.model.shape == base.model.shape
    assert recipe.knobs_of("continue") == base.knobs_of("extend")


@pytest.mark.parametrize(
    ("source", "trained_at"),
    [("", 160_000), (f"checkpoints/{PRETRAINED}", 10_000), (f"checkpoints/{EXTENDED}", 160_000)],
)
def test_a_run_and_each_of_its_checkpoints_give_their_shape_and_the_theta_they_were_trained_at(
    nano, source, trained_at
):
    recipe = load_recipe(CONTINUE, [f"init_from={nano / source}"])
    assert recipe.model.shape == load_recipe(NANO).model.shape
    assert theta(recipe) == trained_at


def test_what_a_recipe_gives_is_kept_and_the_rest_is_the_sources(nano):
    given = ["model.num_hidden_layers=6", "model.attn_out_dropout=0.25", "model.attn_implementation=sdpa"]
    recipe = load_recipe(CONTINUE, [f"init_from={nano}", *given, "stages.continue.rope_theta=20_000"])
    assert recipe.model.shape == replace(load_recipe(NANO).model.shape, num_hidden_layers=6)
    assert recipe.model.attn_implementation == "sdpa"
    knobs = {"rope_theta": 20_000, "local_rope_theta": 10_000, "attn_out_dropout": 0.25, "mlm_probability": 0.3}
    assert recipe.knobs_of("continue") == knobs


FURTHER = """
extends: [{yamls}/roformer_v2.yaml, {yamls}/models/roformer_v2_nano.yaml]
run_name: further
data: {{local: data, sources: [text], num_workers: 0}}
save_interval: 1ba
stages:
  only: {{duration: 8192tok, row_length: 512, global_train_batch_size: 4, device_train_microbatch_size: 2, lr: 1e-3}}
"""


def test_a_roformer_goes_on_with_the_residual_scale_of_its_source_unless_the_recipe_sets_one(tmp_path):
    nano = load_recipe(ROOT / "yamls/main/roformer_v2_nano.yaml")
    risen = compile_plan(nano)
    update = risen.segments[0].tokens_per_update
    source = write_run(tmp_path / "runs/roformer", nano, 10 * update)  # while it rises from 0 to 1
    path = tmp_path / "further.yaml"
    path.write_text(FURTHER.format(yamls=ROOT / "yamls"))
    begins = load_recipe(path, [f"init_from={source}"]).knobs_of("only")["residual_scale"]
    assert 0 < begins == risen.at(9 * update).knobs["residual_scale"] < 1
    given = load_recipe(path, [f"init_from={source}", "model.residual_scale=1"])
    assert given.knobs_of("only")["residual_scale"] == 1
    with pytest.raises(ConfigurationError, match=r"'stages\.only\.residual_scale' is required and not given; set it"):
        load_recipe(path)


def test_a_recipe_that_gives_all_is_loaded_before_its_source_is_there():
    assert not Path("runs/base").exists()
    assert load_recipe(ROOT / "yamls/main/large.yaml").init_from == "runs/base"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], "'model.family' is required and not given; set it, or set 'init_from' to a run, a checkpoint or a"),
        (["init_from=answerdotai/ModernBERT-base"], "'init_from': answerdotai/ModernBERT-base: no such file or folder"),
        (["init_from=empty"], "'init_from': empty: no complete checkpoint"),
        (["init_from=bert"], "'init_from': bert/config.json: model_type: expected 'modernbert', 'roformer_v2', "),
        (["init_from=trimmed"], "'init_from': trimmed/config.json: local_rope_theta is missing"),
    ],
)
def test_what_gives_no_shape_is_refused_in_a_line(published, overrides, says):
    Path("empty").mkdir()
    BertConfig().save_pretrained("bert")
    written = in_words_of_4(json.loads((published / "config.json").read_text()))
    del written["local_rope_theta"]
    Path("trimmed").mkdir()
    Path("trimmed/config.json").write_text(json.dumps(written))
    with pytest.raises(ConfigurationError) as refused:
        load_recipe(CONTINUE, overrides)
    assert str(refused.value).startswith(f"{CONTINUE}: {says}")
    assert "\n" not in str(refused.value)


def test_a_key_that_no_source_has_is_asked_for_before_the_shape_that_one_has(nano, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"run_name: mine\ninit_from: {nano}\n")
    with pytest.raises(ConfigurationError, match=r"mine\.yaml: 'data' is required and not given"):
        load_recipe(recipe)


def test_a_run_that_has_begun_keeps_what_it_began_with_though_its_source_went_on_or_is_gone(nano):
    newest = nano / f"checkpoints/{EXTENDED}/COMPLETE"
    newest.rename(nano / "COMPLETE")
    overrides = [f"init_from={nano}"]
    begun = load_recipe(CONTINUE, overrides)
    assert theta(begun) == 10_000
    write_run(Path("runs/continue"), begun, compile_plan(begun).total_tokens)
    (nano / "COMPLETE").rename(newest)
    assert load_recipe(CONTINUE, overrides) == begun
    assert theta(load_recipe(CONTINUE, [*overrides, "run_name=another"])) == 160_000
    nano.rename("moved")
    assert load_recipe(CONTINUE, overrides) == load_recipe("runs/continue/recipe.yaml") == begun
    with pytest.raises(ConfigurationError, match="no such file or folder"):
        load_recipe(CONTINUE, [*overrides, "run_name=another"])


def plan(*arguments: str) -> str:
    script = Path(sys.executable).parent / "rotary-foundry"
    finished = subprocess.run(
        [str(script), "plan", str(CONTINUE), *arguments], capture_output=True, text=True, check=True
    )
    return finished.stdout


def test_the_plan_tells_what_it_begins_with_its_peak_and_another_theta(published):
    said = plan(f"init_from={published}")
    assert f"{load_recipe(ROOT / 'yamls/main/base.yaml').model.shape.parameters:,} parameters" in said
    assert "0 → 3e-4 → 3e-7" in said
    joined = "".join(said.split())  # a long path is folded anywhere
    assert "ModernBERT-base,trainedlastatrope_theta160,000,local_rope_theta10,000,onrowsofupto8,192tokens" in joined
    assert "beginsat" not in joined
    said = " ".join(plan(f"init_from={published}", "stages.continue.rope_theta=10_000").split())
    assert "rope_theta 160,000, local_rope_theta 10,000, on rows of up to 8,192 tokens" in said
    assert "; this run begins at rope_theta 10,000" in said


def test_a_llama_of_ones_own_goes_on_with_its_shape_in_longer_rows(tmp_path):
    LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    ).save_pretrained(tmp_path / "llama")
    recipe = load_recipe(ROOT / "yamls/main/llama_continue.yaml", [f"init_from={tmp_path / 'llama'}"])
    shape = recipe.model.shape
    assert (shape.num_hidden_layers, shape.num_key_value_heads, shape.vocab_size) == (3, 2, 128)
    first = compile_plan(recipe).at(0)
    assert (first.row_length, first.knobs["rope_theta"]) == (32_768, 1_000_000)


def test_the_plan_tells_that_a_model_of_another_shape_will_be_refused(published):
    said = " ".join(plan(f"init_from={published}", "model.num_hidden_layers=4").split())
    assert "a start will be refused: model.num_hidden_layers: expected at least 22" in said
