"""Files of a store: damaged, foreign and old ones. Each is named in an error, or returns exactly what was written."""

import json
import re
import tempfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from damage import flips
from pyterrier_routehead import HeadScoreStore, StoreError
from store_entries import ARRAYS, LAYERS, assert_holds, assert_same_bits, files, flipped, key_of, scores_of, states


def foreign(tensors, metadata=None):
    return save({name: np.ones((2, 12), dtype=np.float32) for name in tensors}, metadata)


def entry_bytes(number):
    """The file of another list."""
    with tempfile.TemporaryDirectory() as folder:
        store = HeadScoreStore(folder)
        store.put(key_of(number), scores_of(number, hidden=(1,)), 4)
        return files(store)[0].read_bytes()


DAMAGE = {
    "a byte short": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "a few bytes": lambda data: data[:5],
    "empty": lambda data: b"",
    "too long": lambda data: data + b"\0",
    "last byte flipped": lambda data: flipped(data, -1),
    "a byte of the numbers flipped": lambda data: flipped(data, -300),
    "the header's length flipped": lambda data: flipped(data, 0),
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"head scores" * 99,
    "another library's file": lambda data: foreign(["weight"], {"format": "pt"}),
    "right tensors, no description": lambda data: foreign(ARRAYS),
    "description of nothing": lambda data: foreign(ARRAYS, {"head_scores": "null"}),
    "description that is no JSON": lambda data: foreign(ARRAYS, {"head_scores": "{"}),
    "tensor missing": lambda data: save(dict([next(iter(load(data).items()))]), {"head_scores": "{}"}),
    "another list's file": lambda data: entry_bytes(77),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_file_is_named(store, damage):
    for number in range(3):
        store.put(key_of(number), scores_of(number, hidden=(1,)), 4)
    (file,) = (file for file in files(store) if file.name.startswith(key_of(1).digest))
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    for ask in (lambda: store.get(key_of(1), 1), lambda: store.get(key_of(1), 4, [1]), store.check):
        with pytest.raises(StoreError, match=re.escape(str(file))) as refused:
            ask()
        assert "delete it" in str(refused.value)
    for number in (0, 2):
        assert_holds(store, key_of(number), scores_of(number, hidden=(1,)), 4, (1,))
    file.unlink()
    assert store.get(key_of(1), 1) is None
    assert store.check() == 2


def with_fitting_checksum(tensors, **changes):
    """An entry's file as the package writes it, but with arrays of any kind and other descriptions."""
    about = {"model": "m", "key": key_of().digest, "layers": 4, "fingerprint": list(LAYERS)} | changes
    about = {name: value for name, value in about.items() if value is not ...}
    total = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].tobytes(), zlib.crc32(f"{name}{tensors[name].shape}".encode(), total))
    return save(tensors, {"head_scores": json.dumps(about | {"checksum": changes.get("checksum", total)})})


def test_a_fitting_checksum_is_what_the_store_writes(store):
    scores = scores_of()
    store.put(key_of(), scores, 4)
    (file,) = files(store)
    file.write_bytes(with_fitting_checksum({name: getattr(scores, name) for name in ARRAYS}))
    assert_holds(store, key_of(), scores, 4)


def refused(store, file, content, message):
    file.write_bytes(content)
    for ask in (lambda: store.get(key_of(), 1), lambda: store.get(key_of(), 4, [1]), store.check):
        with pytest.raises(StoreError, match=f"{re.escape(str(file))} .*{message}"):
            ask()


@pytest.mark.parametrize("kind", ["float16", "float64", "int32", "uint8", "bool"])
def test_f33_scores_of_another_type_are_refused_whatever_the_checksum(store, kind):
    scores = scores_of(hidden=(1,))
    store.put(key_of(), scores, 4)
    (file,) = files(store)
    for name in ARRAYS:
        tensors = {own: getattr(scores, own) for own in ARRAYS}
        tensors[name] = np.ones_like(tensors[name], dtype=kind)
        refused(store, file, with_fitting_checksum(tensors), rf"of float32 \(F32\), found '{name}' of")


def test_f33_a_type_changed_in_the_header_is_refused(store):
    store.put(key_of(), scores_of(hidden=(1,)), 4)
    (file,), (state,) = files(store), states(store)
    for own in (file, state):
        data = own.read_bytes()
        assert b"F32" in data
        own.write_bytes(data.replace(b"F32", b"I32", 1))
        with pytest.raises(StoreError, match=rf"{re.escape(str(own))} is damaged .*I32"):
            store.get(key_of(), 4, [1])
        with pytest.raises(StoreError, match=re.escape(str(own))):
            store.check()
        own.write_bytes(data)
    assert store.check() == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_f33_numbers_that_are_not_finite_are_refused_and_never_kept(store, value):
    scores = scores_of(hidden=(1,))
    store.put(key_of(), scores, 4)
    (file,) = files(store)
    for name in ARRAYS:
        tensors = {own: getattr(scores, own).copy() for own in ARRAYS}
        tensors[name][2, 3] = value
        refused(store, file, with_fitting_checksum(tensors), f"'{name}' are not finite")
        store.put(key_of(2), replace(scores, **{name: tensors[name]}), 4)
        assert store.get(key_of(2), 1) is None
    store.put(key_of(2), replace(scores, hidden={1: np.full(3, value, dtype=np.float32)}), 4)
    assert store.get(key_of(2), 1) is None
    assert len(files(store)) == len(states(store)) == 1


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"raw": (5, 11)}, "shapes"),
        ({"null": (4, 12)}, "shapes"),
        ({"filtered": (60,)}, "shapes"),
        ({"raw": (5, 0), "null": (5, 0), "filtered": (5, 0)}, "shapes"),
        ({"raw": (5, 10), "null": (5, 10), "filtered": (5, 10)}, "shapes"),  # for four layers
        ({"more": (5, 12)}, "its arrays are"),
        ({"hidden.1": (2, 2)}, "hidden.1 has the shape"),
        ({"hidden.01": (2,)}, "its arrays are"),
    ],
    ids=str,
)
def test_f33_scores_of_another_shape_are_refused_whatever_the_checksum(store, shapes, message):
    store.put(key_of(), scores_of(hidden=(1,)), 4)
    (file,) = files(store)
    tensors = {name: np.ones(shapes.get(name, (5, 12)), dtype=np.float32) for name in {*ARRAYS, *shapes}}
    refused(store, file, with_fitting_checksum(tensors), message)


