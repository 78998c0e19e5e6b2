"""Importing the package, and what it promises about its modules."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pyterrier_routehead

PACKAGE = Path(pyterrier_routehead.__file__).parent


def test_importing_is_quick_and_loads_neither_torch_nor_transformers(tmp_path):
    code = (
        "import pyterrier, time, sys; start = time.process_time(); import pyterrier_routehead;"
        "print(time.process_time() - start, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    # As on a user's machine: what the first run compiles is kept for the others.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment) for _ in range(3)
    ]
    seconds, torch, transformers = zip(*(run.stdout.split() for run in runs), strict=True)
    assert set(torch) == set(transformers) == {"False"}
    assert min(map(float, seconds)) < 0.1


def test_modules_import_only_from_those_above_them():
    """The order of the modules in the package's docstring is the order of the method."""
    order = [line.split("``")[1] for line in pyterrier_routehead.__doc__.splitlines() if line.startswith("``")]
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert set(order) == modules
    for module in modules:
        tree = ast.parse((PACKAGE / f"{module}.py").read_text())
        tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if TYPE_CHECKING:")]
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}
        below = {name for name in imported if order.index(name) >= order.index(module)}
        assert not below, f"{module} imports {below}, which the docstring lists below it"


def test_public_names_exist():
    assert all(hasattr(pyterrier_routehead, name) for name in pyterrier_routehead.__all__)
    assert (PACKAGE / "py.typed").exists()
