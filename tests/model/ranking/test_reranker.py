"""Re-rankers as their users have them: which heads of a set rank, titles, errors and warnings, copies, grids."""

import copy
import pickle
import warnings

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from frozen_llms import UNLOADED
from judged_lists import QRELS, TRAIN, TRAIN_QRELS, VALID, VALID_QRELS, same_ranking
from pyterrier_routehead import (
    PUBLISHED,
    AttentionHeadScorer,
    CoReHeadReranker,
    FrozenLLM,
    Head,
    HeadSet,
    ICRReranker,
    MismatchError,
    NotFittedError,
    QRHeadReranker,
    StaticHeadReranker,
    paper_settings,
    published_heads,
)
from pyterrier_routehead.reading.reader import model_identity
from pyterrier_routehead.reading.reading import ModelIdentity
from toys import frame, toy_llm, two_queries

# Heads of a random model rank no better than all of them together.
pytestmark = pytest.mark.filterwarnings("ignore:on the validation queries, no set that:UserWarning")
HEADS = "1-0,2-3,0-2"
RERANKERS = [
    pytest.param(lambda **options: StaticHeadReranker(HEADS, **options), id="static"),
    pytest.param(ICRReranker, id="icr"),
    pytest.param(lambda **options: CoReHeadReranker(HEADS, **options), id="core"),
    pytest.param(lambda **options: QRHeadReranker(HEADS, **options), id="qr"),
]
EACH = pytest.mark.parametrize("make", RERANKERS)
FITTED = pytest.mark.parametrize("reranker_class", [CoReHeadReranker, QRHeadReranker])


def ranking_heads(reranker):
    """The heads that a re-ranker ranks lists by that are read list-wise."""
    return reranker._policy("listwise").heads


# How many heads of a set rank


@FITTED
@pytest.mark.parametrize("saved", [False, True])
def test_f5_a_fitted_set_ranks_by_the_k_that_fit_chose(folder, tmp_path, reranker_class, saved):
    reranker = reranker_class(llm=folder, k=[3, 5]).fit(TRAIN, TRAIN_QRELS, VALID, VALID_QRELS)
    chosen = reranker.head_set_.k
    assert chosen in (3, 5)
    expected = reranker(VALID)
    same_ranking(StaticHeadReranker(reranker.head_set_.heads[:chosen], llm=folder)(VALID), expected)
    head_set = HeadSet(reranker.head_set_.save(tmp_path / "set").path) if saved else reranker.head_set_
    assert head_set.k == chosen
    assert len(head_set) == 16
    for other in (StaticHeadReranker, CoReHeadReranker, QRHeadReranker):
        same_ranking(other(head_set)(VALID), expected)
    assert ranking_heads(CoReHeadReranker(head_set, k=7)) == head_set.heads[:7]
    for by in (StaticHeadReranker, CoReHeadReranker):
        for k in (1, 4, 12):
            assert ranking_heads(by(head_set.top(k))) == head_set.heads[:k]


@FITTED
def test_f5_without_a_choice_fit_takes_the_papers_k(llm, reranker_class):
    paper = {CoReHeadReranker: 8, QRHeadReranker: 16}[reranker_class]
    reranker = reranker_class(llm=llm).fit(TRAIN, TRAIN_QRELS)
    assert reranker.head_set_.k == paper
    assert ranking_heads(reranker) == reranker.head_set_.heads[:paper]
    reranker.k = 2  # later, and without a pass over the data
    assert ranking_heads(reranker) == reranker.head_set_.heads[:2]
    assert reranker.head_set_.k == paper


def test_f5_more_heads_than_there_are_is_all_of_them(llm):
    reranker = CoReHeadReranker(llm=llm, k=99).fit(TRAIN, TRAIN_QRELS)
    assert reranker.head_set_.k == 16
    choosing = CoReHeadReranker(llm=llm, k=[99, 120]).fit(TRAIN, TRAIN_QRELS, VALID, VALID_QRELS)
    assert choosing.head_set_.k == 16
    same_ranking(choosing(VALID), ICRReranker(llm=llm)(VALID))


def test_f5_a_set_that_does_not_say_ranks_by_all_its_heads_unless_that_is_icr():
    model = ModelIdentity("no/such-model", ("aa",), 30, 9)
    everything = HeadSet.of([Head(layer, head) for layer in range(30) for head in range(9)], model=model)
    some = HeadSet.of([(layer, 1) for layer in range(20)], model=model)
    for reranker_class, paper in ((CoReHeadReranker, 8), (QRHeadReranker, 16)):
        assert ranking_heads(reranker_class(some)) == some.heads
        assert ranking_heads(reranker_class(everything)) == everything.heads[:paper]
        assert ranking_heads(reranker_class(everything, k=40)) == everything.heads[:40]
        assert ranking_heads(reranker_class(everything, max_layer=3)) == everything.heads[:paper]
    assert ranking_heads(StaticHeadReranker(some)) == some.heads


