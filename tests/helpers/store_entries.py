"""Made-up entries of a store of head scores, and comparisons with what the store returns."""

import hashlib

import numpy as np

from pyterrier_routehead.kernel.scores import ListScores
from pyterrier_routehead.reading.store import StoreKey

ARRAYS = ("raw", "null", "filtered")
LAYERS = ("11111111", "22222222", "33333333", "44444444")


def assert_same_bits(one, other):
    assert one.dtype == other.dtype == np.float32
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


def files(store):
    return sorted(store.path.glob("??/*"))


def states(store):
    """The files of hidden states."""
    return sorted(store.path.glob("hidden/??/*"))


def key_of(number=0, fingerprint=LAYERS, num_heads=3):
    return StoreKey(hashlib.sha256(str(number).encode()).hexdigest(), tuple(fingerprint), num_heads, {"model": "m"})


def scores_of(number=0, layers=4, num_heads=3, documents=5, hidden=()):
    numbers = np.random.default_rng(number)
    raw, null, filtered = numbers.standard_normal((3, documents, layers * num_heads), dtype=np.float32)
    states = {layer: numbers.standard_normal(7, dtype=np.float32) for layer in hidden}
    return ListScores(raw, null, filtered, None, states)


def assert_holds(store, key, scores, layers, hidden=()):
    """The store gives exactly the first layers of these scores."""
    found = store.get(key, layers, hidden)
    assert found is not None
    for name in ARRAYS:
        expected = np.ascontiguousarray(getattr(scores, name)[:, : layers * key.num_heads])
        assert_same_bits(getattr(found, name), expected)
    assert list(found.hidden) == list(hidden)
    for layer in hidden:
        assert_same_bits(found.hidden[layer], scores.hidden[layer])
    assert found.summed is None


def flipped(data, place):
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)
