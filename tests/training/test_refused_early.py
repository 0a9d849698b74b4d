"""What this machine's torch or GPU cannot do is refused by its key before the ranks connect."""

from collections.abc import Callable

import pytest

from rotary_foundry import Recipe, compile_plan, load_recipe
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


def on_gpu(monkeypatch, name: str, capability: tuple[int, int]) -> None:
    answers = {"is_available": True, "get_device_capability": capability, "get_device_name": name}
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
