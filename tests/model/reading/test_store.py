"""The store of head scores: what it gives is what reading gives, and no file is ever half there or taken for another's.

Most tests read a tiny model; those on damage, processes and kills store made-up numbers.
"""

import contextlib
import copy
import errno
import os
import pickle
import random
import re
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load

from damage import unprivileged
from places import ROOT
from pyterrier_routehead import (
    AttentionHeadScorer,
    ChatMarkup,
    FrozenLLM,
    HeadScoreStore,
    ICRReranker,
    StaticHeadReranker,
    StoreError,
    get_template,
)
from pyterrier_routehead.kernel.scores import ListScores
from pyterrier_routehead.reading.store import kept_store
from store_entries import ARRAYS, LAYERS, assert_holds, assert_same_bits, files, key_of, scores_of, states
from store_writers import Writer, made_up, put_states, put_states_in_processes
from tiny import tiny_model
from toys import byte_tokenizer, toy_llm, two_queries


def read(llm, inp, heads="all", **options):
    """What a scorer gives, and how many lists were read for it."""
    before = llm.document_passes
    out = AttentionHeadScorer(heads, llm=llm, **options)(inp)
    return out, llm.document_passes - before


def passes(llm, store, inp, heads="all", **options):
    """How many lists are read for a request."""
    return read(llm, inp, heads, store=store, **options)[1]


def assert_same_columns(out, other, columns):
    for column in columns:
        for own, expected in zip(out[column], other[column], strict=True):
            assert_same_bits(own, expected)


# What the transformers give


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"document_attention": "blockwise"},
        {"document_order": "best_first", "max_doc_tokens": 5, "prompt": "icr"},
        {"token_filter": "none"},
        {"raw": True, "features": True, "hidden_layers": [1, 3]},
        {"batch_size": 2},
    ],
    ids=str,
)
def test_with_a_store_all_bits_are_as_without_and_nothing_is_read_twice(llm, store, options):
    inp = two_queries()
    expected, _ = read(llm, inp, **options)
    vectors = [name for name in expected.columns if name not in (*inp.columns, "head_reading")]
    for number in (2, 0, 0):
        out, count = read(llm, inp, store=store, **options)
        assert count == number
        assert_same_columns(out, expected, vectors)
        pd.testing.assert_frame_equal(out.drop(columns=vectors), expected.drop(columns=vectors))
    assert len(store) == store.check() == 2


def test_every_request_within_what_was_read_is_found(llm, store):
    inp = two_queries()
    complete, count = read(llm, inp, raw=True, store=store)
    assert count == 2
    before = [(file, file.stat().st_mtime_ns) for file in files(store)]
    for heads, columns in (("all", range(16)), ("1-0,0-2", [4, 2]), ([(3, 1)], [13]), ("2-3,2-2,0-0", [11, 10, 0])):
        for options in ({"raw": True}, {"calibrate": False}, {"token_filter": "none"}, {"batch_size": 2}):
            out, count = read(llm, inp, heads, store=store, **options)
            assert count == 0
            name = "head_scores_raw" if options.get("calibrate") is False else "head_scores"
            for i in range(len(inp)):
                if "token_filter" not in options:
                    assert_same_bits(out["head_scores"][i], complete[name][i][list(columns)])
                if "raw" in options:
                    assert_same_bits(out["head_scores_raw"][i], complete["head_scores_raw"][i][list(columns)])
            plain, _ = read(llm, inp, heads, **options)
            np.testing.assert_allclose(np.stack(out["head_scores"]), np.stack(plain["head_scores"]), atol=1e-6)
    assert [(file, file.stat().st_mtime_ns) for file in files(store)] == before


def test_some_heads_bring_all_of_their_layers_along(llm, store):
    inp = two_queries()
    expected, _ = read(llm, inp, raw=True)
    assert passes(llm, store, inp, "2-1,0-3,1-0,2-2", calibrate=False) == 2
    out, count = read(llm, inp, [(layer, head) for layer in range(3) for head in range(4)], raw=True, store=store)
    assert count == 0
    for column in ("head_scores", "head_scores_raw"):
        for found, complete in zip(out[column], expected[column], strict=True):
            np.testing.assert_allclose(found, complete[:12], atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"calibrate": False}, {"token_filter": "none"}, {"first_stage_weight": 0.5}])
def test_scorers_and_rerankers_find_what_the_other_has_read(llm, store, options):
    inp = two_queries()
    expected = ICRReranker(llm=llm, **options)(inp)
    before = llm.document_passes
    for _ in range(2):
        out = ICRReranker(llm=llm, store=store, **options)(inp)
        np.testing.assert_allclose(out["score"], expected["score"], atol=1e-5)
        assert out["rank"].tolist() == expected["rank"].tolist()
    assert llm.document_passes - before == 2
    out, count = read(llm, inp, store=store)  # calibrated: the store holds that too
    assert count == 0
    assert_same_columns(out, read(llm, inp)[0], ["head_scores"])


