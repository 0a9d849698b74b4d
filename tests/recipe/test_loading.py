"""A wrong recipe is refused with the file, the key and what would be right."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.recipe.validation import OF_COMPILE
from rotary_foundry.utils.errors import ConfigurationError

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
        (
            "model.global_attn_every_n_layers=1",
            "16, but with global_attn_every_n_layers 1 no layer is local; give null",
        ),
        ("model.local_rope_theta=-1", "'model.local_rope_theta': -1 is not a finite number above 0"),
        ("precision=fp8", "'fp8' is not one of fp32, amp_bf16"),
        ("model.attn_implementation=eager", "'eager' is not known; known here are auto, varlen, flash, sdpa"),
        ("seed", "overrides are written key=value"),
        ("run_name=a/b", "name of a folder"),
        ("run_name=..", "name of a folder"),
        ("seed=-1", "not in [0, 2**31)"),
        ("data.sources=[code, code]", "given once"),
        ("objective.mask_share=.nan", "sum ≤ 1"),
        ("stages.pretrain.lr=.inf", "not positive and finite"),
        ("stages.pretrain.t_warmup=infdur", "not a number of tokens"),
        ("stages.pretrain.duration=1e9tok", "'1e9tok' is not a number of tokens"),
        ("save_num_checkpoints_to_keep=0", "at least 1 to resume from"),
        ("save_folder=/mnt/runs", "'save_folder': '/mnt/runs' is not of the form s3://bucket/path"),
        ("save_folder=gs://bucket/runs", "store with an S3 API works: set AWS_ENDPOINT_URL"),
        ("save_folder='s3://bucket/{run_name}'", "the run's name is added to it"),
        ("data.sources=[]", "at least one source"),
        ("data.num_workers=-1", "negative"),
        ("objective.mlm_probability=30", "'objective.mlm_probability': 30.0 is not a number in (0, 1)"),
        ("objective.name=masked_ml", "'objective.name': 'masked_ml' is not known; did you mean 'masked_lm'?"),
        ("objective.mask_shares=0.3", "unknown key 'objective.mask_shares'; did you mean 'mask_share'?"),
        ("objective.mask_share=most", "'objective.mask_share': Value 'most' of type 'str' could not be converted"),
        ("stages.decay.objective=masked_lm", "'stages.decay.objective.eval_mlm_probability' is required"),
        ("model.family=modernbrt", "'model.family': 'modernbrt' is not a model family; did you mean 'modernbert'?"),
        ("model.family=[modernbert]", "'model.family': '['modernbert']' is not a model family; did you mean 'modern"),
        ("objective=masked_lm", "'objective': expected a mapping of keys to values, got str"),
        ("data.sources=mine", "'data.sources': expected a list, got str; put brackets around it, as in [a] or [a, b]"),
        ("data.sources=[[a, b]]", "'data.sources[0]': expected a plain value, got ['a', 'b']"),
        ("stages.decay.mixture={docs: [1, 2]}", "'stages.decay.mixture.docs'"),
        ("stages.decay.mlm_probabilty=0.2", "'stages.decay.mlm_probabilty'; did you mean 'mlm_probability'?"),
        ("stages.decay.mlm_probability={start: 0.3, end: 2}", "'stages.decay.mlm_probability': end: 2 is not a number"),
        ("stages.decay.mlm_probability={start: 0.3}", "a schedule needs start and end; 'end' is missing"),
        ("stages.decay.rope_theta={start: 1, end: 2, to: 3}", "unknown key 'to'; a schedule has start, end, shape"),
        ("stages.decay.rope_theta={start: 1, end: 2, shape: log}", "shape 'log' is not one of one_minus_sqrt, linear"),
        ("stages.decay.rope_theta={start: 1, end: 2, shape: [linear]}", "shape '['linear']' is not one of one_minus"),
        *(
            (
                f"stages.decay.rope_theta={{start: 1, end: 2, duration: {duration}}}",
                f"'stages.decay.rope_theta': duration: {says}",
            )
            for duration, says in (
                ("2up", "'2up' is not a number of tokens, such as 1_000_000tok or 0.5dur"),
                ("7", "'7' is not a number of tokens"),
                ("0tok", "expected 1 to 131_072 tokens, those of the stage, got 0"),
                ("1.5dur", "expected 1 to 131_072 tokens, those of the stage, got 196_608"),
            )
        ),
        ("objective.mask_share=0.95", "sum ≤ 1"),
        ("optimizer.betas=[0.9]", "length 1 does not match"),
        ("optimizer.betas=[[], 0.98]", "'optimizer.betas[0]': expected a plain value, got []"),
        ("stages.decay.optimizer.betas=[0.9, {a: 1}]", "'stages.decay.optimizer.betas[1]': expected a plain value"),
        ("optimizer.eps=0", "not positive"),
        ("optimizer.betas=[0.9, 1]", "'optimizer.betas': [0.9, 1.0]: both have to be in [0, 1)"),
        ("optimizer.weight_decay=1", "'optimizer.weight_decay': 1.0 is not in [0, 1)"),
        ("optimizer.name=adam", "'optimizer.name': 'adam' is not known; did you mean 'adamw'?"),
        ("optimizer={name: stable_adam}", "'optimizer.name': 'stable_adam' is not known; did you mean 'stable_adamw'?"),
        ("optimizer=adamw", "'optimizer': expected a mapping of keys to values, got str"),
        ("optimizer.name=[adamw]", "'optimizer.name': '['adamw']' is not known"),
        ("optimizer.max_grad_norm=1", "unknown key 'optimizer.max_grad_norm'; known here are name, betas, eps, weight"),
        ("optimizer={name: adamw, max_grad_nrm: 1}", "'optimizer.max_grad_nrm'; did you mean 'max_grad_norm'?"),
        (
            "optimizer={name: adamw, max_grad_norm: 0}",
            "'optimizer.max_grad_norm': 0.0 is not positive and finite; use null",
        ),
        ("optimizer={name: adamw, max_grad_norm: x}", "'optimizer.max_grad_norm': Value 'x'"),
        (
            "stages.decay.optimizer.eps=1",
            "'stages.decay.optimizer.eps': is the same in every stage; a stage may change",
        ),
        ("stages.decay.optimizer.name=adamw", "'stages.decay.optimizer.name': is the same in every stage"),
        (
            "stages.decay.optimizer.weight_dcay=0",
            "'stages.decay.optimizer.weight_dcay': is no argument of stable_adamw",
        ),
        (
            "stages.decay.optimizer.max_grad_norm=1",
            "no argument of stable_adamw that a stage may change; known here are",
        ),
        ("stages.decay.optimizer.weight_decay=2", "'stages.decay.optimizer.weight_decay': 2.0 is not in [0, 1)"),
        ("stages.decay.optimizer.betas=[0.9]", "'stages.decay.optimizer.betas': TupleConfig length 1 does not match"),
        ("stages.decay.optimizer=null", "'stages.decay.optimizer'"),
        ("loggers.tensorbord.x=1", "'tensorbord' is not known"),
        ("save_interval=often", "'save_interval'"),
        ("save_interval=30min", "'30min' is not a time such as 500ba, 1_000_000tok, 1800sec, 30m or 1h30m"),
        ("save_interval=24h", "'24h' is not a time such as 500ba"),
        ("save_interval=0m", "'0m' is not a time such as 500ba"),
        ("stages=[]", "'stages': expected a mapping of keys to values, got a list"),
        ("stages.pretrain.duration=1000000", "such as 1_000_000tok"),
        ("stages.pretrain.duration=0tok", "not positive"),
        ("stages.pretrain.rope_theta=0", "'stages.pretrain.rope_theta': 0 is not a finite number above 0"),
        ("stages.pretrain.t_warmup=5dur", "do not lie within"),
        ("stages.decay.t_warmup=0.1dur", "warm-up and decay together"),
        ("stages.decay.alpha_f=2", "not in [0, 1]"),
        ("stages.decay.t_decay=2dur", "'stages.decay.t_decay': 262_144 tokens do not lie within the stage's 131_072"),
        ("stages.decay.decay_shape=exponential", "'exponential' is not one of one_minus_sqrt, linear, cosine"),
        (
            "stages.pretrain.lr_schedule=[[0tok, 0], [1dur, 1]]",
            "is set, and t_warmup (300_000tok) too; a stage has one or the other: set lr_schedule to null, or",
        ),
        ("stages.decay.lr_schedule=[[0tok, 1], [1dur, 0]]", "set lr_schedule to null, or t_decay to 0tok"),
        ("stages.extend={alpha_f: 0.1, lr_schedule: [[0tok, 1], [1dur, 0]]}", "or alpha_f to 1.0"),
        ("stages.extend.lr_schedule=[]", "expected points [time, factor] with a factor above 0"),
        ("stages.extend.lr_schedule=3", "'stages.extend.lr_schedule'"),
        ("stages.extend.lr_schedule=[0tok, 1dur]", "'0tok' is not a pair [time, factor] such as [0.1dur, 0.5]"),
        ("stages.extend.lr_schedule=[[9tok, 1]]", "begins at 9tok; give the factor at the stage's beginning first"),
        ("stages.extend.lr_schedule=[[0tok, 1], [soon, 0]]", "'soon' is not a number of tokens, such as 1_000_000tok"),
        (
            "stages.extend.lr_schedule=[[0tok, 0], [0.5dur, 1], [49_152tok, 0]]",
            "49_152tok does not come after the time before it, 49_152 tokens; give the times in order",
        ),
        ("stages.extend.lr_schedule=[[0tok, 0], [9tok, -1]]", "the factor at 9tok is -1, which is not in [0, 1]"),
        ("stages.extend.lr_schedule=[[0tok, 0], [9tok, 2]]", "not in [0, 1]; lr is the highest learning rate"),
        ("stages.extend.lr_schedule=[[0tok, 0], [9tok, .nan]]", "the factor at 9tok is nan"),
        ("stages.extend.lr_schedule=[[0tok, 0], [2dur, 1]]", "2dur is 196_608 tokens, which do not lie within the"),
        (
            "stages.extend.lr_schedule=[[0tok, 0], [1dur, 0]]",
            "with a factor above 0; for a warm-up and a decay, set it",
        ),
        ("stages.decay.rope_theta=null", "'stages.decay.rope_theta'"),
        ("stages.anneal={duration: 1tok}", "'stages.anneal.device_train_microbatch_size' is required and not given"),
        ("rollback.at={token: 500_000tok}", "'rollback.at.to' is required and not given"),
        ("rollback.at={token: 50_000tok, to: 90_000tok, lr: 1e-4}", "expected to go back from a token of the plan"),
        ("rollback.at={token: 9_000_000tok, to: 90_000tok, lr: 1e-4}", "expected to go back from a token of the plan"),
        ("rollback.at={token: soon, to: 9tok}", "'rollback.at.token': 'soon' is not a number of tokens"),
        ("rollback.plateu={window: 9tok}", "did you mean 'plateau'?"),
        ("rollback.plateau={window: 9tok, min_delta: 1}", "'rollback.plateau': would repeat the same trajectory"),
        ("rollback.non_finite={data: advance, to: 9tok}", "before the end of the first update at 2_048"),
        ("dist_timeout=1e300", "a week"),
        ("loggers.wandb={init_kwargs: 3}", "'loggers.wandb.init_kwargs'"),
        ("rollback.plateau={window: 9tok, min_delta: 0}", "'rollback.plateau.min_delta': 0.0 is not positive"),
        (
            "rollback.spike={z_score: 6, patience: 3}",
            "'rollback.spike': would repeat the same trajectory; set lr, weight_decay or data: advance",
        ),
        ("rollback.non_finite={}", "'rollback.non_finite': would repeat the same trajectory"),
        ("rollback.non_finite={data: skip}", "'rollback.non_finite.data': 'skip' is not one of replay, advance"),
        ("rollback.max_rollbacks=0", "for no rollbacks, set no trigger"),
        ("data.cache_limit=100gb", "would delete the original shards; set it only with data.remote"),
        ("data.cache_limit=much", "'much' is not a number of bytes such as 500mb"),
        ("data.remote=./data/nano/", "'./data/nano/' is also data.local"),
        ("stages.decay.mixture.books=1", "not among data.sources"),
        ("stages.decay.mixture.code=0", "not positive"),
        ("stages.pretrain.batch_size_ramp.increment=3", "do not reach 6"),
        ("stages.pretrain.batch_size_ramp.initial=8", "not below"),
        ("stages.pretrain.batch_size_ramp.duration=4096tok", "too short for one update at each"),
        ("stages.extend.duration=4096tok", "too short for one update of 2 rows"),
    ],
)
def test_a_wrong_value_is_refused_by_key(override, says):
    with pytest.raises(ConfigurationError) as refused:
        load_recipe(NANO, [override])
    assert says in str(refused.value)
    assert re.match(rf"(?:{NANO}: .*|argument )'.+'", str(refused.value))  # where, and which key
    assert "\n" not in str(refused.value)


def test_checkpoints_by_the_clock_are_refused_where_a_rollback_would_go_back_to_one():
    at = "rollback.at={token: 500_000tok, to: 400_000tok, lr: 1e-4}"
    assert load_recipe(NANO, ["save_interval=30m", at]).save_interval == "30m"
    with pytest.raises(
        ConfigurationError, match=r"'save_interval': '30m' saves by the clock, and rollback\.non_finite"
    ):
        load_recipe(NANO, ["save_interval=30m", "rollback.non_finite={data: advance}"])


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
        ("[" * 100_000, "not valid YAML: while increasing flow level"),
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


def test_a_microbatch_whose_tensors_a_kernel_could_not_count_in_32_bits_is_refused():
    """Triton's rotary kernel overflowed at 144 rows of 8,192 tokens without an error (asafam/HebrewModernBERT@e25b753).

    So did kernels of flash attention (Knowledgator/FlashDeBERTa#11, Dao-AILab/flash-attention#1500).
    """
    rows = [f"stages.extend.{key}=144" for key in ("global_train_batch_size", "device_train_microbatch_size")]
    with pytest.raises(ConfigurationError) as refused:
        load_recipe("yamls/main/base.yaml", rows)
    assert (
        "'stages.extend.device_train_microbatch_size': 144 rows × row_length 8,192 × 1,536 of queries and keys are "
        in (str(refused.value))
    )
    assert str(refused.value).endswith("go wrong silently from 1,073,741,824 on: take at most 85 rows")
    recipe = load_recipe("yamls/main/base.yaml", [*rows, "stages.extend.device_train_microbatch_size=85"])
    assert recipe.stages["extend"].device_train_microbatch_size == 85
    load_recipe("yamls/main/base.yaml", [rows[0].replace("144", "72"), rows[1]])  # an update has no more rows


def test_a_microbatch_with_a_tensor_of_2_to_the_31_elements_is_refused():
    rows = {"pretrain": 4, "extend": 3, "decay": 3}
    most = [f"stages.{name}.device_train_microbatch_size={number}" for name, number in rows.items()]
    recipe = load_recipe("yamls/main/base.yaml", ["model.intermediate_size=32_768", *most])
    assert 3 * recipe.stages["extend"].row_length * 2 * recipe.model.shape.intermediate_size < 2**31
    one_more = "stages.extend.device_train_microbatch_size=4"
    with pytest.raises(ConfigurationError) as refused:
        load_recipe("yamls/main/base.yaml", ["model.intermediate_size=32_768", *most, one_more])
    assert "'stages.extend.device_train_microbatch_size': 4 rows × row_length 8,192 × 65,536 outputs of" in str(
        refused.value
    )
    assert str(refused.value).endswith("a 32-bit index ends before 2,147,483,648: take at most 3 rows")


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
    assert load_recipe(NANO, ["stages.decay={mixture: {web: 1}}"]).stages["decay"].mixture == {"web": 1}
    assert load_recipe(NANO, ["stages.decay.mixture.web=1"]).stages["decay"].mixture == {
        "docs": 0.5,
        "web": 1,
        "code": 0.2,
    }


def test_a_schedule_takes_the_place_of_the_one_before_as_a_whole():
    scheduled = "stages.decay.mlm_probability={start: 0.3, end: 0.1, shape: cosine}"
    anew = load_recipe(NANO, [scheduled, "stages.decay.mlm_probability={start: 0.2, end: 0.1}"])
    assert anew.knobs_of("decay")["mlm_probability"] == {"start": 0.2, "end": 0.1}
    one_entry = load_recipe(NANO, [scheduled, "stages.decay.mlm_probability.end=0.2"])
    assert one_entry.knobs_of("decay")["mlm_probability"] == {"start": 0.3, "end": 0.2, "shape": "cosine"}
    assert (
        load_recipe(NANO, [scheduled, "stages.decay.mlm_probability=0.2"]).knobs_of("decay")["mlm_probability"] == 0.2
    )


def test_a_stage_may_have_shorter_rows_than_the_one_before():
    plan = compile_plan(load_recipe(NANO, ["stages.decay.row_length=1024"]))
    assert [segment.row_length for segment in plan.segments][-2:] == [8192, 1024]


def test_a_recipe_without_a_theta_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"extends: [{NANO.resolve()}]\nstages: {{longer: {{duration: 1_000_000tok, row_length: 8192, lr: 1e-4, "
        "global_train_batch_size: 2, device_train_microbatch_size: 1}}\n"
    )
    with pytest.raises(ConfigurationError, match=r"mine\.yaml: 'stages\.longer\.rope_theta' is required and not given"):
        load_recipe(tmp_path / "mine.yaml")


def test_a_launch_is_refused_before_torch_is_imported():
    program = (
        "import runpy, sys; sys.argv = ['launch', 'yamls/main/nano.yaml', 'seed=x']\n"
        "try: runpy.run_path('launch', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, [name for name in ('torch', 'composer') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "2 []\n", done.stderr


def test_layers_are_compiled_on_a_gpu_unless_the_recipe_says_otherwise():
    recipe = load_recipe(NANO)
    assert recipe.compiled_with("cuda") == {"dynamic": False} and recipe.is_compiled_on("cuda")
    assert not recipe.is_compiled_on("cpu")
    asked = load_recipe(NANO, ["compile_config={disable: true}"])
    assert not asked.is_compiled_on("cuda")
    with pytest.raises(
        ConfigurationError, match=r"'compile_config.dynamc': torch.compile has no such argument; .*dynamic"
    ):
        load_recipe(NANO, ["compile_config={dynamc: true}"])
    assert set(inspect.signature(torch.compile).parameters) - {"model"} <= set(OF_COMPILE)
