"""Progress bars: where they were asked for, or where somebody watches and it takes long."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from judged_lists import TRAIN, TRAIN_QRELS, VALID, VALID_QRELS
from pyterrier_routehead import AttentionHeadScorer, CoReHeadReranker, ICRReranker, QRHeadReranker
from pyterrier_routehead.common import progress
from pyterrier_routehead.common.progress import shows_progress, with_progress
from pyterrier_routehead.model import quiet
from pyterrier_routehead.model.quiet import quiet_transformers
from toys import two_queries

pytestmark = pytest.mark.filterwarnings("ignore:on the validation queries, no set that:UserWarning")


@pytest.fixture
def no_delay(monkeypatch):
    monkeypatch.setattr(progress, "_DELAY", 0)


def watch(monkeypatch):
    """Make standard error look like a terminal. In a test itself: pytest changes it after the set-up."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def runs(llm, verbose):
    """Everything that goes through lists, with the name of its bar."""
    scored = AttentionHeadScorer(llm=llm, raw=True, verbose=False)(two_queries())
    for name, transformer in (
        ("AttentionHeadScorer('all')", AttentionHeadScorer(llm=llm, verbose=verbose)),
        ("ICRReranker()", ICRReranker(llm=llm, verbose=verbose)),
        ("CoReHeadReranker('1-0,2-3')", CoReHeadReranker("1-0,2-3", llm=llm, verbose=verbose)),
    ):
        yield name, 2, lambda transformer=transformer: transformer(two_queries())
    yield "ICRReranker()", 2, lambda: ICRReranker(verbose=verbose)(scored)
    for reranker_class in (CoReHeadReranker, QRHeadReranker):
        reranker = reranker_class(llm=llm, verbose=verbose)
        yield f"{reranker_class.__name__}.fit", 4, lambda own=reranker: own.fit(TRAIN, TRAIN_QRELS)
        yield f"{reranker_class.__name__}.fit", 6, lambda own=reranker: own.fit(TRAIN, TRAIN_QRELS, VALID, VALID_QRELS)


def test_f24_bars_that_were_asked_for_are_shown(llm, capsys):
    for name, total, run in runs(llm, True):
        capsys.readouterr()
        run()
        shown = capsys.readouterr().err
        assert f"{name}: 100%" in shown
        assert f"{total}/{total}" in shown


def test_f24_bars_that_nobody_wants_are_not_shown_even_in_a_terminal(llm, capsys, monkeypatch, no_delay):
    watch(monkeypatch)
    for _, _, run in runs(llm, False):
        run()
    assert capsys.readouterr().err == ""


def test_f24_by_default_they_are_shown_in_a_terminal(llm, capsys, monkeypatch, no_delay):
    watch(monkeypatch)
    for name, _, run in runs(llm, None):
        capsys.readouterr()
        run()
        assert f"{name}: 100%" in capsys.readouterr().err


def test_f24_by_default_they_are_not_shown_elsewhere(llm, capsys, no_delay):
    for _, _, run in runs(llm, None):
        run()
    assert capsys.readouterr().err == ""


def test_f24_bars_that_nobody_asked_for_wait_whether_it_takes_long(llm, capsys, monkeypatch):
    watch(monkeypatch)
    for _, _, run in runs(llm, None):
        run()
    assert capsys.readouterr().err == ""  # all that took less than two seconds each
    monkeypatch.setattr(progress, "_DELAY", 0.2)
    shown = []
    for _ in with_progress(range(5), total=5, desc="slow"):
        shown.append("slow" in capsys.readouterr().err)
        time.sleep(0.12)
    assert not shown[0]
    assert not shown[1]
    assert any(shown)


def test_f24_a_notebook_is_somebody(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    for shell, shown in ((None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=1), True)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert shows_progress(None) is shown
    monkeypatch.setattr(sys, "stderr", None)  # as where there is no console
    monkeypatch.delitem(sys.modules, "IPython")
    assert not shows_progress(None)


def test_nothing_to_do_shows_no_bar(llm, capsys):
    ICRReranker(llm=llm, verbose=True)(two_queries().iloc[:0])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("transformer", [AttentionHeadScorer, ICRReranker, CoReHeadReranker, QRHeadReranker])
def test_f23_verbose_is_a_flag(transformer):
    for wrong in ("yes", 1, 0):
        with pytest.raises(TypeError, match=f"verbose is True or False, got {wrong!r}"):
            transformer(verbose=wrong)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_f24_downloads_show_their_bars_where_bars_are_shown(monkeypatch, terminal, wanted):
    monkeypatch.setattr(quiet, "shows_progress", lambda verbose: terminal)
    (enable_progress_bars if wanted else disable_progress_bars)()
    try:
        with quiet_transformers(), quiet_transformers():
            assert not logging.is_progress_bar_enabled()
            assert are_progress_bars_disabled() == (not (wanted and terminal))
        assert logging.is_progress_bar_enabled()
        assert are_progress_bars_disabled() == (not wanted)
    finally:
        enable_progress_bars()


@pytest.mark.parametrize("value", ["0", "1"])
def test_bars_that_the_environment_decides_on_are_no_reason_for_a_warning(value):
    code = "from pyterrier_routehead.model.quiet import quiet_transformers\nwith quiet_transformers(): pass"
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": value}
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