def test_deeper_heads_are_read_anew_and_replace_what_was_there(llm, store):
    inp = two_queries()
    for heads, layers in (("0-0", 1), ("1-3,0-1", 2), ("all", 4)):
        out, count = read(llm, inp, heads, store=store)
        assert count == 2
        assert len(store) == store.check() == len(files(store)) == 2
        assert all(f"-{layers}-" in file.name for file in files(store))
        np.testing.assert_allclose(
            np.stack(out["head_scores"]), np.stack(read(llm, inp, heads)[0]["head_scores"]), atol=1e-6
        )
    for heads in ("0-0", "1-3,0-1", "3-2"):
        assert passes(llm, store, inp, heads) == 0


def test_hidden_states_are_kept_through_everything_that_follows(llm, store):
    inp = two_queries()
    expected, _ = read(llm, inp, hidden_layers=[0, 1, 3])
    assert passes(llm, store, inp, "0-0") == 2
    assert passes(llm, store, inp, "1-0", hidden_layers=[1]) == 2  # none were read before
    assert passes(llm, store, inp, "0-1", hidden_layers=[1]) == 0
    assert passes(llm, store, inp, "1-0", hidden_layers=[0]) == 2
    assert passes(llm, store, inp, "1-0", hidden_layers=[1, 0]) == 0
    assert passes(llm, store, inp, "all") == 2  # deeper, without hidden states
    assert passes(llm, store, inp, "all", hidden_layers=[1]) == 0
    out, count = read(llm, inp, "0-0", hidden_layers=[3, 0], store=store)
    assert count == 2
    for found, complete in zip(out["hidden_state"], expected["hidden_state"], strict=True):
        assert_same_bits(found, complete[[2, 0]])
    out, count = read(llm, inp, hidden_layers=[0, 1, 3], store=store)
    assert count == 0
    assert_same_columns(out, expected, ["head_scores", "hidden_state"])
    assert len(store) == store.check() == 2


@pytest.mark.parametrize("known", ["q1", "q2"])
def test_a_batch_of_one_known_and_one_new_list_reads_the_new_one(llm, store, known):
    inp = two_queries()
    expected, _ = read(llm, inp, raw=True)
    assert passes(llm, store, inp[inp["qid"] == known]) == 1
    out, count = read(llm, inp, raw=True, batch_size=2, store=store)
    assert count == 1
    assert_same_columns(out, expected, ["head_scores", "head_scores_raw"])
    assert passes(llm, store, inp, batch_size=2) == 0


# What makes a list another one


def changed(**columns):
    return two_queries().assign(**columns)


ROWS = {
    "queries": (changed(query="what is q3"), 2),
    "one query": (changed(query=["what is q1"] * 5 + ["what is q2?"] * 3), 1),
    "order": (changed(rank=[1, 0, 2, 3, 4, 0, 1, 2]), 1),
    "rows": (two_queries().drop(columns=["rank", "score"])[::-1], 2),
    "text": (changed(text=[*two_queries()["text"][:-1], "tea or coffees"]), 1),
    "empty text": (changed(text=[*two_queries()["text"][:3], "", *two_queries()["text"][4:]]), 1),
    "last candidate": (two_queries()[:-1], 1),
    "first candidate": (two_queries()[1:], 1),
}
TEMPLATES = [
    {"introduction": "Some paragraphs:"}, {"document_tag": "({number})"}, {"instruction": "Find what is relevant."},
    {"query_label": "Q:"}, {"separator": "\n\n\n"}, {"chat": ChatMarkup("<|turn|>", "<|end|>")}, {"span": "text"},
    {"span_overhang": 1}, {"suffix_rows": 1}, {"null_query": "nothing"},
]  # fmt: skip
OPTIONS = [
    {"prompt": "core"}, {"prompt": "icr"}, {"document_order": "best_first"}, {"document_attention": "blockwise"},
    {"max_doc_tokens": 4}, {"title_field": "docno"},
    *({"prompt": replace(get_template("default"), **change)} for change in TEMPLATES),
]  # fmt: skip


@pytest.mark.parametrize(
    ("inp", "options", "count"),
    [*((inp, {}, count) for inp, count in ROWS.values()), *((two_queries(), options, 2) for options in OPTIONS)],
    ids=[*ROWS, *map(str, OPTIONS[:6]), *map(str, TEMPLATES)],
)
def test_other_queries_texts_orders_and_prompts_are_other_lists(llm, store, inp, options, count):
    assert passes(llm, store, two_queries()) == 2
    out, number = read(llm, inp, store=store, **options)
    assert number == count
    assert_same_columns(out, read(llm, inp, **options)[0], ["head_scores"])
    assert passes(llm, store, inp, **options) == passes(llm, store, two_queries()) == 0
    assert store.check() == 2 + count


