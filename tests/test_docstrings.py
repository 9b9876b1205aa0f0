"""Examples in docstrings: every public name has one, and each does what it shows."""

import doctest
import importlib
import inspect
import os
import pkgutil
import shutil
import typing
import warnings
from dataclasses import is_dataclass

import numpy as np
import pytest
import torch
from conftest import FakeEncoder
from torch.nn.functional import normalize

import cae

PUBLIC = ["cae", "cae.app", "cae.callbacks", "cae.data", "cae.encoders", "cae.evaluation", "cae.kernels", "cae.metrics"]
PUBLIC += ["cae.models", "cae.report", "cae.results", "cae.results.export", "cae.text"]

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(cae.__path__, "cae.")
    if module.name.rpartition(".")[2] not in ("__main__", "triton", "make_images", "make_hypernyms", "launch")
)


def needs_example(value: object) -> bool:
    """Functions, and classes that users make: no exceptions, protocols and records that functions return."""
    if not inspect.isclass(value):
        return inspect.isfunction(value)
    record = issubclass(value, tuple | BaseException) or typing.is_typeddict(value) or is_dataclass(value)
    return not record and not getattr(value, "_is_protocol", False)


def test_every_public_name_has_an_example():
    missing = []
    for room in map(importlib.import_module, PUBLIC):
        values = {name: getattr(room, name) for name in room.__all__}
        missing += [
            f"{room.__name__}.{name}"
            for name, value in values.items()
            if needs_example(value) and ">>>" not in (value.__doc__ or "")
        ]
    assert sorted(set(missing)) == []


@pytest.fixture
def at_home(tmp_path, monkeypatch, picture_folder, text_files, result_folder):
    """A folder with what the examples read, and a small encoder in the place of CLIP."""
    for home in ("cae.models.embedder", "cae.encoders", "cae.encoders.deferred", "cae.evaluation.run"):
        monkeypatch.setattr(f"{home}.load_encoder", lambda *_, **__: FakeEncoder())
    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(picture_folder, home / "photos")
    shutil.copytree(result_folder, home / "cae-result")
    for file in text_files.values():
        shutil.copy(file, home)
    generator = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(60, 48, generator=generator), dim=1).numpy()
    np.save(home / "nouns.npy", vectors)
    np.save(home / "embeddings.npy", vectors[:30])
    monkeypatch.chdir(home)


@pytest.mark.parametrize("name", MODULES)
def test_examples_do_what_they_show(name, request):
    module = importlib.import_module(name)
    found = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module, name) if test.examples]
    if not found:
        return
    request.getfixturevalue("at_home")
    torch.manual_seed(0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
        for test in found:
            runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
    assert os.getcwd().endswith("home")  # noqa: PTH109
