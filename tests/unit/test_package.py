"""Importing the package, and what it promises about its modules."""

import ast
import importlib
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pyterrier_routehead
from places import DATA, ROOT

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


def listed(package) -> list[str]:
    """The modules and folders that a docstring lists, in its order."""
    return [line.split("``")[1] for line in package.__doc__.splitlines() if line.startswith("``")]


def modules() -> list[str]:
    """All modules in the order of the method, as ``folder.module``."""
    found = []
    for name in listed(pyterrier_routehead):
        folder = PACKAGE / name
        if folder.is_dir():
            inside = listed(importlib.import_module(f"pyterrier_routehead.{name}"))
            found += [f"{name}.{module}" for module in inside]
        else:
            found.append(name)
    return found


def imports(module: str) -> set[str]:
    """What a module imports of the package, at its top or in functions, but not for its types alone."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if TYPE_CHECKING:")]
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    folder = module.split(".")[:-1]
    return {".".join([*folder[: len(folder) - node.level + 1], node.module]) for node in relative}


def test_modules_import_only_from_those_above_them():
    order = modules()
    assert set(order) == {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    for module in order:
        below = {name for name in imports(module) if order.index(name) >= order.index(module)}
        assert not below, f"{module} imports {below}, which the docstrings list below it"


def test_torch_is_imported_at_the_top_where_tensors_are_alone():
    with_torch = set()
    for module in modules():
        for node in ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.partition(".")[0] in ("torch", "transformers") for name in names):
                with_torch.add(module)
    kernel = {f"kernel.{name}" for name in ("exact", "visibility", "attention", "passes", "late")}
    assert with_torch == kernel | {"model.twin", "model.engine", "model.check", "routing.training"}


def test_what_frames_carry_can_be_read_by_later_versions():
    """A reading that was pickled before there were folders."""
    reading = pickle.loads((DATA / "reading_before_folders.pkl").read_bytes())
    assert reading.columns("1-3") == [1]
    assert (reading.settings.prompt.chat.prefix, reading.title_field) == ("<u>", None)
    assert reading == pickle.loads(pickle.dumps(reading))


def test_public_names_exist():
    assert all(hasattr(pyterrier_routehead, name) for name in pyterrier_routehead.__all__)
    assert (PACKAGE / "py.typed").exists()




def declared() -> dict[str, set[str | None]]:
    """The distributions that setup.py names, those of the extras included, and their lower bounds."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    keywords = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "keywords"]
    others = {constant for keyword in keywords for constant in ast.walk(keyword)}
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in others]
    strings = [constant for constant in constants if isinstance(constant, str)]
    found: dict[str, set[str | None]] = {}
    for string in strings:
        if named := re.fullmatch(r"([A-Za-z][\w-]+)(?:>=([\d.]+))?", string):
            found.setdefault(normalised(named[1]), set()).add(named[2])
    return found


def pinned(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    pins = [line.partition(";")[0].strip().split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {normalised(name): version for name, version in pins}


def normalised(name: str) -> str:
    return name.lower().replace("_", "-")


def numbers(version: str) -> list[int]:
    parts = [int(part) for part in version.split(".")]
    while parts[-1:] == [0]:
        parts.pop()
    return parts


def test_f30_every_lower_bound_is_what_the_minimum_job_installs():
    oldest = pinned("constraints-min.txt")
    for name, bounds in declared().items():
        for bound in bounds - {None}:
            if name != "torch":  # see CONTRIBUTING.md
                assert numbers(oldest[name]) == numbers(bound), name


def test_f30_what_the_package_needs_has_a_lower_bound():
    required = ["python-terrier", "pyterrier", "torch", "transformers", "huggingface-hub", "pandas", "numpy", "scipy",
                "safetensors", "ir-datasets", "ir-measures"]
    for name in required:
        assert None not in declared()[name], name
    assert all(numbers(bound) >= [1] for bound in declared()["python-terrier"])  # older ones install pyterrier's files


def test_f30_what_the_package_imports_is_declared():
    names = declared()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if TYPE_CHECKING:")]
        for node in ast.walk(tree):
            imported = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in {name.partition(".")[0] for name in imported} - sys.stdlib_module_names:
                assert normalised(name) in names, f"{path.name} imports {name}, which setup.py does not name"
