"""Which backend computes: by device, dtype and what is installed; and what is said where a wish cannot be met."""

import pytest
import torch

from rotary_foundry.models.layers.attention import attention, check_implementation, choose
from rotary_foundry.utils.errors import ConfigurationError
from tests.models.peers import our_network, pack
from tests.models.test_attention import documents_of

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "flash_attn", "chosen"),
    [
        ("auto", "cpu", FP32, False, "sdpa"),
        ("auto", "cpu", BF16, True, "sdpa"),
        ("auto", "cuda", BF16, True, "flash"),
        ("auto", "cuda", FP16, True, "flash"),
        ("auto", "cuda", FP32, True, "flex"),
        ("auto", "cuda", BF16, False, "flex"),
        ("auto", "mps", FP32, False, "sdpa"),
        ("flash", "cuda", BF16, True, "flash"),
        ("flex", "cuda", BF16, True, "flex"),
        ("flex", "cuda", FP32, False, "flex"),
        ("sdpa", "cuda", BF16, True, "sdpa"),
        ("sdpa", "cpu", FP32, False, "sdpa"),
    ],
)
def test_the_choice(asked, device, dtype, flash_attn, chosen):
    assert choose(asked, device, dtype, flash_attn) == chosen


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "flash_attn", "says"),
    [
        ("flash", "cuda", BF16, False, r"pip install --no-build-isolation -e '.\[gpu\]'"),
        ("flash", "cuda", FP32, True, "precision: amp_bf16"),
        ("flash", "cpu", BF16, True, "needs a CUDA GPU.*give 'sdpa' or 'auto'"),
        ("flex", "cpu", FP32, False, "needs a CUDA GPU.*give 'sdpa' or 'auto'"),
        ("eager", "cpu", FP32, False, "'eager' is not one of auto, flash, flex, sdpa"),
    ],
)
def test_an_impossible_choice_says_what_would_be_right(asked, device, dtype, flash_attn, says):
    with pytest.raises(ConfigurationError, match=says):
        choose(asked, device, dtype, flash_attn)


@pytest.mark.parametrize("asked", ["flash", "flex"])
def test_training_on_cpu_is_refused_before_it_begins_and_a_forward_as_well(asked):
    with pytest.raises(ConfigurationError, match="needs a CUDA GPU"):
        check_implementation(asked, "cpu", "amp_bf16")
    with pytest.raises(ConfigurationError, match="needs a CUDA GPU"):
        attention(*torch.randn(3, 8, 2, 16), documents_of([8]), None, asked)
    with pytest.raises(ConfigurationError, match="needs a CUDA GPU"):
        our_network(attn_implementation=asked)(*pack(8))


def test_flash_with_float32_is_refused_before_training_begins(monkeypatch):
    monkeypatch.setattr("rotary_foundry.models.layers.attention.flash_attn_is_installed", lambda: True)
    check_implementation("flash", "cuda", "amp_bf16")
    with pytest.raises(ConfigurationError, match="amp_bf16"):
        check_implementation("flash", "cuda", "fp32")
