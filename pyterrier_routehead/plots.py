"""Plots of head sets and of a router's training. They need matplotlib: ``pip install 'pyterrier-routehead[plots]'``."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .detection.head_set import HeadSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_DEFAULT_K = 8
"""Number of heads to mark of a set without k."""


def plot_heads(head_set: HeadSet, *, k: int | None = None, ax: "Axes | None" = None) -> "Axes":
    """Heat map of the heads' scores, layers by heads, with the first k heads marked and numbered.

    Heads without a score are left blank; a set without scores shows the marks alone.

    Args:
        head_set: the set.
        k: number of heads to mark; None: the set's k, or 8 for a set without k.
        ax: axes to draw on; None creates a new figure.

    Raises:
        ImportError: with the install command, if matplotlib is missing.
    """
    ax = _axes(ax, (1.2 + 0.22 * head_set.model.num_layers, 1.2 + 0.22 * head_set.model.num_heads))
    values = np.full((head_set.model.num_heads, head_set.model.num_layers), np.nan)
    for head, score in zip(head_set.heads, head_set.scores or (), strict=False):
        values[head.head, head.layer] = score
    image = ax.imshow(values, origin="lower", aspect="auto", cmap="viridis")
    if head_set.scores:
        criterion = head_set.detection.criterion if head_set.detection else "score"
        ax.figure.colorbar(image, ax=ax, label=criterion)
    for number, head in enumerate(_marked(head_set, k), start=1):
        ax.plot(head.layer, head.head, marker="s", markersize=9, markerfacecolor="none", markeredgecolor="red")
        ax.annotate(str(number), (head.layer, head.head), color="red", fontsize=6, ha="center", va="center")
    ax.set_xlabel("layer")
    ax.set_ylabel("head")
    ax.set_title(head_set.model.name, fontsize="medium")
    return ax


def plot_overlap(head_sets: Mapping[str, HeadSet], *, k: int | None = None, ax: "Axes | None" = None) -> "Axes":
    """The number of common heads of each pair of sets, among their first k, as a labelled matrix.

    Args:
        head_sets: the sets by name.
        k: number of heads of each set to compare; None: each set's k, or 8 for a set without k.
        ax: axes to draw on; None creates a new figure.

    Raises:
        ValueError: without any set, or for sets of models with different shapes, whose heads cannot be compared.
        ImportError: with the install command, if matplotlib is missing.
    """
    if not head_sets:
        raise ValueError("there are no head sets to compare")
    names, sets = list(head_sets), [_marked(head_set, k) for head_set in head_sets.values()]
    if len({(head_set.model.num_layers, head_set.model.num_heads) for head_set in sets}) > 1:
        raise ValueError("the sets are for models with different shapes: their heads cannot be compared")
    ax = _axes(ax, (2 + 0.6 * len(sets), 1.5 + 0.6 * len(sets)))
    common = np.array([[len(set(first_set) & set(second_set)) for second_set in sets] for first_set in sets])
    max_common = k or int(common.max())
    ax.imshow(common, vmin=0, vmax=max_common, cmap="Blues")
    for row, column in np.ndindex(common.shape):
        dark = common[row, column] > 0.6 * max_common
        ax.text(column, row, str(common[row, column]), ha="center", va="center", color="white" if dark else "black")
    ax.set_xticks(range(len(sets)), names, rotation=45, ha="right")
    ax.set_yticks(range(len(sets)), names)
    same_k = k or (max_common if np.all(np.diag(common) == max_common) else None)
    ax.set_title(f"heads in common among {f'the first {same_k}' if same_k else 'those that rank'}", fontsize="medium")
    return ax


def plot_training(report: pd.DataFrame) -> "list[Axes]":
    """A router's training: losses, number of selected heads and held-out nDCG@10 by epoch, the kept epoch marked.

    Args:
        report: ``report_`` of a fitted :class:`RouteHeadReranker`.

    Returns:
        The three axes of a new figure.

    Raises:
        ImportError: with the install command, if matplotlib is missing.
    """
    first = _axes(None, (5, 7))
    figure = first.figure
    first.remove()
    axes = list(figure.subplots(3, sharex=True))
    losses = [name for name in report.columns if name not in ("epoch", "chosen heads", "held-out nDCG@10")]
    trained = report[report["epoch"] > 0]  # the first row is the untrained router, which has no losses
    for name in losses:
        if trained[name].any():
            axes[0].plot(trained["epoch"], trained[name], label=name)
    axes[0].set_ylabel("loss")
    axes[0].legend()
    for ax, name in zip(axes[1:], ("chosen heads", "held-out nDCG@10"), strict=True):
        ax.plot(report["epoch"], report[name])
        ax.set_ylabel(name)
    for ax in axes:
        ax.axvline(report["epoch"].iloc[report["held-out nDCG@10"].argmax()], color="grey", linestyle=":")
    axes[-1].set_xlabel("epoch")
    return axes


def _marked(head_set: HeadSet, k: int | None) -> HeadSet:
    return head_set.top(head_set.k or _DEFAULT_K if k is None else k)


def _axes(ax: "Axes | None", size: tuple[float, float]) -> "Axes":
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'pyterrier-routehead[plots]'") from None
    return plt.figure(figsize=size, layout="constrained").add_subplot() if ax is None else ax
