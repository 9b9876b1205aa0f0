"""What a stranger's file can do: run no code, reach no other file, ask no network. SECURITY.md tells the whole."""

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import FakeEncoder

from cae import CAE
from cae.data import EmbeddingData, EmbeddingError, ImageError, read_image
from cae.data.embedding_store import EmbeddingStore
from cae.encoders import EncoderError
from cae.encoders.open_clip import OpenCLIPEncoder
from cae.models.trained import load_pretrained
from cae.report import write_report
from cae.results.export import ExportError, export
from cae.results.saved import SavedResult
from cae.text import Corpus, TextError, build_bank, load_corpus


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """What must not come into being; and the proof that it would."""
    mark = tmp_path / "owned"
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists()
    mark.unlink()
    return mark


def evil_files(mark, folder):
    """The same in every wrapping that a loader might take off."""
    folder.mkdir()
    (folder / "pickle").write_bytes(pickle.dumps(Evil(mark)))
    torch.save({"state_dict": Evil(mark), "pytorch-lightning_version": "2.5.0"}, folder / "torch")
    torch.save(Evil(mark), folder / "legacy", _use_new_zipfile_serialization=False)
    np.save(folder / "numpy.npy", np.array([Evil(mark)], dtype=object), allow_pickle=True)
    np.savez(folder / "numpy.npz", np.array([Evil(mark)], dtype=object))
    yield from folder.iterdir()


def test_no_file_of_a_result_runs_code(result_folder, mark, tmp_path):
    files = [file for file in result_folder.rglob("*") if file.is_file()]
    (result_folder / "edits.json").write_text("{}")
    assert len(files) == 8
    shutil.copytree(result_folder, tmp_path / "whole")
    for file in [*files, result_folder / "edits.json"]:
        for evil in evil_files(mark, tmp_path / "evil"):
            shutil.copy(evil, file)
            for use in (
                lambda: SavedResult.load(result_folder).edited,
                lambda: SavedResult.load(result_folder).embeddings,
                lambda: SavedResult.load(result_folder).placement,
                lambda: SavedResult.load(result_folder).fitted,
                lambda: load_pretrained(result_folder / "model", encoder=FakeEncoder()),
            ):
                try:
                    use()
                except ValueError as error:
                    assert str(error)
            assert not mark.exists(), f"{evil.name} as {file.name}"
        shutil.rmtree(tmp_path / "evil")
        shutil.copy(tmp_path / "whole" / file.relative_to(result_folder), file)


def test_no_file_of_a_cache_runs_code(mark, tmp_path, isolated_cache):
    text_map = pytest.importorskip("cae.encoders.lite.text_map")
    corpus = Corpus("noun", "things", ["a", "b"], None, 2)

    def use_all():
        build_bank(corpus, FakeEncoder())
        store = EmbeddingStore(4, folder=isolated_cache / "store", identity={"data": "a"})
        store.append(torch.arange(2), torch.eye(2, 4))
        store.close()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_map, "fit_text_map", lambda _: text_map.TextMap(torch.eye(2), torch.eye(2)))
            text_map.load_text_map(None, "abc")

    use_all()
    files = [file for file in isolated_cache.rglob("*") if file.is_file() and not file.name.endswith(".lock")]
    assert len(files) == 6
    for file in files:
        for evil in evil_files(mark, tmp_path / "evil"):
            shutil.copy(evil, file)
            use_all()
            assert not mark.exists(), f"{evil.name} as {file.name}"
        shutil.rmtree(tmp_path / "evil")