@pytest.mark.parametrize("full", PUBLISHED)
def test_f5_published_lists_rank_by_as_many_heads_as_they_say(full):
    method, _, name = full.partition("-")
    head_set = published_heads(full)
    own = {"core": CoReHeadReranker, "qr": QRHeadReranker}[method](name)
    for reranker in (own, StaticHeadReranker(full), StaticHeadReranker(head_set), CoReHeadReranker(head_set)):
        assert ranking_heads(reranker) == head_set.ranking.heads
    assert ranking_heads(StaticHeadReranker(head_set.top(11))) == head_set.heads[:11]
    assert ranking_heads(CoReHeadReranker(head_set.top(11))) == head_set.heads[:11]
    assert repr(StaticHeadReranker(full)) == f"StaticHeadReranker({full!r})"


def test_f5_k_and_max_layer_of_a_set(llm):
    head_set = HeadSet.of("3-1,0-2,2-0,1-3,0-0", model=model_identity(llm)).with_k(3)
    assert ranking_heads(CoReHeadReranker(head_set, max_layer=2)) == ((0, 2), (1, 3), (0, 0))
    assert ranking_heads(CoReHeadReranker(head_set, max_layer=2, k=1)) == ((0, 2),)
    assert ranking_heads(CoReHeadReranker(head_set)) == ((3, 1), (0, 2), (2, 0))
    assert repr(StaticHeadReranker(head_set)) == "StaticHeadReranker('3-1,0-2,2-0')"


def test_f5_a_list_of_k_is_for_fit(llm):
    head_set = HeadSet.of("3-1,0-2,2-0", model=model_identity(llm))
    with pytest.raises(ValueError, match=r"k=\[1, 2\] is to be chosen from by fit .*: give one number"):
        CoReHeadReranker(head_set, llm=llm, k=[1, 2])(two_queries())
    fitted = CoReHeadReranker(llm=llm, k=3).fit(TRAIN, TRAIN_QRELS)
    fitted.k = [1, 2]
    with pytest.raises(ValueError, match="give one number"):
        fitted(two_queries())


def test_f5_a_scorer_reads_the_heads_of_a_set_that_rank(folder):
    ranking = HeadSet.of(
        "1-2,0-1,3-3,2-0", model=model_identity(FrozenLLM(folder)), settings={"document_order": "best_first"}
    ).with_k(2)
    scored = AttentionHeadScorer(ranking)(two_queries())  # loads the set's model, as far as is needed
    reading = scored["head_reading"].iloc[0]
    assert reading.heads == ((1, 2), (0, 1))
    assert len(reading.model.fingerprint) == 2
    assert reading.settings.document_order == "best_first"
    same_ranking(StaticHeadReranker(ranking)(scored), StaticHeadReranker(ranking)(two_queries()))
    with pytest.warns(UserWarning, match="document_order='best_last' instead of 'best_first'"):
        by_hand = AttentionHeadScorer(ranking, llm=folder, document_order="best_last")(two_queries())
    assert by_hand["head_reading"].iloc[0].settings.document_order == "best_last"
    assert repr(AttentionHeadScorer(ranking)) == "AttentionHeadScorer('1-2,0-1')"
    with pytest.raises(MismatchError, match=r"the head set is for .*, not for Qwen3Model"):
        AttentionHeadScorer(ranking, llm=toy_llm(architecture="Qwen3"))(two_queries())
    with pytest.raises(ValueError, match=r"token_filter='sum' .*: give token_filter='head'"):
        AttentionHeadScorer(published_heads("core-llama-3.1-8b"))
    AttentionHeadScorer(published_heads("core-llama-3.1-8b"), token_filter="head")


# Titles


TITLED = frame({"q": ["cats sleep", "dogs bark", "tea"]}).assign(title=["Pets", None, "Drinks"])


