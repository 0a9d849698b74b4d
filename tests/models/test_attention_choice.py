"""Which backend computes: by device, dtype and what is installed; and what is said where a wish cannot be met."""

import pytest
import torch

from rotary_foundry.models.layers import attention as dispatch
from rotary_foundry.models.layers.attention import BACKENDS, attention, check_implementation, choose
from rotary_foundry.recipe.validation import ATTN_IMPLEMENTATIONS
from rotary_foundry.utils.errors import ConfigurationError
from tests.models.peers import our_network, pack
from tests.models.test_attention import documents_of

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(params=[False, True], ids=["without flash-attn", "with flash-attn"])
def flash_attn(monkeypatch, request):
    monkeypatch.setattr(dispatch, "flash_attn_is_installed", lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "chosen"),
    [
        ("auto", "cpu", FP32, "sdpa"),
        ("auto", "cpu", BF16, "sdpa"),
        ("auto", "cuda", BF16, "varlen"),
        ("auto", "cuda", FP16, "varlen"),
        ("auto", "cuda", FP32, "sdpa"),
        ("auto", "mps", FP32, "sdpa"),
        ("varlen", "cuda", BF16, "varlen"),
        ("varlen", "cuda", FP16, "varlen"),
        ("sdpa", "cuda", BF16, "sdpa"),
        ("sdpa", "cuda", FP32, "sdpa"),
        ("sdpa", "cpu", FP32, "sdpa"),
    ],
)
def test_the_choice_whether_or_not_flash_attn_is_installed(asked, device, dtype, chosen, flash_attn):
    assert choose(asked, device, dtype) == chosen


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_flash_is_chosen_where_it_is_asked_for_and_installed(dtype, flash_attn):
    if flash_attn:
        assert choose("flash", "cuda", dtype) == "flash"
    else:
        with pytest.raises(ConfigurationError, match=r"uv pip install --no-build-iso.* -e '.\[gpu\]'; 'varlen' does"):
            choose("flash", "cuda", dtype)


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "says"),
    [
        ("flash", "cuda", FP32, "precision: amp_bf16', or 'sdpa', or 'auto'"),
        ("varlen", "cuda", FP32, "precision: amp_bf16', or 'sdpa', or 'auto'"),
        ("flash", "cpu", BF16, "needs a CUDA GPU.*set 'sdpa' or 'auto'"),
        ("varlen", "cpu", BF16, "needs a CUDA GPU.*set 'sdpa' or 'auto'"),
        ("varlen", "mps", FP16, "needs a CUDA GPU, got mps"),
        ("eager", "cpu", FP32, "'eager' is not known; known here are auto, varlen, flash, sdpa$"),
        ("flex", "cpu", FP32, "'flex' is not known; known here are auto, varlen, flash, sdpa$"),
        ("varlen_attn", "cuda", BF16, "did you mean 'varlen'?"),
        ("spda", "cpu", FP32, "did you mean 'sdpa'?"),
    ],
)
def test_an_impossible_choice_says_what_would_be_right(asked, device, dtype, says, flash_attn):
    with pytest.raises(ConfigurationError, match=says):
        choose(asked, device, dtype)


@pytest.mark.parametrize("asked", ["varlen", "flash"])
def test_training_on_cpu_is_refused_before_it_begins_and_a_forward_as_well(asked):
    with pytest.raises(ConfigurationError, match="needs a CUDA GPU"):
        check_implementation(asked, "cpu", "amp_bf16")
    with pytest.raises(ConfigurationError, match="needs a CUDA GPU"):
        attention(*torch.randn(3, 8, 2, 16), documents_of([8]), None, asked)
    with pytest.raises(ConfigurationError, match="needs a CUDA GPU"):
        our_network(attn_implementation=asked)(*pack(8))


@pytest.mark.parametrize("asked", ["varlen", "flash"])
def test_float32_is_refused_before_training_begins(asked, monkeypatch):
    monkeypatch.setattr(dispatch, "flash_attn_is_installed", lambda: True)
    check_implementation(asked, "cuda", "amp_bf16")
    with pytest.raises(ConfigurationError, match="amp_bf16"):
        check_implementation(asked, "cuda", "fp32")


def test_a_recipe_may_ask_for_what_there_is():
    assert ("auto", *BACKENDS) == ATTN_IMPLEMENTATIONS
