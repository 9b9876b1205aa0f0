"""The demo, the whole of it with real weights, where every attempt to reach the network is told and fails."""

import pytest
from test_security import without_network

from drills.record import record

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]


def test_the_demo_asks_no_network(tmp_path, monkeypatch):
    pytest.importorskip("cae.encoders.lite")
    # What is embedded once stays embedded: the texts take minutes.
    monkeypatch.delenv("CAE_CACHE")
    out = str(tmp_path / "out")
    commands = [
        ["demo", "--out", out],
        ["report", out],
        ["export", out, "--to", "hf", "--out", str(tmp_path / "exported")],
        ["predict", out, f"{out}/nowhere", "--out", str(tmp_path / "predicted")],
    ]
    lost = []
    for number, command in enumerate(commands):
        (tmp_path / str(number)).mkdir()
        found = without_network(tmp_path / str(number), "-c", "from cae.cli.commands import main; main()", *command)
        if "network:" in found.stderr or found.returncode != (command[0] == "predict"):
            lost.append((command, found.stderr[-2000:]))
    record(
        "no-network",
        tried=len(commands),
        lost=len(lost),
        note="commands from `cae demo` on, with the lite encoder, where connections fail and are told",
    )
    assert lost == []