@EACH
def test_f8_titles_are_read_where_there_are_some(llm, make):
    joined = frame({"q": ["Pets\ncats sleep", "dogs bark", "Drinks\ntea"]})
    with_titles, without = make(llm=llm)(joined), make(llm=llm)(TITLED.drop(columns="title"))
    assert not np.allclose(with_titles["score"], without["score"], atol=1e-4)
    same_ranking(make(llm=llm)(TITLED), with_titles)
    same_ranking(make(llm=llm, title_field="title")(TITLED), with_titles)
    same_ranking(make(llm=llm, title_field=None)(TITLED), without)
    renamed = TITLED.rename(columns={"title": "headline"})
    same_ranking(make(llm=llm, title_field="headline")(renamed), with_titles)
    same_ranking(make(llm=llm)(renamed), without)
    as_text = TITLED.assign(title=joined["text"]).drop(columns="text")
    same_ranking(make(llm=llm, text_field="title")(as_text), with_titles)  # not as its own title too
    with pytest.raises(pt.validate.InputValidationError, match="headline"):
        make(llm=llm, title_field="headline")(TITLED)


@EACH
@pytest.mark.parametrize(
    ("read", "asked", "agree"),
    [
        (inp, asked, asked in ("auto", read))
        for inp, read in (("auto", "title"), ("title", "title"), (None, None))
        for asked in ("auto", None, "title", "headline")
    ],
)
def test_f8_titles_by_hand_must_be_those_that_were_read(llm, make, read, asked, agree):
    scored = AttentionHeadScorer(llm=llm, title_field=read)(TITLED)
    if agree:
        same_ranking(make(title_field=asked)(scored), make(llm=llm, title_field=read)(TITLED))
    else:
        with pytest.raises(MismatchError, match=f"title_field={asked!r} was asked for, .* read with title_field="):
            make(title_field=asked)(scored)


@FITTED
def test_f8_fit_reads_titles_as_ranking_does(llm, reranker_class):
    titled = two_queries().assign(title="a title")
    joined = titled.assign(text=titled["title"] + "\n" + titled["text"]).drop(columns="title")
    found = reranker_class(llm=llm).fit(titled, QRELS).head_set_
    np.testing.assert_allclose(found.scores, reranker_class(llm=llm).fit(joined, QRELS).head_set_.scores, atol=1e-6)
    scored = AttentionHeadScorer(llm=llm, raw=True)(titled)
    with pytest.raises(MismatchError, match="title_field=None was asked for"):
        reranker_class(llm=llm, title_field=None).fit(scored, QRELS)


# Arguments


@EACH
@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *(("depth", value, TypeError) for value in ("5", 2.0, True)),
        *(("batch_size", value, TypeError) for value in (None, "2", True)),
        *(("max_doc_tokens", value, TypeError) for value in ("9", 9.5, True)),
        *(("calibrate", value, TypeError) for value in ("no", 1)),
        *(("first_stage_weight", value, TypeError) for value in ("1", None, True)),
        *((name, 3, TypeError) for name in ("document_order", "document_attention", "token_filter", "prompt")),
        *((name, 3, TypeError) for name in ("text_field", "title_field", "store", "llm")),
        *(("verbose", value, TypeError) for value in ("yes", 1)),
        *((name, value, ValueError) for name in ("depth", "batch_size", "max_doc_tokens") for value in (0, -1)),
        *(("first_stage_weight", value, ValueError) for value in (float("nan"), float("inf"))),
        *((name, "odd", ValueError) for name in ("document_order", "document_attention", "token_filter", "prompt")),
        *((name, "", ValueError) for name in ("text_field", "title_field")),
    ],
)
def test_f23_wrong_arguments_are_refused_by_their_names_at_once_and_when_set_later(make, name, value, error):
    pattern = f"^(there is no )?{name} "
    with pytest.raises(error, match=pattern):
        make(**{"llm": UNLOADED, name: value})
    later = make(llm=UNLOADED)
    setattr(later, name, value)
    with pytest.raises(error, match=pattern):
        later(two_queries())


@pytest.mark.parametrize(
    ("heads", "error", "message"),
    [
        (None, TypeError, "heads are missing: 'all', a list of heads, a HeadSet, or the name of one"),
        (3, TypeError, "heads are .*, got 3"),
        ([], ValueError, "the set of heads is empty"),
        ("7", ValueError, "'7' does not name a head"),
        ("llama", ValueError, "'llama' does not name a head"),
        ("core-gpt-7", ValueError, "CoReHeadReranker knows no 'gpt-7': .*'llama-3.1-8b'"),
        ("9-0", ValueError, "no head 9-0"),
    ],
)
def test_f23_static_heads_are_refused_by_name(llm, heads, error, message):
    def made():
        reranker = StaticHeadReranker(heads, llm=llm)
        if heads == "9-0":  # the model tells
            reranker(two_queries())

    with pytest.raises(error, match=message):
        made()


