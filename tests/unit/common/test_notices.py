"""Warnings point at the line of the user's that led to them, whatever stands between."""

import inspect
import sys
import textwrap
from types import ModuleType
from unittest.mock import patch

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_routehead.common.notices import warn


def written_in(module, source):
    """What this source defines, as if it stood in that module."""
    made = ModuleType(module)
    made.warn = warn
    with patch.dict(sys.modules, {module: made}):  # where dataclasses look for what their __init__ needs
        exec(compile(textwrap.dedent(source), f"{module}.py", "exec"), vars(made))
    return vars(made)


INSIDE = written_in(
    "pyterrier_routehead.some_module",
    """
    import contextlib
    import dataclasses
    import functools

    import pyterrier as pt

    from pyterrier_routehead.common.progress import with_progress

    def tell(run=None):
        warn("look") if run is None else run()

    class Holder:
        @functools.cached_property
        def value(self):
            tell()

    @contextlib.contextmanager
    def scope():
        tell()
        yield

    def enter():
        with scope():
            pass

    @dataclasses.dataclass
    class Record:
        value: int = 0

        def __post_init__(self):
            tell()

    class Tells(pt.Transformer):
        def transform(self, inp):
            tell(tell)
            return inp

    def items():
        tell()
        yield 1

    def go_through(verbose):
        list(with_progress(items(), total=1, desc="some", verbose=verbose))
    """,
)
tell = INSIDE["tell"]


def place_of(run):
    """Where the warning points that calling this leads to."""
    with pytest.warns(UserWarning, match="look") as caught:
        run()
    (own,) = (warning for warning in caught if str(warning.message) == "look")
    return own.filename, own.lineno


def here():
    return __file__, inspect.currentframe().f_back.f_lineno


def test_f31_a_warning_points_out_of_the_package():
    assert place_of(lambda: tell()) == here()
    assert place_of(lambda: tell(tell)) == here()
    assert place_of(lambda: tell(lambda: tell())) == here()  # the innermost line of the user's


@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_f31_pyterrier_is_no_users_line():
    frame = pd.DataFrame({"qid": ["1"], "query": ["a"]})
    pipeline = pt.Transformer.identity() >> INSIDE["Tells"]()
    assert place_of(lambda: pipeline(frame)) == here()


@pytest.mark.parametrize("name", ["enter", "Record"])
def test_f31_what_the_package_calls_through_is_no_users_line(name):
    assert place_of(lambda: INSIDE[name]()) == here()
    assert place_of(lambda: INSIDE["Holder"]().value) == here()


@pytest.mark.parametrize("verbose", [True, False])
def test_f31_a_progress_bar_is_no_users_line(verbose, capsys):
    assert place_of(lambda: INSIDE["go_through"](verbose)) == here()
    assert ("some" in capsys.readouterr().err) == verbose


@pytest.mark.parametrize("module", ["pyterrier_routehead_examples", "pyterrier_dr.models", "__main__", "tqdm_like"])
def test_f31_a_neighbour_by_name_is_a_users_file(module):
    run = written_in(module, "def run(tell):\n    tell()\n")["run"]
    assert place_of(lambda: run(tell)) == (f"{module}.py", 2)
