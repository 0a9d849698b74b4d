"""The law of loss and context is recovered from losses that follow it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotary_foundry.evaluation.power_law import Law, fit

CONTEXT = 128.0 * 2 ** np.arange(7)


@given(drop=st.floats(0.05, 5), beta=st.floats(0.1, 2.5), gamma=st.floats(0.2, 8))
def test_alpha_beta_and_gamma_are_recovered(drop, beta, gamma):
    alpha = 128 * drop ** (1 / beta)
    found = fit(CONTEXT, Law(alpha, beta, gamma)(CONTEXT))
    assert found.beta == pytest.approx(beta, rel=0.01)
    assert found.gamma == pytest.approx(gamma, rel=0.01, abs=0.01)
    assert np.log(found.alpha) == pytest.approx(np.log(alpha), abs=0.3)


PUBLISHED = {  # α, β and γ, and what they say at 4,096, 16,384 and 32,768 tokens (arXiv 2309.16039, figure 1)
    "7b": (Law(25.4, 0.45, 1.56), [1.6615, 1.6144, 1.5998]),
    "13b": (Law(19.5, 0.48, 1.45), [1.5268, 1.4895, 1.4783]),
    "34b": (Law(17.7, 0.50, 1.41), [1.4757, 1.4429, 1.4332]),
    "70b": (Law(17.9, 0.51, 1.35), [1.4126, 1.3809, 1.3717]),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_published_curves_of_llama_2_long_are_recovered_from_their_losses(model):
    law, losses = PUBLISHED[model]
    np.testing.assert_allclose(law(np.array([4096.0, 16384.0, 32768.0])), losses, atol=5e-5)
    context = 128.0 * 2 ** np.arange(9)  # to 32,768
    found = fit(context, law(context))
    assert found == pytest.approx(law, rel=1e-4)


def test_noise_moves_the_law_a_little():
    true = Law(20.0, 0.5, 3.0)
    found = fit(CONTEXT, true(CONTEXT) + np.random.default_rng(0).normal(0, 0.002, size=7))
    assert found.beta == pytest.approx(0.5, abs=0.1)
    assert found.gamma == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize("loss", [np.full(7, 4.0), 4 + np.arange(7) / 10])
def test_a_loss_that_does_not_fall_has_no_law(loss):
    found = fit(CONTEXT, loss)
    assert found.alpha == pytest.approx(0, abs=1e-3)
    assert found.gamma == pytest.approx(loss.mean())
