"""Scaled positions are transformers' to the bit, and the theory of Llama 2 Long (arXiv 2309.16039) holds of ours."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rotary_foundry.models.layers.documents import Documents
from rotary_foundry.models.layers.rope_scaling import PLAIN, RopeScaling, scaled_frequencies
from rotary_foundry.models.layers.rotary import rotary_tables
from rotary_foundry.models.llama.shape import SCALINGS
from rotary_foundry.models.theta_bound import smallest_theta

CPU = torch.device("cpu")
WINDOW = 4096


def frequencies(theta, scaling=PLAIN, head_dim=128, dtype=torch.float32):
    return scaled_frequencies(head_dim, theta, scaling, dtype, CPU)


def their_config(head_dim, **rope):
    return LlamaConfig(
        hidden_size=2 * head_dim, num_attention_heads=2, max_position_embeddings=WINDOW, rope_parameters=rope
    )


THEIRS = {  # by method: their name, and their further keys
    "none": ("default", {}),
    "linear": ("linear", {"factor": 8.0}),
    "yarn": ("yarn", {"factor": 8.0, "original_max_position_embeddings": WINDOW}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("method", THEIRS)
def test_tables_are_transformers_to_the_bit(method, head_dim, theta, dtype):
    name, keys = THEIRS[method]
    theirs = LlamaRotaryEmbedding(their_config(head_dim, rope_type=name, rope_theta=theta, **keys))
    lengths = (8 * WINDOW, 100)
    documents = Documents(torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32), max(lengths), sum(lengths))
    scaling = RopeScaling(method, keys.get("factor", 1.0), keys.get("original_max_position_embeddings"))
    cos, sin = rotary_tables(documents, head_dim, theta, dtype, scaling)
    expected_cos, expected_sin = theirs(torch.empty(0, dtype=dtype), documents.positions[None])
    half = head_dim // 2
    assert cos.dtype == dtype
    assert torch.equal(cos.squeeze(1), expected_cos[0])
    assert torch.equal(sin.squeeze(1)[:, half:], expected_sin[0, :, half:])
    assert torch.equal(sin.squeeze(1)[:, :half], -expected_sin[0, :, :half])  # signed, for a rotation by halves


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_ntk_is_transformers_dynamic_where_it_has_reached_the_factor(factor, theta):
    """Theirs grows with the length: to factor · length / window − (factor − 1) times the context."""
    reached = WINDOW * (2 * factor - 1) / factor
    config = their_config(128, rope_type="dynamic", rope_theta=theta, factor=factor)
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, CPU, seq_len=reached)
    found, magnitude = frequencies(theta, RopeScaling("ntk", factor))
    assert torch.equal(found, expected) and magnitude == 1
    plain, _ = frequencies(theta)
    assert found[0] == plain[0] and (plain[-1] / found[-1]).item() == pytest.approx(factor, rel=1e-4)


@pytest.mark.parametrize("method", SCALINGS)
def test_at_a_factor_of_1_every_method_is_the_plain_rotation(method):
    found, magnitude = frequencies(10_000.0, RopeScaling(method, 1.0, WINDOW))
    torch.testing.assert_close(found, frequencies(10_000.0)[0], rtol=1e-6, atol=0)
    assert magnitude == 1


def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones():
    found, magnitude = frequencies(10_000.0, RopeScaling("yarn", 8.0, WINDOW), dtype=torch.float64)
    plain, _ = frequencies(10_000.0, dtype=torch.float64)
    turns = WINDOW * plain / (2 * math.pi)
    assert torch.equal(found[turns > 40], plain[turns > 40])
    torch.testing.assert_close(found[turns < 0.8], plain[turns < 0.8] / 8, rtol=1e-12, atol=0)
    assert ((plain / found).diff() >= -1e-12).all()
    assert magnitude == pytest.approx(0.1 * math.log(8) + 1)


# The appendix B of Llama 2 Long, at a head size of 128. ABF is a theta 50 times larger.
ROPE, ABF = (10_000.0, PLAIN), (500_000.0, PLAIN)
PI_4, PI_8 = ((10_000.0, RopeScaling("linear", factor)) for factor in (4.0, 8.0))


@pytest.mark.parametrize(("positions", "distance"), [(ROPE, 0.109), (ABF, 0.0788), (PI_4, 0.0290), (PI_8, 0.0146)])
def test_abf_keeps_neighbours_further_apart_than_interpolation(positions, distance):
    """The mean of sin(w_j) over the pairs; the appendix approximates it by 0.076 for ABF and 0.027 for PI at 1/4."""
    found, _ = frequencies(*positions, dtype=torch.float64)
    assert found.sin().mean().item() == pytest.approx(distance, abs=5e-4 if positions == ROPE else 5e-5)


@pytest.mark.parametrize(
    ("positions", "scores"),
    [(ROPE, (11.31, -0.1, -0.3)), (PI_8, (11.31, 1.2, 2.4)), (ABF, (11.31, 3.3, 2.1))],
    ids=["theta 10,000", "interpolated by 8", "theta 500,000"],
)
def test_attention_decays_with_distance_as_in_figure_4(positions, scores):
    """The score of a query and a key of ones, at distances of 0, 5,000 and 10,000 tokens."""
    found, _ = frequencies(*positions, dtype=torch.float64)
    for distance, score in zip((0, 5_000, 10_000), scores, strict=True):
        assert 2 * (distance * found).cos().sum().item() / 128**0.5 == pytest.approx(score, abs=0.06)


@pytest.mark.parametrize(("length", "published"), [(4096, 2.7e4), (8192, 8.4e4), (16_384, 3.1e5), (32_768, 6.4e5)])
def test_the_smallest_theta_is_that_of_the_papers_table(length, published):
    """arXiv 2405.14591, table 2, for heads of 128; smaller heads need a larger theta."""
    assert smallest_theta(length, 128) == pytest.approx(published, rel=0.15)
    assert smallest_theta(length, 64) > smallest_theta(length, 128)


def test_at_the_smallest_theta_no_distance_within_the_row_has_a_negative_sum():
    theta = smallest_theta(4096, 64)
    for value, holds in ((theta, True), (0.95 * theta, False)):
        found, _ = frequencies(value, head_dim=64, dtype=torch.float64)
        sums = (torch.arange(4097)[:, None] * found).cos().sum(dim=1)
        assert bool((sums >= 0).all()) == holds
