"""The pages of docs/: their Python runs, their commands exist, and the site builds without a warning."""

import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer

from cae import CAE
from cae.cli import commands as cli

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")}
PYTHON = {
    page: blocks for page, text in PAGES.items() if (blocks := re.findall(r"```python\n(.*?)```", text, re.DOTALL))
}
SHELL = [block for text in PAGES.values() for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL)]
COMMANDS = [line for block in SHELL for line in block.splitlines() if line.startswith("cae ")]


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, fake_encoder, picture_folder, text_files):
    for home in ("cae.models.embedder", "cae.encoders.deferred"):
        monkeypatch.setattr(f"{home}.load_encoder", lambda *_, **__: fake_encoder)
    monkeypatch.setattr(CAE.__init__, "__kwdefaults__", {**(CAE.__init__.__kwdefaults__ or {}), **text_files})
    monkeypatch.chdir(tmp_path)
    shutil.copytree(picture_folder, "photos")
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
        warnings.filterwarnings("ignore", message=".*checkpoint directory.*")
        for block in PYTHON[page]:
            exec(block, names)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_takes_its_options(line):
    _, name, *words = shlex.split(line, comments=True)
    command = typer.main.get_command(cli.app).commands[name]
    if hasattr(command, "commands"):  # cae edit RESULT COMMAND …, cae texts COMMAND …
        words = words[1:] if name == "edit" else words
        command, words = command.commands[words[0]], words[1:]
    options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    given = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert given <= options
    # What is required is given, by any of its spellings.
    required = [parameter.opts for parameter in command.params if parameter.required and parameter.opts[0][0] == "-"]
    assert all(given & set(spellings) for spellings in required)


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not built.returncode, built.stderr
    assert 'id="cae.models.CAE"' in (tmp_path / "site/reference/models/index.html").read_text(encoding="utf-8")