def test_no_checkpoint_weights_embeddings_or_texts_run_code(mark, tmp_path):
    for evil in evil_files(mark, tmp_path / "evil"):
        for ending in (".ckpt", ".pt", ".safetensors", ".npy", ".parquet", ".txt", ".gz", ".png"):
            file = tmp_path / f"evil{ending}"
            shutil.copy(evil, file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if ending == ".ckpt":
                    with pytest.raises(Exception, match=r"\w"):  # torch's and Lightning's own
                        CAE.load_from_checkpoint(file)
                elif ending in (".npy", ".parquet"):
                    with pytest.raises(EmbeddingError):
                        EmbeddingData(file)
                elif ending in (".txt", ".gz"):
                    with pytest.raises(TextError):
                        load_corpus("noun", str(file))
                elif ending == ".png":
                    with pytest.raises(ImageError):
                        read_image(file)
                else:
                    with pytest.raises(EncoderError, match="cannot be loaded as plain weights"):
                        OpenCLIPEncoder("ViT-S-32", None, weights=file)
            assert not mark.exists(), f"{evil.name} as {ending}"


def test_a_whole_checkpoint_loads_without_code(tmp_path, text_files):
    module = CAE(3, encoder=FakeEncoder(), **text_files)
    module.fit_embeddings(torch.nn.functional.normalize(torch.randn(30, 48), dim=1))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = CAE.load_from_checkpoint(tmp_path / "model.ckpt", encoder=FakeEncoder())
    assert torch.equal(loaded.fitted.partition.centroids, module.fitted.partition.centroids)


def test_extension_types_of_parquet_are_plain_columns(mark, tmp_path):
    """Arrow unpickles the type of a column that an old `PyExtensionType` wrote, unless it is told not to."""
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Evil(mark)),
    }
    field = pa.field("embedding", pa.list_(pa.float32()), metadata=metadata)
    table = pa.table([pa.array([[1.0, 0.0], [0.0, 1.0]], pa.list_(pa.float32()))], schema=pa.schema([field]))
    pq.write_table(table, tmp_path / "x.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            EmbeddingData(tmp_path / "x.parquet")
        except EmbeddingError as error:
            assert str(error)
    assert not mark.exists()


def test_names_from_a_result_stay_inside_an_export(result_folder, tmp_path):
    names = ["../../x", "CON", "a\0b", "trail. . .", "/etc/x", "..\\..\\x", "\x1b[31m", "a" * 500, "", "."]
    records = json.loads((result_folder / "clusters.json").read_text())["clusters"]
    for start in range(0, len(names), 3):
        for record, name in zip(records, names[start : start + 3], strict=False):
            record["name"] = name
        (result_folder / "clusters.json").write_text(json.dumps({"clusters": records}))
        out = tmp_path / "deep/er" / str(start)
        export(SavedResult.load(result_folder), "folders", out)
        assert len(list(out.rglob("*.png"))) == 30
        for path in out.rglob("*"):
            assert path.resolve().is_relative_to(out.resolve())
            assert path.name.isprintable()
            assert not path.name.endswith((".", " "))
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"er"}


def test_a_report_whose_folder_is_a_link_replaces_and_removes_nothing_elsewhere(report, result_folder, tmp_path):
    (tmp_path / "others").mkdir()
    (tmp_path / "others/data.js").write_text("kept")
    (tmp_path / "others/letter.txt").write_text("kept")
    shutil.rmtree(report / "report_files")
    (report / "report_files").symlink_to(tmp_path / "others")
    with pytest.raises(OSError, match="report_files is a link"):
        write_report(SavedResult.load(result_folder), report)
    assert {path.name: path.read_text() for path in (tmp_path / "others").iterdir()} == {
        "data.js": "kept",
        "letter.txt": "kept",
    }


@pytest.mark.parametrize("name", ["../kept.txt", "/etc/passwd", "a/../../kept.txt", "link/kept.txt", ".", ""])
def test_a_manifest_removes_nothing_outside_of_its_export(result_folder, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "kept.txt").write_text("kept")
    (out / "link").symlink_to(tmp_path)
    manifest = {"format_version": 1, "target": "folders", "files": [name]}
    (out / ".cae-export.json").write_text(json.dumps(manifest))
    try:
        export(SavedResult.load(result_folder), "folders", out)
    except ExportError as error:
        assert "outside of the export" in str(error)
    assert (tmp_path / "kept.txt").read_text() == "kept"