def test_the_same_ids_read_the_other_way_are_other_lists(llm, store):
    """Neither how documents see each other nor which candidate is which is to be seen in a prompt's ids."""
    inp = two_queries()
    template = replace(get_template("default"), document_tag="[document]")
    for attention in ("listwise", "blockwise"):
        assert passes(llm, store, inp, prompt=template, document_attention=attention) == 2
    backwards = inp[::-1].drop(columns=["rank", "score"])
    out, count = read(llm, backwards, prompt=template, document_order="best_first", store=store)
    assert count == 2
    expected, _ = read(llm, inp, prompt=template)
    for name in ("q1", "q2"):
        own, other = (np.stack(part[part["qid"] == name].sort_index()["head_scores"]) for part in (out, expected))
        np.testing.assert_allclose(own, other, atol=1e-6)


def test_names_rows_scores_and_limits_that_cut_nothing_do_not_matter(llm, store):
    inp = two_queries()
    expected, _ = read(llm, inp, store=store)
    renamed = inp.assign(qid=inp["qid"] + "x", docno=[f"other {i}" for i in range(len(inp))], url="http://x")
    for same in (renamed, inp.assign(score=inp["score"] * 3 - 7), inp.drop(columns="rank")):
        out, count = read(llm, same, store=store)
        assert count == 0
        assert_same_columns(out, expected, ["head_scores"])
    shuffled, count = read(llm, inp.sample(frac=1, random_state=2), store=store)
    assert count == 0
    assert_same_columns(shuffled.sort_index(), expected, ["head_scores"])
    assert passes(llm, store, inp, max_doc_tokens=149) == 0
    assert passes(llm, store, inp, prompt=replace(get_template("default"), name="of another name")) == 0
    assert passes(llm, store, inp.assign(text=" " + inp["text"] + "\n")) == 0  # texts are stripped
    assert passes(llm, store, inp.assign(body=inp["text"]), text_field="body") == 0
    assert store.check() == 2


def altered(llm, layer, parameter="self_attn.q_proj.weight"):
    """The same model but for the first weight of one matrix."""
    model = copy.deepcopy(llm.model)
    model.layers[layer].get_parameter(parameter).data.view(-1)[0] += 1
    return FrozenLLM(model, tokenizer=llm.tokenizer)


def tiny_llm(architecture="Llama", **options):
    return FrozenLLM(tiny_model(architecture, max_position_embeddings=4096, **options), tokenizer=byte_tokenizer())


def scaled(architecture, embeddings, factor):
    """A model with other embeddings."""
    llm = tiny_llm(architecture)
    llm.model.get_submodule(embeddings).weight.data.mul_(factor)
    return llm


MODELS = {
    "query projection": ("Llama", lambda: altered(tiny_llm(), 0)),
    "MLP": ("Llama", lambda: altered(tiny_llm(), 0, "mlp.down_proj.weight")),
    "norm": ("Llama", lambda: altered(tiny_llm(), 0, "input_layernorm.weight")),
    "embeddings": ("Llama", lambda: scaled("Llama", "embed_tokens", 2)),
    "embeddings of positions": ("GPT2", lambda: scaled("GPT2", "wpe", 3)),
    "dtype": ("Llama", lambda: FrozenLLM(tiny_llm().model.bfloat16(), tokenizer=byte_tokenizer())),
}
CONFIGURATIONS = [
    ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
    ("Llama", {"hidden_act": "relu"}),
    ("Llama", {"rms_norm_eps": 0.1}),
    ("Mistral", {"sliding_window": 8}),
    ("Granite", {"attention_multiplier": 1.0}),
    ("Gemma2", {"layer_types": ["full_attention"] * 4}),
    ("Qwen2", {"layer_types": ["sliding_attention"] * 4}),
    ("Qwen2", {"max_window_layers": 0}),
]


@pytest.mark.parametrize(
    ("architecture", "make"),
    [*MODELS.values(), *((name, partial(tiny_llm, name, **changes)) for name, changes in CONFIGURATIONS)],
    ids=[*MODELS, *map(str, CONFIGURATIONS)],
)
def test_other_weights_dtypes_and_configurations_are_other_models(store, architecture, make):
    inp = two_queries()
    llm, other = tiny_llm(architecture), make()
    expected = [read(model, inp)[0] for model in (llm, other)]
    assert not np.array_equal(expected[0]["head_scores"][0], expected[1]["head_scores"][0])
    assert passes(llm, store, inp) == 2
    assert passes(other, store, inp, "0-0") == passes(other, store, inp) == 2
    for model, scores in zip((llm, other), expected, strict=True):
        out, count = read(model, inp, store=store)
        assert count == 0
        assert_same_columns(out, scores, ["head_scores"])
    assert len(store) == store.check() == 4  # each list counts once for each model


