"""The rules that keep the project in shape: who may import whom, what is never used, how fast it loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("simulator", "theory", "llm_bridge", "figures")  # each may import those before it
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    tree = ast.parse(path.read_text())
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    for name in imported(tree):
        top = name.split(".")[0]
        assert top not in PACKAGES or top in allowed, f"{package} may not import {name}"
        assert top not in ("pickle", "dill", "tests"), name
        if package in ("simulator", "theory"):
            assert top not in ("matplotlib", "pandas", "transformers", "tyro", "tqdm", "joblib"), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe_and_no_global_seeds(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load", "torch.save"), called
            assert called not in ("torch.manual_seed", "np.random.seed", "numpy.random.seed"), called
            assert not any(k.arg == "allow_pickle" and ast.unparse(k.value) == "True" for k in node.keywords)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_concept_per_file(path):
    # 400 lines is where a file here has always held two concepts.
    assert len(path.read_text().splitlines()) <= 400


def test_importing_the_simulator_is_light():
    heavy = ("matplotlib", "pandas", "transformers", "numba")
    code = f"import sys, simulator; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"


def test_the_readme_map_is_true():
    """The README's map names every module, and nothing that does not exist."""
    block = (ROOT / "README.md").read_text().split("## Map")[1].split("```")[1]
    for package in PACKAGES:
        part = block.split(f"{package}/")[1].split("/ ")[0]
        modules = {path.stem for path in FILES if path.relative_to(ROOT).parts[0] == package} - {"__init__"}
        words = set(re.findall(r"[a-z_]+", part))
        assert modules <= words, f"the map does not name {modules - words} of {package}"
    named = set(re.findall(r"^  ([a-z_]+)", block, re.MULTILINE))
    assert named <= {path.stem for path in FILES}, f"the map names {named - {path.stem for path in FILES}}"