@pytest.mark.parametrize("make", [RERANKERS[0], RERANKERS[2], RERANKERS[3]])
@pytest.mark.parametrize("value", ["yes", 1, None])
def test_f23_allow_mismatch_is_a_flag(make, value):
    with pytest.raises(TypeError, match=f"^allow_mismatch is True or False, got {value!r}"):
        make(allow_mismatch=value)


# Errors and warnings


def test_f31_an_unfitted_reranker_is_a_runtime_error_that_lists_names():
    for make, name in (
        (CoReHeadReranker, "'llama-3.1-8b'.*'smollm2-135m'"),
        (QRHeadReranker, "'llama-3.2-3b'.*'lme-llama-3.2-3b'.*'smollm2-135m'"),
    ):
        said = rf"^{make.__name__} has no heads yet: fit it, .*{name}.*available\(\)"
        with pytest.raises(NotFittedError, match=said):
            make(llm=UNLOADED)(two_queries())
    assert issubclass(NotFittedError, RuntimeError)
    assert issubclass(MismatchError, ValueError)


def test_f31_mismatches_are_told_before_anything_is_ranked(llm):
    """The second query's scores were read otherwise."""
    scored = [AttentionHeadScorer(llm=llm, document_order=o)(two_queries()) for o in ("best_first", "best_last")]
    mixed = pd.concat([scored[0].iloc[:5], scored[1].iloc[5:]])
    with pytest.raises(MismatchError, match=r"document_order='best_first' was asked for, .* with 'best_last'"):
        ICRReranker(document_order="best_first")(mixed)
    head_set = HeadSet.of("1-2,0-1", model=model_identity(llm), settings={"document_order": "best_first"})
    with pytest.raises(MismatchError, match="document_order='best_last' instead of 'best_first'; allow_mismatch=True"):
        StaticHeadReranker(head_set)(mixed)
    assert len(StaticHeadReranker(head_set, allow_mismatch=True)(mixed)) == 8


