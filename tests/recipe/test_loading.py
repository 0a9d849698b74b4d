"""A wrong recipe is refused with the file, the key and what would be right."""

from pathlib import Path

import pytest

from encoder_foundry import load_recipe
from encoder_foundry.errors import ConfigurationError

NANO = Path("yamls/main/nano.yaml")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("modle.hidden_size=3", "unknown key 'modle'; did you mean 'model'?"),
        ("model.hiden_size=3", "did you mean 'hidden_size'?"),
        ("model.hidden_size=wide", "'model.hidden_size': Value 'wide'"),
        ("model.num_attention_heads=5", "5 heads do not divide a hidden size of 256"),
        ("model.hidden_size=4", "'model.num_attention_heads': 4 heads of 1; rotary positions need an even head size"),
        ("model.local_attention=127", "odd"),
        ("model.local_attention=0", "'model.local_attention': 0 is not positive"),
        ("model.local_attention=null", "null, but with global_attn_every_n_layers 3 there are local layers"),
        ("model.global_attn_every_n_layers=1", "128, but with global_attn_every_n_layers 1 no layer is local; null"),
        ("model.local_rope_theta=-1", "'model.local_rope_theta': -1.0 is not positive"),
        ("precision=fp8", "'fp8' is not one of fp32, amp_bf16"),
        ("model.attn_implementation=eager", "'eager' is not one of auto, flash, flex, sdpa"),
        ("seed", "overrides are written key=value"),
        ("run_name=a/b", "name of a folder"),
        ("run_name=..", "name of a folder"),
        ("seed=-1", "not in [0, 2**31)"),
        ("data.sources=[code, code]", "given once"),
        ("masking.mask_share=.nan", "sum ≤ 1"),
        ("stages.pretrain.lr=.inf", "not positive and finite"),
        ("stages.pretrain.t_warmup=infdur", "not a number of tokens"),
        ("stages.pretrain.duration=1e9tok", "'1e9tok' is not a number of tokens"),
        ("save_num_checkpoints_to_keep=0", "at least one, to resume from"),
        ("data.sources=[]", "at least one source"),
        ("data.num_workers=-1", "negative"),
        ("data.shuffle_algo=py9", "'py9' is not one of"),
        ("masking.mlm_probability=30", "not between 0 and 1"),
        ("masking.mask_share=0.95", "sum ≤ 1"),
        ("optimizer.betas=[0.9]", "length 1 does not match"),
        ("optimizer.eps=0", "not positive"),
        ("loggers.tensorbord.x=1", "'tensorbord' is not known"),
        ("save_interval=often", "'save_interval'"),
        ("stages=[]", "'stages': a list is given where keys with values are wanted"),
        ("stages.pretrain.duration=1000000", "such as 1_000_000tok"),
        ("stages.pretrain.duration=0tok", "not positive"),
        ("stages.pretrain.rope_theta=0", "'stages.pretrain.rope_theta': 0.0 is not positive"),
        ("stages.pretrain.t_warmup=5dur", "do not lie within"),
        ("stages.decay.t_warmup=0.1dur", "warm-up and decay together"),
        ("stages.decay.alpha_f=2", "not in [0, 1]"),
        ("stages.decay.mixture.books=1", "not among data.sources"),
        ("stages.decay.mixture.code=0", "not positive"),
        ("stages.pretrain.batch_size_ramp.increment=4", "do not meet 8"),
        ("stages.pretrain.batch_size_ramp.initial=8", "not below"),
        ("stages.pretrain.batch_size_ramp.duration=4096tok", "too short for one update at each"),
        ("stages.extend.duration=4096tok", "too short for one update of 2 rows"),
    ],
)
def test_a_wrong_value_is_refused_by_key(override, says):
    with pytest.raises(ConfigurationError) as refused:
        load_recipe(NANO, [override])
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_wrong_key_is_reported_with_the_file_it_stands_in(tmp_path):
    (tmp_path / "shared.yaml").write_text("optimizer: {epsilon: 1e-6}\n")
    (tmp_path / "mine.yaml").write_text(f"extends: [{NANO.resolve()}, shared.yaml]\nrun_name: mine\n")
    with pytest.raises(ConfigurationError, match=r"shared\.yaml: unknown key 'optimizer\.epsilon'; did you mean 'eps'"):
        load_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("run_name: mine\n", "is required and not given"),
        ("- a\n- b\n", "mapping"),
        ("run_name: [unclosed\n", "not valid YAML"),
        ("extends: [absent.yaml]\n", "absent.yaml: no such file (which "),
        ("extends: other.yaml\n", "list of files"),
        ("extends: null\n", "list of files"),
        ("5\n", "cannot be read as a YAML file"),
        ("extends: [mine.yaml]\n", "extends itself"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path, content, says):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigurationError) as refused:
        load_recipe(path)
    assert says in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_without_local_layers_there_is_no_window():
    assert load_recipe(NANO, ["model.global_attn_every_n_layers=1", "model.local_attention=null"])


def test_what_is_said_last_holds(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"extends: [{NANO.resolve()}]\nseed: 5\n")
    assert load_recipe(tmp_path / "mine.yaml").seed == 5
    recipe = load_recipe(tmp_path / "mine.yaml", ["seed=6", "stages.extend.lr=1e-3"])
    assert (recipe.seed, recipe.stages["extend"].lr) == (6, 1e-3)


def test_a_mixture_takes_the_place_of_the_one_before_as_a_whole(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"extends: [{NANO.resolve()}]\nstages: {{decay: {{mixture: {{web: 1}}}}}}\n")
    assert load_recipe(tmp_path / "mine.yaml").stages["decay"].mixture == {"web": 1}
    assert load_recipe(NANO, ["stages.decay.mixture={web: 1}"]).stages["decay"].mixture == {"web": 1}
    assert load_recipe(NANO, ["stages.decay.mixture.web=1"]).stages["decay"].mixture == {
        "docs": 0.5,
        "web": 1,
        "code": 0.2,
    }
