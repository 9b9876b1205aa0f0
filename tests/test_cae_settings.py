"""The settings of `CAE`, in its signature and from LightningCLI."""

import inspect
import sys
from dataclasses import fields

import pytest

from cae import CAE, CAEConfig


def test_the_constructor_spells_out_every_setting():
    parameters = inspect.signature(CAE).parameters
    assert {field.name for field in fields(CAEConfig)} <= set(parameters)
    assert CAE(3, epsilon=None, preset="paper").config == CAEConfig.from_preset("paper", 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between Lightning and jsonargparse
def test_lightning_cli_makes_the_module(monkeypatch):
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setattr(sys, "argv", ["cli"])
    arguments = {"n_clusters": 7, "preset": "paper", "epsilon": 0.02, "modalities": ["noun"]}
    cli = LightningCLI(
        CAE,
        args={"model": arguments, "trainer": {"logger": False, "max_epochs": 1}},
        run=False,
        seed_everything_default=False,
        save_config_callback=None,
    )
    assert cli.model.config == CAEConfig.from_preset("paper", 7, epsilon=0.02, modalities=("noun",))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between Lightning and jsonargparse
def test_lightning_cli_prints_a_configuration_that_it_reads(monkeypatch, capsys, tmp_path):
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    command = ["cli", "predict", "--model.n_clusters=7", "--model.preset=paper"]
    monkeypatch.setattr(sys, "argv", [*command, "--print_config"])
    options = {"seed_everything_default": False, "save_config_callback": None}
    with pytest.raises(SystemExit) as stopped:
        LightningCLI(CAE, **options)
    printed = capsys.readouterr().out
    assert not stopped.value.code
    assert {f"{field.name}:" for field in fields(CAEConfig)} <= set(printed.split())
    (tmp_path / "config.yaml").write_text(printed)
    monkeypatch.setattr(sys, "argv", ["cli", "predict", f"--config={tmp_path / 'config.yaml'}", "--print_config"])
    with pytest.raises(SystemExit):
        LightningCLI(CAE, **options)
    assert capsys.readouterr().out == printed


def test_settings_are_checked_at_once():
    with pytest.raises(ValueError, match="did you mean 'epsilon'"):
        CAE(3, epsilom=0.1)
    with pytest.raises(ValueError, match="at least 2, or auto, got 'aut'"):
        CAE("aut")
