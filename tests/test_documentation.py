"""What the documentation says runs: lessons, the Python of the guides, the site with all its links and formulas."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from figures.site_math import with_mathml

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "docs" / "lessons").glob("*.py"))
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
MODULES = [path for name in ("simulator", "theory", "llm_bridge", "figures") for path in (ROOT / name).rglob("*.py")]


def run(file: Path, where: Path) -> str:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(file)], capture_output=True, text=True, cwd=where,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


def test_there_are_five_lessons_and_five_guides():
    assert [file.name[0] for file in LESSONS] == list("12345")
    assert len(GUIDES) == 5


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda file: file.stem)
def test_lesson(lesson, tmp_path):
    assert run(lesson, tmp_path)
    text = lesson.read_text()
    exercises, solutions = text.split("## Exercises")[1].split("## Solutions")
    assert re.findall(r"^# (\d)\. ", exercises, re.MULTILINE) == ["1", "2"]
    assert "**1.**" in solutions and "**2.**" in solutions and solutions.count("\n# %%\n") >= 2


def test_the_command_of_the_last_lesson_is_its_training(tmp_path):
    text = LESSONS[-1].read_text()
    (command,) = re.findall(r"sae-recovery (verify .*?)```", text.replace("\\\n#", "").replace("\n#", ""), re.DOTALL)
    file = tmp_path / "same.py"
    file.write_text(
        text.split("def train(")[0]
        + f"from figures.cli import _parse\nasked = _parse({command.split()})\n"
        + "assert asked.world() == world and asked.training() == trainings['GBA']\nprint(asked.method)\n"
    )
    assert run(file, tmp_path).strip().endswith("gba")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda file: file.stem)
def test_the_python_of_a_guide(guide, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    assert blocks
    file = tmp_path / "example.py"
    file.write_text("\n".join(blocks))
    run(file, tmp_path)


def test_the_reference_names_every_module():
    for package in ("simulator", "theory", "llm_bridge", "figures"):
        text = (ROOT / "docs" / "reference" / f"{package}.md").read_text()
        named = set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
        found = set()
        for file in MODULES:
            parts = file.relative_to(ROOT).with_suffix("").parts
            if parts[0] == package and "pages" not in parts and parts[-1] != "__init__":
                found.add(".".join(parts))
        assert named == found | {package}


def test_formulas_become_mathml_and_code_stays():
    page = r'<p>a <span class="arithmatex">\(\frac{1}{2}\)</span> <code>$HOME</code></p>'
    found = with_mathml(page)
    assert "<mfrac>" in found and "arithmatex" not in found and "$HOME" in found
    notebook = with_mathml("<p>$x^2$ and $$\\sum_i h_i$$</p><pre>cost = $5 and $6</pre>", notebook=True)
    assert notebook.count("<math") == 2 and "cost = $5 and $6" in notebook
    assert with_mathml("<p>$5 and then 6$</p>") == "<p>$5 and then 6$</p>"
    with pytest.raises(ValueError, match="cannot be converted"):
        with_mathml(r'<div class="arithmatex">\[\nonsense{x}\]</div>')
    with pytest.raises(ValueError, match="cannot be converted"):
        with_mathml(r'<div class="arithmatex">\[\left( x\]</div>')


@pytest.mark.slow
def test_the_site_builds_and_its_links_hold(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed")
    environment = {**os.environ, "EXECUTE_LESSONS": "false", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3_000:]
    lesson = (tmp_path / "site" / "lessons" / "2_identifiability.html").read_text()
    words = re.sub(r"<(script|style|pre|code)\b.*?</\1>", "", lesson.split("<article")[1], flags=re.DOTALL)
    assert lesson.count("<math") > 20 and "$" not in words
    # Nothing is fetched from elsewhere.
    for page in (tmp_path / "site").rglob("*.html"):
        assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)', page.read_text()) == [], page.name
