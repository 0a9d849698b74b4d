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