def test_f33_scores_of_another_number_of_heads_are_refused(store):
    store.put(key_of(), scores_of(), 4)
    (file,) = files(store)
    file.write_bytes(with_fitting_checksum({name: np.ones((5, 8), dtype=np.float32) for name in ARRAYS}))
    with pytest.raises(StoreError, match=r"has 8 columns for 4 layers with 3 heads each: delete it"):
        store.get(key_of(), 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": 3}, {"key": None}, {"key": key_of(1).digest}, {"layers": 4.0}, {"layers": True}, {"layers": "4"},
        {"layers": 3}, {"layers": 10**400}, {"fingerprint": "11111111"}, {"fingerprint": list(LAYERS[:3])},
        {"fingerprint": [1, 2, 3, 4]}, {"fingerprint": None}, {"checksum": True}, {"checksum": "1"}, {"model": 3},
        {"key": ...}, {"layers": ...}, {"fingerprint": ...}, {"more": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_f33_descriptions_of_another_type_are_refused_whatever_the_checksum(store, changes):
    scores = scores_of()
    store.put(key_of(), scores, 4)
    (file,) = files(store)
    tensors = {name: getattr(scores, name) for name in ARRAYS}
    refused(store, file, with_fitting_checksum(tensors, **changes), "delete it")


@pytest.mark.parametrize("said", ["[" * 100_000, '{"checksum": NaN}', '{"key": 1, "key": 1}', "9" * 5000], ids=len)
def test_f44_a_description_that_is_no_proper_json_is_named(store, said):
    store.put(key_of(), scores_of(), 4)
    (file,) = files(store)
    refused(store, file, save({"raw": np.ones((2, 12), dtype=np.float32)}, {"head_scores": said}), "is damaged")


def test_f34_no_flipped_bit_of_any_file_gives_anything_else(store):
    key, scores = key_of(fingerprint=LAYERS, num_heads=1), scores_of(layers=2, num_heads=1, documents=2, hidden=(1,))
    store.put(key, scores, 2)
    for file in (*files(store), *states(store), store.path / "store.json"):
        data = file.read_bytes()
        for flipped_ in flips(data, 400):
            file.write_bytes(flipped_)
            try:
                found = HeadScoreStore(store.path).get(key, 2, [1])
            except StoreError as error:
                named = str(file) in str(error)
                assert named
                continue
            assert all((getattr(found, name) == getattr(scores, name)).all() for name in ARRAYS)
            assert (found.hidden[1] == scores.hidden[1]).all()
        file.write_bytes(data)
    assert store.check() == 1


@pytest.mark.parametrize("damage", DAMAGE)
def test_f33_a_damaged_hidden_state_is_named_and_leaves_the_scores_alone(store, damage):
    scores = scores_of(hidden=(1,))
    store.put(key_of(), scores, 4)
    (file,) = states(store)
    data = file.read_bytes()
    file.write_bytes(DAMAGE[damage](data) if damage != "a byte of the numbers flipped" else flipped(data, -20))
    for ask in (lambda: store.get(key_of(), 4, [1]), store.check):
        with pytest.raises(StoreError, match=re.escape(str(file))) as named:
            ask()
        assert "delete it" in str(named.value)
    assert_holds(store, key_of(), scores, 4)
    file.unlink()
    assert store.get(key_of(), 4, [1]) is None
    store.put(key_of(), scores, 4)
    assert_holds(store, key_of(), scores, 4, (1,))


def test_hidden_states_that_an_earlier_version_kept_beside_the_scores_are_found_and_kept(store):
    scores = scores_of(layers=2, hidden=(0, 1))
    store.put(key_of(), scores, 2)
    (file,) = files(store)
    for state in states(store):
        state.unlink()
    tensors = {name: getattr(scores, name) for name in ARRAYS}
    tensors |= {f"hidden.{layer}": state for layer, state in scores.hidden.items()}
    file.write_bytes(with_fitting_checksum(tensors, layers=2, fingerprint=list(LAYERS[:2])))
    assert store.check() == 1
    assert_holds(store, key_of(), scores, 2, (0, 1))
    store.put(key_of(), scores_of(3, hidden=(3,)), 4)  # replaces the entry
    assert len(files(store)) == store.check() == 1
    found = store.get(key_of(), 4, [0, 1, 3])
    for layer in (0, 1):
        assert_same_bits(found.hidden[layer], scores.hidden[layer])