def test_a_deeper_entry_takes_the_place_of_one_that_another_model_wrote(llm, store):
    inp = two_queries()
    other = altered(llm, 2)
    assert passes(llm, store, inp, "1-0") == 2
    assert passes(other, store, inp) == 2
    assert passes(llm, store, inp, "1-0") == 0
    assert store.check() == 2


def test_a_model_used_in_part_shares_with_the_whole(llm, store):
    inp = two_queries()
    part = FrozenLLM(llm.model, tokenizer=llm.tokenizer, max_layers=2)
    assert passes(part, store, inp) == 2
    assert passes(llm, store, inp, "1-3") == 0
    assert passes(llm, store, inp) == 2
    out, count = read(part, inp, store=store)
    assert count == 0
    assert [len(vector) for vector in out["head_scores"]] == [8] * len(inp)
    assert store.check() == 2


def test_equal_models_under_any_name_share(llm, store, tmp_path):
    inp = two_queries()
    assert passes(llm, store, inp) == 2
    llm.model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    same = FrozenLLM(tmp_path / "model", dtype="float32")
    assert same.name != llm.name
    assert passes(same, store, inp) == passes(toy_llm(), store, inp) == 0


def test_token_filter_sum_leaves_the_store_alone(llm, store):
    inp = two_queries()
    expected = ICRReranker(llm=llm, token_filter="sum")(inp)["score"]
    before = llm.document_passes
    for _ in range(2):
        out = ICRReranker(llm=llm, token_filter="sum", store=store)(inp)
        np.testing.assert_allclose(out["score"], expected, atol=1e-6)
    assert llm.document_passes - before == 4
    assert len(store) == store.check() == 0


# As an argument


def test_nothing_is_made_before_something_is_read(llm, tmp_path):
    scorer = AttentionHeadScorer(llm=llm, store=tmp_path / "store")
    scorer(two_queries()[:0])
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("kind", [AttentionHeadScorer, ICRReranker, lambda **o: StaticHeadReranker("1-0", **o)])
def test_transformers_with_a_store_are_inspected_and_pickled(llm, store, tmp_path, kind):
    inp = two_queries()
    llm.model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    for own in (store, str(store.path)):
        transformer = kind(llm=FrozenLLM(tmp_path / "model", dtype="float32"), store=own)
        attributes = {attribute.name: attribute.value for attribute in pt.inspect.transformer_attributes(transformer)}
        assert attributes["store"] is own
        assert pt.inspect.subtransformers(transformer) == {}
        assert pt.inspect.transformer_outputs(transformer, list(inp.columns))
        column = "head_scores" if kind is AttentionHeadScorer else "score"
        expected = np.stack(transformer(inp)[column])
        restored = pickle.loads(pickle.dumps(transformer))
        np.testing.assert_array_equal(np.stack(restored(inp)[column]), expected)
        assert restored.llm.document_passes == transformer.llm.document_passes  # nothing was read again
        assert str(HeadScoreStore.of(restored.store).path) == str(store.path)
    assert store.check() == 2


def test_transformers_name_a_damaged_file_and_read_again_once_it_is_deleted(llm, store):
    inp = two_queries()
    expected, _ = read(llm, inp, store=store)
    file = files(store)[0]
    file.write_bytes(file.read_bytes()[:-1])
    for transformer in (AttentionHeadScorer, ICRReranker):
        with pytest.raises(StoreError, match=re.escape(str(file))):
            transformer(llm=llm, store=store)(inp)
    file.unlink()
    out, count = read(llm, inp, store=store)
    assert count == 1
    assert_same_columns(out, expected, ["head_scores"])


# Entries

def test_the_deeper_or_newer_of_two_entries_stays(store):
    key, shallow, deep = key_of(), scores_of(1, layers=2, hidden=(0,)), scores_of(2, hidden=(3,))
    store.put(key, shallow, 2)
    store.put(key, deep, 4)
    assert len(files(store)) == store.check() == 1
    assert_holds(store, key, deep, 4)
    assert_same_bits(store.get(key, 4, [0, 3]).hidden[0], shallow.hidden[0])  # kept
    store.put(key, shallow, 2)  # as by a process that began before the deeper entry was written
    assert len(files(store)) == store.check() == 1
    assert_holds(store, key, deep, 4, (3,))
    newer = scores_of(3, hidden=(1, 3))
    store.put(key, newer, 4)
    assert len(files(store)) == store.check() == 1
    assert_holds(store, key, newer, 4, (1, 3))


