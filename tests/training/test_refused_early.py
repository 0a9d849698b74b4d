"""What this machine's torch or GPU cannot do is refused by its key before the ranks connect."""

from collections.abc import Callable

import pytest

from rotary_foundry import Recipe, compile_plan, load_recipe
from rotary_foundry.models.layers import attention, attention_flash, attention_varlen
from rotary_foundry.training import run
from rotary_foundry.utils.errors import ConfigurationError

NANO = "yamls/main/nano.yaml"


class Connects(Exception):
    """The ranks would connect now."""


def connect(*_: object, **__: object) -> None:
    raise Connects


@pytest.fixture
def start(monkeypatch, tmp_path) -> Callable[..., None]:
    """Train a recipe up to where the ranks connect."""
    monkeypatch.setattr(run.dist, "initialize_dist", connect)

    def begin(*overrides: str) -> None:
        recipe: Recipe = load_recipe(NANO, [f"runs_folder={tmp_path}", *overrides])
        run.train(recipe, compile_plan(recipe), tokenizer=None)

    return begin


@pytest.fixture(autouse=True)
def nothing_known_of_gpus():
    """Forget what this process has found out about the GPU, before and after each test."""
    known = (attention_varlen._activated, attention_flash.has_flash_attention_3)
    for function in known:
        function.cache_clear()
    yield
    for function in known:
        function.cache_clear()


def on_gpu(monkeypatch, name: str, capability: tuple[int, int]) -> None:
    answers = {"is_available": True, "set_device": None, "get_device_capability": capability, "get_device_name": name}
    for function, answer in answers.items():
        monkeypatch.setattr(run.torch.cuda, function, lambda *_, answer=answer: answer)


@pytest.mark.parametrize("implementation", ["auto", "varlen"])
def test_an_attention_that_this_gpu_cannot_run_is_refused(start, monkeypatch, implementation):
    overrides = ("precision=amp_bf16", f"model.attn_implementation={implementation}", "compile_config={disable: true}")
    on_gpu(monkeypatch, "Tesla T4", (7, 5))
    with pytest.raises(ConfigurationError) as refused:
        start(*overrides)
    assert str(refused.value).startswith(
        "'model.attn_implementation': the kernels of 'varlen' need compute capability 8.0 (Ampere), and Tesla T4 has "
        "7.5; set precision: fp32"
    )
    with pytest.raises(Connects):
        start(*overrides, "precision=fp32", "model.attn_implementation=auto")
    on_gpu(monkeypatch, "NVIDIA A100", (8, 0))
    with pytest.raises(Connects):
        start(*overrides)


IN_BF16 = ("precision=amp_bf16", "compile_config={disable: true}")


def of_head_size(size: int) -> tuple[str, str]:
    return f"model.hidden_size={2 * size}", "model.num_attention_heads=2"


@pytest.mark.parametrize("size", [12, 512])
def test_a_head_size_that_the_kernels_do_not_take_is_refused(start, monkeypatch, size):
    on_gpu(monkeypatch, "NVIDIA A100", (8, 0))
    with pytest.raises(ConfigurationError) as refused:
        start(*IN_BF16, *of_head_size(size))
    assert str(refused.value) == (
        "'model.num_attention_heads': the kernels of 'varlen' take heads of a multiple of 8, at most 256, got "
        f"{size} (hidden_size / num_attention_heads); set another number of heads, or model.attn_implementation: sdpa"
    )
    for taken in (of_head_size(256), (*of_head_size(size), "model.attn_implementation=sdpa")):
        with pytest.raises(Connects):
            start(*IN_BF16, *taken)


@pytest.mark.parametrize("hopper", [False, True])
def test_flash_attention_2_pads_heads_and_3_does_not(start, monkeypatch, tmp_path, hopper):
    """The packages are files that have only their names."""
    for package in ("flash_attn", "flash_attn_interface"):
        (tmp_path / f"{package}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(attention, "flash_attn_is_installed", lambda: True)
    on_gpu(monkeypatch, "a GPU", (9, 0) if hopper else (8, 0))
    flash = (*IN_BF16, "model.attn_implementation=flash")
    with pytest.raises(ConfigurationError, match=r"the kernels of 'flash' .*at most 256, got 512"):
        start(*flash, *of_head_size(512))
    with pytest.raises(ConfigurationError if hopper else Connects):
        start(*flash, *of_head_size(12))


def test_a_flash_attention_3_that_torch_cannot_load_is_refused(start, monkeypatch, tmp_path):
    (tmp_path / "flash_attn_interface.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    on_gpu(monkeypatch, "NVIDIA H100", (9, 0))
    with pytest.raises(
        ConfigurationError,
        match=r"^'model.attn_implementation: varlen': torch .* cannot load flash_attn_interface \(FA3\): .*_ZN3c10; ",
    ):
        start(*IN_BF16)
    with pytest.raises(Connects):
        start(*IN_BF16, "model.attn_implementation=sdpa")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("{mode: quickly}", "quickly"),
        ("{backend: nothing}", "nothing"),
        ("{options: {no_such_option: 1}}", "no_such_option"),
    ],
)
def test_what_torch_compile_refuses_is_refused_with_its_reason(start, arguments, says):
    with pytest.raises(ConfigurationError, match=rf"^'compile_config': torch\.compile refuses \{{.*\}}: .*{says}"):
        start(f"compile_config={arguments}")


@pytest.mark.parametrize("arguments", ["null", "{}", "{dynamic: true}", "{mode: max-autotune}"])
def test_what_torch_compile_takes_is_not(start, arguments):
    with pytest.raises(Connects):
        start(f"compile_config={arguments}")