def test_everything_that_run_json_says_is_text_in_the_report(result_folder, tmp_path):
    """Every string in it, whichever the page shows."""
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'"

    def poison(value):
        if isinstance(value, dict):
            return {key: poison(inner) for key, inner in value.items()}
        return (
            nasty
            if isinstance(value, str)
            else [poison(inner) for inner in value]
            if isinstance(value, list)
            else value
        )

    run = json.loads((result_folder / "run.json").read_text())
    run |= {"skipped": {nasty: nasty}, "scores": {nasty: {"acc": 1, "nmi": 1, "ari": 1}}, "stages": {nasty: 1.0}}
    run["auto"] = {"chosen": nasty, "scores": {nasty: 4.0}}
    poisoned = {**poison(run), "root": str(tmp_path / "<img src=x>"), "root_from_here": "x", "sha256": run["sha256"]}
    (result_folder / "run.json").write_text(json.dumps(poisoned))
    page = write_report(SavedResult.load(result_folder), tmp_path / "page", lambda _: lambda *_: None)
    html = page.read_text(encoding="utf-8")
    assert "alert(1)" in html
    assert "<script>alert" not in html
    assert "<img" not in html
    assert "</script>" not in (page.parent / "report_files/data.js").read_text().replace("<\\/", "")


def test_tables_hold_names_unchanged_even_if_a_spreadsheet_would_calculate(result_folder, tmp_path):
    """SECURITY.md says how to open them; to change them would break every program that reads them."""
    records = json.loads((result_folder / "clusters.json").read_text())["clusters"]
    for record, name in zip(records, ('=HYPERLINK("http://x")', "+1+1", "@SUM(A1)"), strict=True):
        record["name"] = name
    (result_folder / "clusters.json").write_text(json.dumps({"clusters": records}))
    export(SavedResult.load(result_folder), "csv", tmp_path / "out")
    with (tmp_path / "out/clusters.csv").open(newline="", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ['=HYPERLINK("http://x")', "+1+1", "@SUM(A1)"]


NO_NETWORK = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        if event != "socket.connect" or getattr(arguments[0], "family", None).name != "AF_UNIX":
            print("network:", event, arguments, file=sys.__stderr__, flush=True)
            raise OSError("there is no network in this test")

sys.addaudithook(refuse)
"""
WORK = """
import sys
sys.path.insert(0, {tests!r})
from conftest import FakeEncoder
import cae, cae.callbacks, cae.data, cae.encoders, cae.evaluation, cae.models.trained
import cae.encoders.open_clip, timm, datasets
from cae.cli import commands as cli
from cae.encoders import deferred
from cae.models import embedder
deferred.load_encoder = embedder.load_encoder = lambda *_, **__: FakeEncoder()
for words in {commands!r}:
    sys.argv = ["cae", *words]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, words
"""


def without_network(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where every attempt to reach the network is told and fails."""
    (folder / "hook").mkdir()
    (folder / "hook/sitecustomize.py").write_text(NO_NETWORK)
    environment = {**os.environ, "PYTHONPATH": str(folder / "hook")}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


def test_the_hook_of_these_tests_sees_the_network(tmp_path):
    found = without_network(tmp_path, "-c", "import urllib.request; urllib.request.urlopen('http://example.org')")
    assert found.returncode
    assert "network: socket.getaddrinfo" in found.stderr


def test_nothing_asks_the_network(tmp_path, picture_folder, text_files):
    """From importing all there is to a result, its report and an export: no update checks, no telemetry."""
    out, texts = str(tmp_path / "out"), ["--nouns", text_files["nouns"], "--captions", text_files["captions"]]
    commands = [
        ["cluster", str(picture_folder), "-k", "3", "--out", out, *texts],
        ["report", out],
        ["update", out, str(picture_folder)],
        ["export", out, "--to", "folders", "--out", str(tmp_path / "exported")],
        ["edit", out],
    ]
    script = WORK.format(tests=str(Path(__file__).parent), commands=commands)
    found = without_network(tmp_path, "-W", "ignore", "-c", script)
    assert found.returncode == 0, found.stderr
    assert "network:" not in found.stderr
    assert len(list((tmp_path / "exported").rglob("*.png"))) == 30