def warned(run):
    """The warnings of this package while something runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [one for one in caught if one.category is UserWarning]


@pytest.mark.parametrize("verbose", [False, True])
def test_f31_warnings_point_at_the_users_line(llm, verbose):
    other = HeadSet.of("1-2,0-1", model=model_identity(llm), settings={"document_order": "best_first"})
    long = frame({"long": [f"document {i} says {'x' * i}" for i in range(20)]})
    window = StaticHeadReranker(HEADS, llm=toy_llm(context=420), verbose=verbose)
    settings = StaticHeadReranker(other, llm=llm, document_order="best_last", verbose=verbose)
    topics = long[["qid", "query"]].drop_duplicates()
    pipeline = pt.Transformer.from_df(long) >> window
    for message, run in (
        ("ranked in sliding windows", lambda: window(long)),
        ("ranked in sliding windows", lambda: list(window(long.to_dict("records")))),
        ("ranked in sliding windows", lambda: pipeline(topics)),
        ("were read with other settings than set by hand", lambda: settings(two_queries())),
        (
            "no set that CoReHeadReranker found ranks better",
            lambda: CoReHeadReranker(llm=llm, k=16, verbose=verbose).fit(TRAIN, TRAIN_QRELS, VALID, VALID_QRELS),
        ),
    ):
        (own,) = warned(run)
        assert message in str(own.message)
        assert own.filename == __file__


# Copies, pickles, grids


def test_an_unfitted_policy_says_what_frames_need():
    assert pt.inspect.transformer_inputs(CoReHeadReranker(llm=UNLOADED, first_stage_weight=1.0)) == [
        ["qid", "docno", "head_scores", "head_reading", "score"],
        ["qid", "docno", "query", "text", "score"],
    ]


@EACH
def test_attributes_can_be_applied(llm, make):
    changes = {"depth": 2, "title_field": None, "first_stage_weight": 0.5, "document_order": "best_first"}
    changed = pt.inspect.transformer_apply_attributes(make(llm=llm, text_field="body"), **changes)
    assert {name: getattr(changed, name) for name in changes} == changes
    assert (changed.llm, changed.text_field) == (llm, "body")
    inp = two_queries().rename(columns={"text": "body"})
    same_ranking(changed(inp), make(llm=llm, text_field="body", **changes)(inp))
    with pytest.raises(ValueError, match="depth must be an integer >= 1"):
        pt.inspect.transformer_apply_attributes(make(llm=llm), depth=0)


@EACH
def test_copies_and_pickles_rank_alike_and_hold_no_weights(folder, make):
    inp = two_queries()
    reranker = make(llm=folder, depth=4)
    expected = reranker(inp)
    assert len(pickle.dumps(reranker)) < 5_000
    for other in (copy.copy(reranker), copy.deepcopy(reranker), pickle.loads(pickle.dumps(reranker))):
        assert repr(other) == repr(reranker)
        assert other != reranker
        same_ranking(other(inp), expected)
        other.depth = 1
        assert reranker.depth == 4


@FITTED
def test_copies_and_pickles_of_fitted_rerankers_are_fitted(folder, reranker_class):
    data = TRAIN, TRAIN_QRELS, VALID, VALID_QRELS
    reranker = reranker_class(llm=folder, k=[2, 3], max_layer=3).fit(*data)
    expected = reranker(VALID)
    for other in (copy.copy(reranker), copy.deepcopy(reranker), pickle.loads(pickle.dumps(reranker))):
        assert other.head_set_ == reranker.head_set_
        pd.testing.assert_frame_equal(other.validation_, reranker.validation_)
        same_ranking(other(VALID), expected)
        assert set(vars(other)) == set(vars(reranker))
    again = pt.inspect.transformer_apply_attributes(reranker, k=2)  # made anew from its arguments
    with pytest.raises(NotFittedError):
        again(VALID)


def test_rerankers_hold_arguments_and_what_they_learnt_and_nothing_else(llm):
    reranker = CoReHeadReranker(llm=llm, k=[1, 2])
    before = dict(vars(reranker))
    reranker.fit(TRAIN, TRAIN_QRELS, VALID, VALID_QRELS)
    kept = dict(vars(reranker))
    assert set(kept) - set(before) == {"head_set_", "validation_"}
    reranker(two_queries())
    reranker(AttentionHeadScorer(llm=llm)(VALID))
    assert vars(reranker) == kept


GRID_QRELS = pd.DataFrame({"qid": ["q1", "q2"], "docno": ["q1-d3", "q2-d2"], "label": [1, 1]})


@pytest.mark.parametrize("behind", [False, True])
def test_grids_set_public_attributes_which_are_heeded(llm, behind):
    inp = two_queries()
    topics = inp[["qid", "query"]].drop_duplicates()
    first = pt.Transformer.from_df(inp)
    first = first >> AttentionHeadScorer(llm=llm) if behind else first
    reranker = StaticHeadReranker("0-0", llm=llm)
    grid = {"heads": ["0-0", "3-1,2-2", "all"], "depth": [2, 5], "first_stage_weight": [0.0, 1.0]}
    scan = pt.GridScan(first >> reranker, {reranker: grid}, topics, GRID_QRELS, ["map"], verbose=False)
    assert len(scan) == 12
    for row in scan.to_dict("records"):
        values = {name: next(value for key, value in row.items() if str(key).endswith(name)) for name in grid}
        by_hand = first >> StaticHeadReranker(llm=llm, **values)
        (expected,) = pt.Experiment([by_hand], topics, GRID_QRELS, ["map"], verbose=False)["map"]
        assert row["map"] == pytest.approx(expected)
    assert scan["map"].nunique() > 3


def test_grid_search_leaves_the_best_setting_and_fit_heeds_it(llm):
    inp = two_queries()
    topics = inp[["qid", "query"]].drop_duplicates()
    fitted = CoReHeadReranker(llm=llm).fit(TRAIN, TRAIN_QRELS)
    pipeline = pt.Transformer.from_df(inp) >> fitted
    grid = {"k": [1, 4, 16], "max_layer": [None, 1]}
    scan = pt.GridScan(pipeline, {fitted: grid}, topics, GRID_QRELS, ["map"], verbose=False)
    best = pt.GridSearch(pipeline, {fitted: grid}, topics, GRID_QRELS, "map", verbose=False)
    (value,) = pt.Experiment([best], topics, GRID_QRELS, ["map"], verbose=False)["map"]
    assert value == pytest.approx(scan["map"].max())
    assert scan["map"].nunique() > 1
    assert ranking_heads(fitted) == tuple(
        [head for head in fitted.head_set_.heads if fitted.max_layer is None or head.layer < 1][: fitted.k]
    )


@EACH
def test_paper_settings_are_arguments_of_every_reranker(llm, make):
    for method in ("icr", "qr", "core"):
        out = make(llm=llm, **paper_settings(method))(two_queries())
        assert np.isfinite(out["score"]).all()
