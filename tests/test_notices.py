"""Warnings point at the line of the user's that led to them, whatever stands between."""

import contextlib
import functools
import inspect

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_routehead import notices
from pyterrier_routehead.progress import with_progress


def inside(name):
    """A function that warns, as if it stood in this package, in a file of that name."""
    source = "def tell(run=None):\n    return warn('look') if run is None else run()\n"
    namespace = {"warn": notices.warn}
    exec(compile(source, f"{notices._INSIDE[0]}{name}.py", "exec"), namespace)
    return namespace["tell"]


def line_of(run):
    """Where a warning points, beside the line on which this function was called."""
    with pytest.warns(UserWarning, match="look") as told:
        run()
    (own,) = (one for one in told if str(one.message) == "look")
    return own.filename, own.lineno


def here():
    return __file__, inspect.currentframe().f_back.f_lineno


def test_f31_a_warning_points_out_of_the_package():
    tell = inside("some_module")
    assert line_of(lambda: tell()) == here()
    assert line_of(lambda: tell(lambda: tell())) == here()  # the innermost line of the user's


@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_f31_pyterrier_is_no_users_line():
    tell = inside("some_module")
    frame = pd.DataFrame({"qid": ["1"], "query": ["a"]})

    class Tells(pt.Transformer):
        def transform(self, inp):
            tell(tell)
            return inp

    Tells.transform.__code__ = Tells.transform.__code__.replace(co_filename=f"{notices._INSIDE[0]}other.py")
    pipeline = pt.Transformer.identity() >> Tells()
    assert line_of(lambda: pipeline(frame)) == here()


def test_f31_what_the_package_calls_through_is_no_users_line():
    tell = inside("some_module")

    class Holder:
        value = functools.cached_property(lambda self: tell())

    Holder.value.func.__code__ = Holder.value.func.__code__.replace(co_filename=f"{notices._INSIDE[0]}other.py")
    assert line_of(lambda: Holder().value) == here()

    @contextlib.contextmanager
    def scope():
        tell()
        yield

    scope.__wrapped__.__code__ = scope.__wrapped__.__code__.replace(co_filename=f"{notices._INSIDE[0]}other.py")

    def enter():
        with scope():
            pass

    filename, _ = line_of(enter)
    assert filename == __file__


@pytest.mark.parametrize("verbose", [True, False])
def test_f31_a_progress_bar_is_no_users_line(verbose, capsys):
    tell = inside("some_module")

    def items():
        tell()
        yield 1

    items.__code__ = items.__code__.replace(co_filename=f"{notices._INSIDE[0]}other.py")
    assert line_of(lambda: tell(lambda: list(with_progress(items(), total=1, desc="some", verbose=verbose)))) == here()
    assert ("some" in capsys.readouterr().err) == verbose


def test_f31_a_neighbour_by_name_is_a_users_file():
    """A folder whose name begins as the package's is not in it."""
    tell = inside("some_module")
    source = "def run(tell):\n    tell()\n"
    namespace = {}
    neighbour = notices._INSIDE[0].rstrip("/\\") + "_examples/own.py"
    exec(compile(source, neighbour, "exec"), namespace)
    assert line_of(lambda: namespace["run"](tell)) == (neighbour, 2)
