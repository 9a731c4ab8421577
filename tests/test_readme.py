"""What the README says can be typed: its Python runs, its commands parse."""

import re
import shlex
from pathlib import Path

import pytest

from figures.cli import COMMANDS, _parse

TEXT = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
LINES = re.findall(r"^ *(sae-recovery .*)$", TEXT, re.MULTILINE)


def test_there_is_something_to_test():
    assert BLOCKS
    assert len(LINES) >= 4


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0])
def test_python_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("line", LINES)
def test_commands_parse(line):
    arguments = shlex.split(line, comments=True)[1:]
    if arguments[-1] == "--help":
        with pytest.raises(SystemExit) as stop:
            _parse(arguments)
        assert stop.value.code == 0
    else:
        assert type(_parse(arguments)) in COMMANDS.values()
