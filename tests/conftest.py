"""What many tests share: an isolated cache, a small encoder, pictures and texts on disk, Triton's interpreter."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

# Without CUDA the Triton kernels run in Triton's interpreter, which has to be asked for before triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def interpreter_counts() -> None:
    """Triton 3.6's interpreter makes a loop bound an int in a way that numpy 2.4 refuses; later ones do as here."""
    if not os.environ.get("TRITON_INTERPRET") or numpy.lib.NumpyVersion(numpy.__version__) < "2.4.0":
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch_lang_tensor


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("CAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def thumbnail(image: Image.Image) -> Tensor:
    """(3, 4, 4) float32 in [0, 1]."""
    return torch.from_numpy(numpy.asarray(image.resize((4, 4)), dtype=numpy.float32) / 255).permute(2, 0, 1)


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """What a test changes of them is put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class FakeEncoder:
    """An `Encoder` without weights: pictures are their own thumbnails, texts are noise seeded by their hash."""

    spec, dim, fingerprint, prompt, image_size = "fake", 48, "fake-1", "a photo of {}", 4
    preprocess = staticmethod(thumbnail)

    def to(self, device: torch.device | str) -> "FakeEncoder":
        return self

    def encode_images(self, images: Tensor) -> Tensor:
        return normalize(images.flatten(1) - 0.5, dim=1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") // 2 for text in texts]
        return normalize(
            torch.stack([torch.randn(48, generator=torch.Generator().manual_seed(s)) for s in seeds]), dim=1
        )


@pytest.fixture
def fake_encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """30 pictures: ten shades each of red, green and blue, in folders by colour."""
    generator = numpy.random.default_rng(0)
    for channel, colour in enumerate(("red", "green", "blue")):
        folder = tmp_path / "pictures" / colour
        folder.mkdir(parents=True)
        for i in range(10):
            pixels = generator.integers(0, 60, (20, 24, 3), dtype=numpy.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def text_files(tmp_path: Path) -> dict[str, str]:
    """Small corpora as the arguments `nouns` and `captions` of `CAE`."""
    (tmp_path / "nouns.txt").write_text("".join(f"thing {i}\n" for i in range(60)))
    (tmp_path / "captions.txt").write_text("".join(f"somebody does thing {i}\n" for i in range(90)))
    return {"nouns": str(tmp_path / "nouns.txt"), "captions": str(tmp_path / "captions.txt")}


@pytest.fixture
def attached(fake_encoder):
    """Gives a data module the trainer and the module that it would have inside `trainer.fit`."""

    import lightning.pytorch as pl

    from cae.models.embedder import Embedder

    def attach(data):
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy._lightning_module = embedder = Embedder(fake_encoder)
        embedder.trainer = trainer
        data.trainer = trainer
        return data

    return attach


def assert_not_loaded(statement: str, *heavy: str) -> None:
    """A statement, run in a process of its own, loads none of these modules."""
    check = f"import sys; {statement}; heavy = {set(heavy)} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", check], check=True)


def rewrite_assignments(folder: Path, table: pa.Table) -> None:
    """Put another table into a result, checksums and all."""
    from cae.results.saved import SavedResult
    from cae.results.writing import write_tables

    result = SavedResult.load(folder)
    write_tables(folder, table, result.clusters, result.run, result.fitted)


@pytest.fixture
def result_folder(tmp_path: Path, picture_folder: Path, text_files: dict[str, str]) -> Path:
    """What `cae cluster` leaves of `picture_folder` in three clusters."""
    return clustered_folder(picture_folder, 3, text_files, tmp_path / "result")


@pytest.fixture
def report(result_folder: Path) -> Path:
    """The folder of the page of `result_folder`."""
    from cae.report import write_report
    from cae.results.saved import SavedResult

    write_report(SavedResult.load(result_folder), result_folder / "report", lambda _: lambda *_: None)
    return result_folder / "report"


@pytest.fixture
def tree_folder(tmp_path: Path, text_files: dict[str, str]) -> Path:
    """What `cae cluster` leaves of 72 pictures of eight colours in six clusters: a tree with merges and splits."""
    generator = numpy.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / "colours" / f"colour {number}"
        folder.mkdir(parents=True)
        for i in range(9):
            pixels = generator.integers(0, 60, (20, 24, 3), dtype=numpy.uint8)
            pixels += numpy.array([150 * (number >> bit & 1) for bit in range(3)], dtype=numpy.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return clustered_folder(tmp_path / "colours", 6, text_files, tmp_path / "colours-result")


def clustered_folder(pictures: Path, n_clusters: int, texts: dict[str, str], out: Path) -> Path:
    """`cae cluster` with the fake encoder, without the page."""
    from cae.models.cae import CAE
    from cae.results.run import run_folder
    from cae.results.writing import write_result

    module = CAE(n_clusters, encoder=FakeEncoder(), return_embeddings=True, **texts)
    device = torch.device("cpu")
    result = run_folder(module, pictures, device=device, batch_size=8, workers=0, reporter=lambda _: lambda *_: None)
    out.mkdir()
    write_result(result, out, {})
    return out


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium on this machine: install it (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def view(browser):
    """Open a report; the test fails if the page complains, loads from anywhere else, or asks something."""
    from app_page import DESK

    complaints, contexts = [], []

    def view(report, viewport=DESK, expect_missing_files=False, **options):
        context = browser.new_context(viewport=viewport, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        if not expect_missing_files:
            page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
        page.goto((report / "index.html").as_uri())
        return page

    yield view
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def opened(result_folder, tmp_path, monkeypatch):
    """A result that `cae open` has open, with the fake encoder to search with."""
    from cae.app import OpenResult

    monkeypatch.setattr("cae.encoders.deferred.load_encoder", lambda *_, **__: FakeEncoder())
    return OpenResult(result_folder, tmp_path / "exports")


@pytest.fixture
def client(opened):
    """A program that speaks to its server."""
    from app_client import Client

    from cae.app import serving

    with serving(opened, progress=False) as address:
        yield Client(address, opened)


@pytest.fixture
def served(opened):
    """The address of its page, whose groups are called harbour, meadow and desert."""
    from cae.api import Result
    from cae.app import serving

    Result(opened.editor.folder).rename(0, "harbour").rename(1, "meadow").rename(2, "desert")
    with serving(opened, progress=False) as address:
        yield address


@pytest.fixture
def visit(browser):
    """Open an address of `cae open`; the test fails if the page complains, loads from elsewhere, or asks something."""
    from app_page import DESK
    from playwright.sync_api import expect

    complaints, contexts = [], []

    def visit(address, viewport=DESK, expect_failures=False, context=None, **options):
        if context is None:
            context = browser.new_context(viewport=viewport, reduced_motion="reduce", **options)
            contexts.append(context)
        page = context.new_page()
        host = address.partition("?")[0]
        if not expect_failures:
            page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith((host, "data:")) or complaints.append(request.url))
        page.goto(address)
        page.wait_for_url(host)
        expect(page.locator("#dock")).to_be_visible()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def run_cae(monkeypatch, capfd, *arguments):
    """Run `cae …` in this process; returns (exit code, stdout, stderr)."""
    from cae.cli import commands as cli

    monkeypatch.setattr(sys, "argv", ["cae", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code or 0, *capfd.readouterr()


def with_row(rows, row, value):
    """A copy of (N, D) rows in which one row is another value."""
    rows = rows.clone()
    rows[row] = value
    return rows


@pytest.fixture
def run(monkeypatch, fake_encoder, capfd):
    """Run `cae …` in this process with the fake encoder; returns (exit code, stdout, stderr)."""
    for home in ("cae.models.embedder", "cae.encoders", "cae.encoders.deferred"):
        monkeypatch.setattr(f"{home}.load_encoder", lambda *_, **__: fake_encoder)

    return partial(run_cae, monkeypatch, capfd)


@pytest.fixture
def clustered(run, picture_folder, text_files, tmp_path):
    """What `cae cluster` writes and prints for `picture_folder` in three groups: (folder, stdout, stderr)."""
    out = tmp_path / "result"
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"]]
    code, stdout, stderr = run("cluster", picture_folder, "-k", 3, "--out", out, "--workers", 0, *texts)
    assert code == 0, stderr
    return out, stdout, stderr


def page_of(result):
    """The text of the page beside a result."""
    return (result / "report/index.html").read_text(encoding="utf-8")
