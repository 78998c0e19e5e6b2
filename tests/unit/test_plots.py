"""Plots of head sets: what is drawn where."""

import io
import sys

import numpy as np
import pandas as pd
import pytest

from pyterrier_routehead import Detection, HeadSet, plot_heads, plot_overlap, plot_training, published_heads
from pyterrier_routehead.reading.reading import ModelIdentity

matplotlib = pytest.importorskip("matplotlib")
MODEL = ModelIdentity("org/model", (), 5, 3)
HEADS, SCORES = ["4-1", "0-2", "2-0", "0-0"], [0.9, 0.5, 0.25, 0.125]


@pytest.fixture(autouse=True)
def plt():
    """Pyplot without a display; figures are drawn, since some warnings come only then, and closed."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    for number in plt.get_fignums():
        plt.figure(number).savefig(io.BytesIO(), format="png")
    plt.close("all")


def some_set(heads=HEADS, scores=SCORES, model=MODEL):
    return HeadSet.of(heads, model=model, scores=scores, detection=Detection("core", {}, "some train", 2))


def marks(ax):
    """Number of each marked head, by layer and head."""
    places = {(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines}
    numbers = {annotation.xy: annotation.get_text() for annotation in ax.texts}
    assert places == set(numbers)
    return {(layer, head): int(number) for (layer, head), number in numbers.items()}


def test_scores_stand_at_their_layer_and_head_and_the_rest_is_blank():
    ax = plot_heads(some_set())
    (image,) = ax.images
    drawn = image.get_array()
    assert drawn.shape == (3, 5)  # heads up, layers across
    for (layer, head), score in zip([(4, 1), (0, 2), (2, 0), (0, 0)], SCORES, strict=True):
        assert drawn[head, layer] == score
    assert np.isfinite(np.ma.filled(drawn, np.nan)).sum() == 4
    assert image.origin == "lower"
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("layer", "head", "org/model")


def test_the_chosen_heads_are_marked_and_numbered():
    assert marks(plot_heads(some_set(), k=2)) == {(4, 1): 1, (0, 2): 2}
    assert marks(plot_heads(some_set())) == {(4, 1): 1, (0, 2): 2, (2, 0): 3, (0, 0): 4}


def test_f5_as_many_heads_are_marked_as_rank():
    assert marks(plot_heads(some_set().with_k(2))) == {(4, 1): 1, (0, 2): 2}
    assert len(marks(plot_heads(some_set().with_k(2), k=3))) == 3
    assert len(marks(plot_heads(published_heads("qr-nq-llama-3.2-1b")))) == 16
    assert len(marks(plot_heads(published_heads("qr-nq-llama-3.2-1b").with_k(None)))) == 8


def test_f5_overlap_is_that_of_the_heads_that_rank():
    sets = {"one": some_set().with_k(1), "two": some_set(["0-0", "4-1", "3-1"], None).with_k(2)}
    ax = plot_overlap(sets)
    np.testing.assert_array_equal(ax.images[0].get_array(), [[1, 1], [1, 2]])
    assert ax.get_title() == "heads in common among those that rank"
    assert plot_overlap(sets, k=2).get_title() == "heads in common among the first 2"
    alike = plot_overlap({name: own.with_k(2) for name, own in sets.items()})
    assert alike.get_title() == "heads in common among the first 2"


def test_the_colour_bar_says_the_criterion():
    figure = plot_heads(some_set()).figure
    assert [ax.get_ylabel() for ax in figure.axes] == ["head", "core"]


def test_a_set_without_scores_shows_the_marks_alone():
    ax = plot_heads(some_set(scores=None), k=3)
    assert marks(ax) == {(4, 1): 1, (0, 2): 2, (2, 0): 3}
    assert len(ax.figure.axes) == 1
    assert len(marks(plot_heads(published_heads("core-phi-4")))) == 8


def test_plots_go_where_they_are_told(plt):
    figure, (left, right) = plt.subplots(ncols=2)
    assert plot_heads(some_set(), ax=left) is left
    assert plot_overlap({"a": some_set(), "b": some_set()}, ax=right) is right
    assert plt.get_fignums() == [figure.number]


def test_overlap_counts_common_heads_among_the_first():
    sets = {"one": some_set(), "two": some_set(["0-0", "4-1", "3-1"], None), "three": some_set(["1-1"], None)}
    ax = plot_overlap(sets, k=3)
    shown = {(text.get_position()[1], text.get_position()[0]): int(text.get_text()) for text in ax.texts}
    expected = np.array([[3, 1, 0], [1, 3, 0], [0, 0, 1]])
    assert shown == {place: expected[place] for place in np.ndindex(3, 3)}
    np.testing.assert_array_equal(ax.images[0].get_array(), expected)
    for axis in (ax.xaxis, ax.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == list(sets)
    assert "first 3" in ax.get_title()


def test_sets_of_unlike_models_have_no_overlap():
    other = some_set(model=ModelIdentity("org/other", (), 5, 4))
    with pytest.raises(ValueError, match="different shapes"):
        plot_overlap({"a": some_set(), "b": other})


def test_no_heads_to_mark_are_refused():
    for plot, sets in ((plot_heads, some_set()), (plot_overlap, {"a": some_set()})):
        with pytest.raises(ValueError, match="number of heads >= 1"):
            plot(sets, k=0)


def test_without_matplotlib_the_install_command_is_given(monkeypatch):
    for module in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, module, None)
    for plot, sets in ((plot_heads, some_set()), (plot_overlap, {"a": some_set()})):
        with pytest.raises(ImportError, match=r"pip install 'pyterrier-routehead\[plots\]'"):
            plot(sets)
    monkeypatch.undo()  # the fixture draws with it


def test_training_is_drawn_with_the_kept_epoch_marked():
    losses = {"loss": [0.0, 3, 2, 1], "labels": [0.0, 2, 1, 0.5], "ranking": [0.0] * 4}
    went = {"chosen heads": [8.0, 7, 6, 5], "held-out nDCG@10": [0.3, 0.5, 0.4, 0.5]}
    report = pd.DataFrame({"epoch": [0, 1, 2, 3], **losses, **went})
    losses, heads, quality = plot_training(report)
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["loss", "labels"]  # what took part
    assert losses.lines[0].get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
    assert heads.lines[0].get_ydata().tolist() == [8, 7, 6, 5]
    assert quality.lines[0].get_ydata().tolist() == [0.3, 0.5, 0.4, 0.5]
    for ax in (losses, heads, quality):
        assert ax.lines[-1].get_xdata() == [1, 1]  # the first of the best
    assert quality.get_xlabel() == "epoch"