def test_models_are_distinguished_by_the_requested_layers(store):
    one, other = key_of(), key_of(fingerprint=(*LAYERS[:2], "aaaaaaaa", "44444444"))
    third = key_of(fingerprint=("bbbbbbbb", *LAYERS[1:]))
    scores = [scores_of(i) for i in range(3)]
    store.put(one, scores[0], 4)
    assert_holds(store, other, scores[0], 2)
    assert store.get(other, 3) is None
    assert store.get(third, 1) is None
    for key, own in ((other, scores[1]), (third, scores[2])):
        store.put(key, own, 4)
    for key, own in zip((one, other, third), scores, strict=True):
        assert_holds(store, key, own, 4)
    assert_holds(store, third, scores[2], 1)
    assert len(store) == store.check() == 3
    known_in_part = key_of(fingerprint=LAYERS[:2])
    assert store.get(known_in_part, 2) is not None


def test_hidden_states_of_layers_that_two_models_share_leave_both_entries_alone(store):
    for number in range(8):  # the order in which a folder lists its files is anybody's guess
        one, other = key_of(number), key_of(number, fingerprint=(*LAYERS[:2], "aaaaaaaa", "bbbbbbbb"))
        scores = scores_of(1), scores_of(2, hidden=(3,))
        store.put(one, scores[0], 4)
        store.put(other, scores[1], 4)
        below = scores_of(3, layers=1, hidden=(0,))
        store.put(other, below, 1)
        assert store.get(other, 1, [0]) is not None
        assert_holds(store, one, scores[0], 4)
        assert_holds(store, other, scores[1], 4, (3,))
        assert store.get(one, 4, [3]) is None  # never read for this model
    assert store.check() == 16


def test_an_entry_says_in_its_file_what_it_is(store):
    store.put(key_of(), scores_of(hidden=(2,)), 4)
    (file,) = files(store)
    assert re.fullmatch(rf"{key_of().digest}-4-[0-9a-f]{{8}}\.safetensors", file.name)
    assert file.parent.name == key_of().digest[:2]
    tensors = load(file.read_bytes())
    assert set(tensors) == set(ARRAYS)
    assert_same_bits(tensors["filtered"], scores_of(hidden=(2,)).filtered)
    (state,) = states(store)
    assert re.fullmatch(rf"{key_of().digest}-3-[0-9a-f]{{8}}\.safetensors", state.name)  # after three layers
    assert state.parent.name == file.parent.name
    assert_same_bits(load(state.read_bytes())["hidden"], scores_of(hidden=(2,)).hidden[2])
    folders = [".writing", "hidden", "pt_meta.json", "store.json", file.parent.name]
    assert sorted(path.name for path in store.path.iterdir()) == sorted(folders)
    assert not list((store.path / ".writing").iterdir())


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_was_put_in_comes_out(data):
    documents, num_heads, layers = (data.draw(st.integers(1, most)) for most in (9, 5, 4))
    shape = (documents, layers * num_heads)
    own = [data.draw(arrays(np.float32, shape, elements=FLOATS)) for _ in range(3)]
    if data.draw(st.booleans()):
        own = [np.asfortranarray(array) for array in own]
    wanted = data.draw(st.lists(st.integers(0, layers - 1), unique=True))
    hidden = {layer: data.draw(arrays(np.float32, data.draw(st.integers(1, 6)), elements=FLOATS)) for layer in wanted}
    key, scores = key_of(data.draw(st.integers()), num_heads=num_heads), ListScores(*own, None, hidden)
    with tempfile.TemporaryDirectory() as folder:
        store = HeadScoreStore(folder)
        store.put(key, scores, layers)
        for number in range(1, layers + 1):
            assert_holds(store, key, scores, number)
        assert_holds(store, key, scores, layers, tuple(wanted))
        assert_holds(HeadScoreStore(folder), key, scores, layers, tuple(reversed(wanted)))
        assert store.get(key, layers + 1) is None
        assert store.get(key_of("another"), 1) is None
        if missing := set(range(layers)) - set(wanted):
            assert store.get(key, 1, [*wanted, min(missing)]) is None
        assert store.check() == len(store) == 1


def test_check_names_everything_that_is_wrong(store):
    for number in range(6):
        store.put(key_of(number), scores_of(number), 4)
    damaged, moved = files(store)[1:3], files(store)[3:]
    for file in damaged:
        file.write_bytes(b"")
    others = [store.path / "notes.txt", store.path / "ab" / "x", store.path / ".hidden", store.path / "new" / "a" / "b"]
    for file in others:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    for file, folder in zip(moved, (".", "zz", "00"), strict=True):
        others.append(store.path / folder / file.name)
        others[-1].parent.mkdir(exist_ok=True)
        file.rename(others[-1])
    for number in range(6):
        if any(file.name.startswith(key_of(number).digest) for file in others):
            assert store.get(key_of(number), 4) is None
    with pytest.raises(StoreError) as refused:
        store.check()
    assert sorted(line.split(" ")[0] for line in str(refused.value).split("\n")) == sorted(map(str, damaged + others))
    for file in others:
        assert f"{file} does not belong to a store of head scores" in str(refused.value)
    assert len(store) == 3  # by their names alone
    for file in damaged + others:
        file.unlink()
    assert store.check() == 1


