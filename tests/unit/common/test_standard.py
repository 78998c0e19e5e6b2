"""Standard scores, and differences that mean nothing."""

import numpy as np

from pyterrier_routehead.common.standard import ATTENTION_NOISE, standardised


def test_scores_that_differ_are_as_they_were():
    scores = np.random.default_rng(1).normal(size=(20, 3))
    expected = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    np.testing.assert_allclose(standardised(scores), expected)
    np.testing.assert_array_equal(standardised(scores, ATTENTION_NOISE), standardised(scores))


def test_rounding_errors_of_equal_documents_are_not_blown_up():
    generator = np.random.default_rng(2)
    scores = 0.01 * (1 + 1e-5 * generator.normal(size=5))
    assert np.abs(standardised(scores)).max() > 1
    assert np.abs(standardised(scores, ATTENTION_NOISE)).max() < 0.05


def test_equal_scores_are_0():
    assert not standardised(np.full(4, 0.1), ATTENTION_NOISE).any()
    assert not standardised(np.zeros(4), ATTENTION_NOISE).any()
