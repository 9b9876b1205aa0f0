"""The README's commands and Python, as written: a reader who copies them gets what it says."""

import importlib
import json
import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import normalize

from cae import CAE, TAC, SavedResult
from cae.cli import commands as cli
from cae.evaluation.datasets import NAMED

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
COMMANDS = [shlex.split(line, comments=True)[1:] for line in COMMANDS if line.startswith("cae ")]
BLOCKS = {
    section.partition("\n")[0]: re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for section in README.split("\n## ")[1:]
}


@pytest.fixture
def at_home(tmp_path, monkeypatch, fake_encoder, picture_folder):
    """A folder with the pictures that the README speaks of, and the fake encoder in the place of CLIP."""
    for home in ("cae.models.embedder", "cae.encoders", "cae.encoders.deferred", "cae.evaluation.run"):
        monkeypatch.setattr(f"{home}.load_encoder", lambda *_, **__: fake_encoder)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(picture_folder, "photos")
    shutil.copytree(picture_folder / "red", "more-photos")
    # Embeddings and text vectors made elsewhere.
    vectors = normalize(torch.randn(60, 16, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
    paths = sorted(str(path) for path in Path("photos").rglob("*.png"))[:30]
    pq.write_table(pa.table({"path": paths, "embedding": list(vectors[: len(paths)])}), "embeddings.parquet")
    np.save("nouns.npy", vectors)
    Path("nouns.txt").write_text("".join(f"noun {i}\n" for i in range(60)))
    np.save("dtd.npy", vectors[:40])
    np.save("dtd.labels.npy", np.arange(40) % 4)


def test_the_command_lines_run(at_home, monkeypatch, capfd, picture_folder, text_files):
    assert {words[0] for words in COMMANDS} == {
        "cluster", "report", "predict", "edit", "export", "update", "compare", "texts", "demo", "evaluate", "cut",
        "search", "duplicates", "open",
    }  # fmt: skip
    monkeypatch.setattr("cae.app.server.serve", lambda *_, **__: None)  # which ends with Ctrl-C
    # What would be downloaded, and the name of a group, which depends on the encoder.
    stand_ins = {"wordnet": text_files["nouns"], "flickr30k": text_files["captions"], "cifar10": str(picture_folder)}
    for words in COMMANDS:
        if words[0] == "edit":
            stand_ins["GROUP"] = json.loads(Path("cae-result/clusters.json").read_text())["clusters"][0]["name"]
        if words[0] == "cut":  # a level that the tree of so few pictures holds
            stand_ins["8"] = str(SavedResult.load("cae-result").fitted.hierarchy.levels[-1])
        if words[0] == "compare":
            shutil.copytree("cae-result", "other-result")
        monkeypatch.setattr(sys, "argv", ["cae", *(stand_ins.get(word, word) for word in words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code, f"cae {shlex.join(words)}: {capfd.readouterr().err}"


def test_the_python_blocks_run(at_home, monkeypatch, text_files):
    texts = dict(zip("xu", (normalize(torch.randn(n, 16), dim=1) for n in (40, 60)), strict=True))
    monkeypatch.setattr(CAE.__init__, "__kwdefaults__", {**(CAE.__init__.__kwdefaults__ or {}), **text_files})
    # The others run in tests/test_examples.py.
    assert {name for name, blocks in BLOCKS.items() if blocks} == {"Python", "Methods", "In your own Lightning project"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
        for block in BLOCKS["Python"]:
            exec(block, texts)
        trained: dict[str, Any] = {}
        for block in BLOCKS["Methods"]:
            exec(block, trained)
    assert sum(cluster.size for cluster in texts["model"].fitted.clusters) == 30
    assert texts["x_u"].shape == texts["x"].shape
    assert len(TAC.from_pretrained("model").fitted.clusters) == 12


def test_the_benchmark_takes_its_options(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    (line,) = re.findall(r"^python benchmarks/(accuracy\.py (?:.*\\\n)*.*)", README, re.MULTILINE)
    monkeypatch.setattr(sys, "argv", shlex.split(line.replace("\\\n", "")))
    options = importlib.import_module("accuracy").parse_arguments()
    assert options.datasets[0] == "stl10"
    assert set(options.datasets) <= set(NAMED)