def test_what_fails_while_it_is_written_leaves_nothing(store, monkeypatch):
    old = scores_of(1, layers=2)
    store.put(key_of(), old, 2)
    for name in ("fsync", "replace"):

        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, name, full)
            with pytest.raises(StoreError, match=r"\.safetensors cannot be written: No space left"):
                store.put(key_of(), scores_of(2), 4)
        assert not list((store.path / ".writing").iterdir())
        assert store.check() == 1
        assert_holds(store, key_of(), old, 2)
    store.put(key_of(), scores_of(2), 4)
    assert_holds(store, key_of(), scores_of(2), 4)


def test_what_a_store_cannot_keep_is_refused(store):
    with pytest.raises(ValueError, match="calibrated scores of all 9 heads of 3 layers"):
        store.put(key_of(), scores_of(layers=4), 3)
    with pytest.raises(ValueError, match="4 layers were run, weights of 2 are known"):
        store.put(key_of(fingerprint=LAYERS[:2]), scores_of(), 4)
    with pytest.raises(ValueError, match="2 layers were run, weights of 4 are known, states are of 4"):
        store.put(key_of(), scores_of(layers=2, hidden=(3,)), 2)


# Folders


def contents(folder):
    return sorted((str(path), path.read_bytes() if path.is_file() else None) for path in folder.rglob("*"))


