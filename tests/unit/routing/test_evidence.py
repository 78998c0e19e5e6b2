"""Evidence of a list: rounding errors of its scores do not show."""

import numpy as np
import pytest

from pyterrier_routehead.common.standard import standardised
from pyterrier_routehead.routing.evidence import EVIDENCE, list_evidence

AGREEMENT = EVIDENCE.index("agreement with heads")

CONTRADICTING = np.array(
    [
        [-0.002722269, -0.0014880002, 0.0018396806, 0.0028310977],
        [0.08728188, -0.0404647, 0.027362585, -0.00048407912],
        [-0.002722269, -0.0014880002, 0.0018396806, 0.0028310977],
    ],
    dtype=np.float32,
)
"""A text between two empty ones; two heads point up, two down, so that their mean is 0 but for rounding."""


def test_heads_that_contradict_each_other_agree_with_none_of_them():
    assert np.abs(list_evidence(CONTRADICTING, np.arange(3.0))[:, AGREEMENT]).max() < 1e-9


@pytest.mark.parametrize("tied", [True, False])
def test_rounding_errors_do_not_show(tied):
    generator = np.random.default_rng(0)
    first_stage = np.arange(3.0)
    expected = list_evidence(CONTRADICTING, first_stage)
    for _ in range(100):
        rounded = CONTRADICTING * (1 + 1e-7 * generator.normal(size=CONTRADICTING.shape))
        if tied:
            rounded[2] = rounded[0]
        np.testing.assert_allclose(list_evidence(rounded.astype(np.float32), first_stage), expected, atol=1e-3)


@pytest.mark.parametrize("documents", [3, 4, 7, 20])
@pytest.mark.parametrize("heads", [2, 4, 64])
def test_one_document_among_equals(documents, heads):
    generator = np.random.default_rng(0)
    for _ in range(20):
        vectors = np.zeros((documents, heads))
        signs = generator.permutation(np.repeat([1, -1], heads // 2))
        vectors[generator.integers(documents)] = signs * generator.random(heads) * 0.1
        vectors += generator.normal(size=heads) * 0.01
        evidence = list_evidence(vectors.astype(np.float32), np.arange(float(documents)))
        assert np.abs(evidence[:, AGREEMENT]).max() < 1e-3


def test_otherwise_it_is_the_correlation_with_the_mean():
    vectors = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    standard = standardised(vectors.astype(float))
    expected = [np.corrcoef(standard[:, head], standard.mean(axis=1))[0, 1] for head in range(8)]
    np.testing.assert_allclose(list_evidence(vectors, np.arange(20.0))[:, AGREEMENT], expected, atol=1e-9)
