"""The rotation, against complex numbers and against derivatives by differences; its tables at long positions."""

import pytest
import torch

from rotary_foundry.models.layers.documents import Documents
from rotary_foundry.models.layers.rotary import first_rotary_tables, rotary_tables, rotate

LENGTHS, HEAD_DIM, THETA = (3, 1, 5), 8, 100.0


def frequencies(theta: float, head_dim: int = HEAD_DIM) -> torch.Tensor:
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def test_a_rotation_is_a_product_of_complex_numbers_and_its_backward_pass_is_exact():
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    tables = rotary_tables(Documents(bounds, max(LENGTHS), sum(LENGTHS)), HEAD_DIM, THETA, torch.float64)
    torch.manual_seed(0)
    x = torch.randn(sum(LENGTHS), 2, HEAD_DIM, dtype=torch.float64, requires_grad=True)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    turns = torch.polar(
        torch.ones(len(positions), 1, HEAD_DIM // 2).double(), positions[:, None, None] * frequencies(THETA)
    )
    turned = torch.complex(*x.chunk(2, dim=-1)) * turns
    torch.testing.assert_close(rotate(x, *tables), torch.cat((turned.real, turned.imag), dim=-1))
    assert torch.autograd.gradcheck(lambda x: rotate(x, *tables), x)


@pytest.mark.parametrize("theta", [10_000.0, 160_000.0, 500_000.0])
def test_tables_in_bfloat16_have_angles_in_float32(theta):
    """Angles in bfloat16 would be off by up to 16 at the last of 8,192 positions."""
    cos, sin = first_rotary_tables(8192, HEAD_DIM, theta, torch.bfloat16, torch.device("cpu"))
    angles = torch.arange(8192)[:, None] * frequencies(theta)
    assert cos.shape == sin.shape == (8192, 1, HEAD_DIM)
    for table, exact in ((cos, angles.cos()), (sin, angles.sin())):
        torch.testing.assert_close(table[:, 0, HEAD_DIM // 2 :].double(), exact, rtol=2**-8, atol=6e-4)


def test_tables_in_bfloat16_rotate_32768_positions_almost_as_well_as_bfloat16_can_hold_the_result():
    positions, head_dim, theta = 32_768, 128, 500_000.0
    tables = first_rotary_tables(positions, head_dim, theta, torch.bfloat16, torch.device("cpu"))
    angles = torch.arange(positions)[:, None] * frequencies(theta, head_dim)
    for table, exact in zip(tables, (angles.cos(), angles.sin()), strict=True):
        assert (table[:, 0, head_dim // 2 :] - exact).abs().max() < 4e-3
    torch.manual_seed(0)
    x = torch.randn(positions, 1, head_dim).bfloat16()
    whole = torch.polar(torch.ones_like(angles), angles)[:, None] * torch.complex(*x.double().chunk(2, dim=-1))
    exact = torch.cat((whole.real, whole.imag), dim=-1)
    ours, rounded = ((each - exact).norm() / exact.norm() for each in (rotate(x, *tables), exact.bfloat16()))
    assert rounded < ours < 1.6 * rounded < 0.003