FOREIGN = ("notes.txt", ".hidden", "3f/x.safetensors", "", "a/b/x")
UNKNOWN = (b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"type": "head_score_store", "format": 2}')


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *((name, b"x", "{} exists and is no store") for name in FOREIGN),
        *(("store.json", content, "{}/store.json") for content in UNKNOWN),
    ],
)
def test_what_is_no_store_is_refused_and_left_alone(tmp_path, name, content, message):
    path = tmp_path / "folder"
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(content)
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=re.escape(message.format(path))):
        HeadScoreStore(path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("made", [[], [""], [".writing"], [".writing/tmpabc"]], ids=str)
def test_a_creation_that_was_interrupted_is_completed(tmp_path, made):
    for name in made:
        path = tmp_path / "store" / name
        (path.parent if name.endswith("abc") else path).mkdir(parents=True)
        if name.endswith("abc"):
            path.write_text('{"ty')
    HeadScoreStore(tmp_path / "store").put(key_of(), scores_of(), 4)
    again = HeadScoreStore(tmp_path / "store")
    assert again.check() == 1
    assert_holds(again, key_of(), scores_of(), 4)


def test_a_store_without_its_folder_for_writing_is_opened(store):
    store.put(key_of(), scores_of(), 4)
    (store.path / ".writing").rmdir()
    opened = HeadScoreStore(store.path)
    opened.put(key_of(1), scores_of(1), 4)
    assert opened.check() == 2


@pytest.fixture
def open_folder():
    """A folder that every user of the machine may look into."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_f44_a_store_that_may_not_be_written_to_is_read_without_its_folder_for_writing(open_folder):
    store, scores = HeadScoreStore(open_folder / "store"), scores_of(hidden=(1,))
    store.put(key_of(), scores, 4)
    (store.path / ".writing").rmdir()
    with unprivileged():
        opened = HeadScoreStore(store.path)
        assert_holds(opened, key_of(), scores, 4, (1,))
        assert len(opened) == opened.check() == 1
        assert opened.get(key_of(1), 1) is None
        with pytest.raises(StoreError, match=re.escape(key_of(1).digest) + ".* cannot be written: Permission denied"):
            opened.put(key_of(1), scores_of(1), 4)
        with pytest.raises(StoreError, match=r"other/store.json cannot be written: Permission denied"):
            HeadScoreStore(open_folder / "other")
    assert not (store.path / ".writing").exists()


def test_f44_what_may_not_be_read_is_named(open_folder):
    store = HeadScoreStore(open_folder / "store")
    store.put(key_of(), scores_of(hidden=(1,)), 4)
    for closed in (*files(store), *states(store), store.path / "store.json", files(store)[0].parent, store.path):
        mode = closed.stat().st_mode
        closed.chmod(0)
        message = f"{re.escape(str(closed))}.* cannot be read: Permission denied"
        with unprivileged(), pytest.raises(StoreError, match=message):
            HeadScoreStore(store.path).get(key_of(), 4, [1])
        closed.chmod(mode)
    assert store.check() == 1


def test_f44_loops_of_links_and_files_for_folders_are_named(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StoreError, match=r"/loop/store.json cannot be read: Too many levels"):
        HeadScoreStore(tmp_path / "loop")
    with pytest.raises(StoreError, match=r"/loop/store/store.json cannot be read: Too many levels"):
        HeadScoreStore(tmp_path / "loop" / "store")
    store = HeadScoreStore(tmp_path / "store")
    store.put(key_of(), scores_of(hidden=(1,)), 4)
    (file,), (state,) = files(store), states(store)
    for own in (file, state):
        for make in (own.symlink_to, lambda _, own=own: own.mkdir(), lambda _, own=own: os.mkfifo(own)):
            own.rmdir() if own.is_dir() else own.unlink()
            make(own)
            for ask in (lambda: store.get(key_of(), 4, [1]), store.check):
                with pytest.raises(StoreError, match=rf"{re.escape(str(own))} cannot be read: \w.*delete it"):
                    ask()
        own.unlink()
        own.parent.rmdir()
        own.parent.symlink_to(own.parent)
        with pytest.raises(StoreError, match=re.escape(str(own.parent))):
            store.check()
        with pytest.raises(StoreError, match=rf"{re.escape(str(own.parent))}.* cannot be "):
            store.put(key_of(), scores_of(hidden=(1,)), 4)
        own.parent.unlink()
        own.parent.write_text("x")
        with pytest.raises(StoreError, match=rf"{re.escape(str(own.parent))} does not belong"):
            store.check()
        with pytest.raises(StoreError, match=rf"{re.escape(str(own.parent))}.* cannot be "):
            store.put(key_of(), scores_of(hidden=(1,)), 4)
        own.parent.unlink()
        store.put(key_of(), scores_of(hidden=(1,)), 4)
    assert store.check() == 1


def test_f22_a_stores_path_is_expanded_and_made_absolute_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert HeadScoreStore("~/scores").path == HeadScoreStore.of(Path("~/scores")).path == tmp_path / "home" / "scores"
    near = HeadScoreStore("near")
    kept = kept_store("near")
    monkeypatch.chdir("/")
    near.put(key_of(), scores_of(), 4)
    assert HeadScoreStore.of(kept).check() == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "near"]


def test_f22_a_store_to_keep_means_the_same_after_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    store = HeadScoreStore("near")
    for same in (None, store, str(tmp_path), tmp_path):
        assert kept_store(same) is same
    assert kept_store("far") == kept_store(Path("far")) == str(tmp_path / "far")  # nothing is made
    assert kept_store("~/far") == str(tmp_path / "home" / "far")
    assert [path.name for path in tmp_path.iterdir()] == ["near"]
    for wrong, error in ((3, TypeError), (True, TypeError), (b"far", TypeError), ("", ValueError)):
        for use in (kept_store, HeadScoreStore.of, HeadScoreStore):
            with pytest.raises(error, match="store is a path, got "):
                use(wrong)


def test_leftovers_go_after_an_hour_and_never_count(store):
    store.put(key_of(), scores_of(), 4)
    (file,) = files(store)
    ages = {"young": 0, "almost": 3500, "old": 3700, "ancient": 10**6, file.name: 3000}
    for name, age in ages.items():
        left = store.path / ".writing" / name
        left.write_bytes(file.read_bytes())
        os.utime(left, (time.time() - age,) * 2)
    assert len(store) == store.check() == 1
    opened = HeadScoreStore(store.path)
    assert {left.name for left in (store.path / ".writing").iterdir()} == {"young", "almost", file.name}
    assert len(opened) == opened.check() == 1
    assert_holds(opened, key_of(), scores_of(), 4)


# Processes


@pytest.fixture(scope="module")
def writers():
    with contextlib.ExitStack() as stack:
        both = [Writer(), Writer()]
        for writer in both:
            stack.callback(writer.close)
        for writer in both:
            writer.wait()
        yield both


def written(path, count):
    """The numbers of the lists that are there, all of which must be right."""
    store = HeadScoreStore(path)
    found = set()
    for number in range(count):
        key, scores = made_up(number)
        if store.get(key, 2, [1]) is not None:
            assert_holds(store, key, scores, 2, (1,))
            found.add(number)
    assert store.check() == len(store) == len(found)
    return found


def kill_again_and_again(writer, path, kills):
    """Kill a writer at random moments, resume, and check after each kill that nothing was lost or done twice."""
    moments = random.Random(kills)
    count = 10 * kills
    reported, there = set(), set()
    for kill in range(kills):
        writer.start(path, count, "resume")
        # The first one may die while it makes the store.
        done, kept = writer.run_until(moments.randrange(1, 6) if kill else 0, pause=moments.uniform(0, 0.008))
        assert not done & there
        assert kept <= there
        reported |= done
        there = written(path, count)
        assert reported <= there
    assert len(there) < count  # so all were killed at work
    writer.start(path, count, "resume")
    done, kept = writer.run_until()
    assert (done, kept) == (set(range(count)) - there, there)
    assert written(path, count) == set(range(count))
    assert len(list(path.glob("??/*"))) == count


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_writer_that_is_killed_loses_nothing_that_it_has_reported(writers, tmp_path, kills):
    kill_again_and_again(writers[0], tmp_path / "store", kills)


@pytest.mark.parametrize("how", ["anew", "resume"])
def test_two_processes_may_write_the_same_lists_at_once(writers, tmp_path, how):
    path, count = tmp_path / "store", 40
    for writer in writers:
        writer.start(path, count, how)
    reports = [writer.run_until() for writer in writers]
    for done, kept in reports:
        assert done | kept == set(range(count))
        assert not done & kept
    if how == "anew":
        assert [len(done) for done, _ in reports] == [count, count]
    assert written(path, count) == set(range(count))
    assert len(list(path.glob("??/*"))) == count
    assert not list((path / ".writing").iterdir())


# Hidden states at once

WORKERS = 4


def assert_all_states_are_there(path):
    store = HeadScoreStore(path)
    lost = []
    for number in range(20):
        key = key_of(number, ("1", "2", "3", "4"))
        for worker in range(WORKERS):
            found = store.get(key, 4, [worker])
            if found is None:
                lost.append((number, worker))
            else:
                assert found.hidden[worker].tolist() == [10 * number + worker] * 3
    assert lost == []
    assert store.check() == len(store) == 20
    assert not list((path / ".writing").iterdir())


def test_f42_threads_that_put_hidden_states_at_once_lose_none(tmp_path):
    start = threading.Barrier(WORKERS)

    def work(worker):
        start.wait()
        put_states(tmp_path / "store", worker)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, range(WORKERS)))
    assert_all_states_are_there(tmp_path / "store")


def test_f42_processes_that_put_hidden_states_at_once_lose_none(tmp_path):
    put_states_in_processes(tmp_path / "store", WORKERS)
    assert_all_states_are_there(tmp_path / "store")


# As an artifact


def test_a_packed_store_comes_back_with_the_same_scores(tmp_path, monkeypatch, address):
    """The functions for the Hub and Zenodo build this package, and take it from an address."""
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path / "home"))
    store = HeadScoreStore(tmp_path / "store")
    store.put(key_of(), scores_of(hidden=(1,)), 4)
    store.put(key_of(1), scores_of(1), 4)
    (store.path / ".writing" / "half").write_bytes(b"half a file")
    (store.path / "notes.txt").write_text("private")
    metadata = {}
    store.build_package(metadata_out=metadata, verbose=False)
    assert metadata == {"type": "head_score_store", "format": "safetensors", "package_hint": "pyterrier-routehead"}
    loaded = HeadScoreStore.from_url(f"{address}/store.tar.lz4")
    assert loaded.path.is_relative_to(tmp_path / "home")
    assert loaded.check() == 2
    assert_holds(loaded, key_of(), scores_of(hidden=(1,)), 4, (1,))
    loaded.put(key_of(2), scores_of(2), 4)
    assert len(loaded) == 3


def test_pyterrier_knows_stores_by_an_entry_point():
    name = ".".join(pt.inspect.artifact_type_format(HeadScoreStore))
    setup = (ROOT / "setup.py").read_text()
    assert f'"{name} = pyterrier_routehead:HeadScoreStore"' in setup


def test_a_store_of_an_earlier_version_is_read_and_packed(tmp_path):
    store = HeadScoreStore(tmp_path / "store")
    store.put(key_of(), scores_of(), 4)
    (store.path / "pt_meta.json").unlink()
    opened = HeadScoreStore(store.path)
    assert opened.check() == 1
    metadata = {}
    opened.build_package(metadata_out=metadata, verbose=False)
    assert metadata["type"] == "head_score_store"


def test_a_copy_of_a_store_holds_the_same(store, tmp_path):
    store.put(key_of(), scores_of(hidden=(1,)), 4)
    copied = store.save(tmp_path / "copy")
    assert copied.check() == 1
    assert_holds(copied, key_of(), scores_of(hidden=(1,)), 4, (1,))
    with pytest.raises(FileExistsError, match="copy exists already"):
        store.save(tmp_path / "copy")


def test_the_card_of_a_store_says_what_it_holds(store):
    store.put(key_of(), scores_of(hidden=(1,)), 4)
    store.put(key_of(1), scores_of(1, layers=2), 2)
    card = store._hf_readme(repo="somebody/scores", metadata={})
    for line in ("lists: 2", "lists of model=m, layers=4: 1", "lists of model=m, layers=2: 1", "hidden states: 1"):
        assert line in card
    assert "HeadScoreStore.from_hf('somebody/scores')" in card
    files(store)[0].write_bytes(b"")
    with pytest.raises(StoreError, match="is damaged"):
        store._hf_readme(repo="somebody/scores", metadata={})
