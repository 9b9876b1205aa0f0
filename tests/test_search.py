"""Search over a result: ranking, what needs the encoder and what does not, and what is said when it cannot be had."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FakeEncoder, assert_not_loaded, run_cae
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import normalize

import cae
from cae.data import ImageError
from cae.encoders import EncoderError
from cae.method.fitted import ModelError
from cae.results.layout import EMBEDDINGS, ResultError
from cae.results.saved import SavedResult
from cae.results.search import Searcher, SearchError


@pytest.fixture
def loads(monkeypatch):
    """Specs of the encoders that were loaded, all of them the fake one."""
    asked = []
    monkeypatch.setattr("cae.encoders.deferred.load_encoder", lambda spec, **_: asked.append(spec) or FakeEncoder())
    return asked


@pytest.fixture
def searcher(result_folder, loads):
    return Searcher(SavedResult.load(result_folder))


def test_a_text_ranks_all_rows_by_cosine(searcher, result_folder, loads):
    x = normalize(load_file(result_folder / EMBEDDINGS)["embedding"].double(), dim=1)
    cosine = x @ FakeEncoder().encode_texts(["red car on snow"])[0].double()
    hits = searcher.text(" red car on snow ", limit=100)
    assert [hit.row for hit in hits] == cosine.argsort(descending=True, stable=True).tolist()
    assert [hit.similarity for hit in hits] == pytest.approx(cosine.sort(descending=True).values.tolist(), abs=1e-5)
    rows = searcher.result.assignments.to_pylist()
    assert all((hit.path, hit.name) == (rows[hit.row]["path"], rows[hit.row]["name"]) for hit in hits)
    assert all(hit.file == searcher.result.root / hit.path for hit in hits)
    assert [hit.row for hit in searcher.text("red car on snow", limit=4)] == [hit.row for hit in hits[:4]]
    assert loads == ["fake"]  # once for both


def test_a_picture_of_the_result_needs_no_encoder(searcher, loads, picture_folder, tmp_path):
    shutil.copy(picture_folder / "red/3.png", tmp_path / "copy.png")
    by_path, by_row = searcher.like(picture_folder / "red/3.png", 9), searcher.like("red/3.png", 9)
    assert by_path == by_row == searcher.like(tmp_path / "copy.png", 9)
    assert {hit.path for hit in by_path} == {f"red/{i}.png" for i in range(10) if i != 3}
    (picture_folder / "red/3.png").unlink()
    assert searcher.like(picture_folder / "red/3.png", 9) == by_path  # its embedding is still there
    assert loads == []


def test_another_picture_is_encoded(searcher, loads, tmp_path):
    Image.new("RGB", (50, 40), (30, 200, 30)).save(tmp_path / "green.png")
    assert {hit.path.split("/")[0] for hit in searcher.like(tmp_path / "green.png", 10)} == {"green"}
    assert loads == ["fake"]


def test_a_picture_that_is_gone_is_found_without_a_file(searcher, picture_folder):
    (picture_folder / "red/3.png").unlink()
    gone = [hit for hit in searcher.text("anything", 100) if hit.file is None]
    assert [hit.path for hit in gone] == ["red/3.png"]


def test_equal_pictures_come_in_the_order_of_the_result(searcher):
    searcher.result.__dict__["embeddings"] = torch.ones(30, 48).half()
    assert [hit.row for hit in searcher.text("anything", 5)] == [0, 1, 2, 3, 4]
    assert [hit.row for hit in searcher.like_row(29, 3)] == [0, 1, 2]
    assert [hit.row for hit in searcher.like_row(1, 3)] == [0, 2, 3]


def test_groups_are_named_as_edited_and_the_encoder_stays(result_folder, loads):
    result = cae.Result(result_folder)
    before = result.search("a thing", limit=1)[0]
    after = result.rename(before.name, "boats").search("a thing", limit=1)[0]
    assert (after.row, after.name) == (before.row, "boats")
    assert loads == ["fake"]


@pytest.mark.parametrize(
    ("search", "error", "message"),
    [
        (lambda s: s.text("  "), SearchError, "the text is empty"),
        (lambda s: s.text("a", 0), SearchError, "--limit"),
        (lambda s: s.like("no/such.png"), ImageError, "neither a picture of .* nor a file"),
        (lambda s: s.like_row(30), SearchError, "rows 0 to 29"),
    ],
)
def test_bad_questions(searcher, loads, search, error, message):
    with pytest.raises(error, match=message):
        search(searcher)
    assert loads == []


def test_one_of_text_and_picture(result_folder, loads):
    for question in ({}, {"query": "a", "like": "red/0.png"}):
        with pytest.raises(SearchError, match="either a text or a picture"):
            cae.Result(result_folder).search(**question)


def test_no_picture(searcher, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"text\.png.*not a picture"):
        searcher.like(tmp_path / "text.png")


def test_an_encoder_that_cannot_be_had(searcher, monkeypatch):
    def fail(*_, **__):
        raise EncoderError("the hub cannot be reached")

    monkeypatch.setattr("cae.encoders.deferred.load_encoder", fail)
    with pytest.raises(EncoderError, match=r"hub cannot be reached.*--like .* takes none"):
        searcher.text("a")


def test_another_encoder(searcher, monkeypatch):
    other = FakeEncoder()
    other.fingerprint = "fake-2"
    monkeypatch.setattr("cae.encoders.deferred.load_encoder", lambda *_, **__: other)
    with pytest.raises(ModelError, match="fake-2"):
        searcher.text("a")
    other.dim = 7
    with pytest.raises(EncoderError, match=r"width 7.*--encoder"):
        searcher.text("a")


def test_without_embeddings(searcher, result_folder):
    (result_folder / EMBEDDINGS).unlink()
    with pytest.raises(ResultError, match=r"embeddings\.safetensors is missing"):
        searcher.text("a")


def test_a_result_of_embeddings(tmp_path, loads):
    x = normalize(torch.randn(30, 48, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
    np.save(tmp_path / "nouns.npy", x)
    (tmp_path / "nouns.txt").write_text("".join(f"noun {i}\n" for i in range(30)))
    np.save(tmp_path / "x.npy", x)
    nouns = str(tmp_path / "nouns.npy")
    result = cae.cluster(tmp_path / "x.npy", 3, nouns=nouns, out=tmp_path / "out", progress=False)
    with pytest.raises(EncoderError, match="nothing says by which encoder"):
        result.search("a thing")
    assert result.search(like="7", limit=2) == Searcher(result.saved).like_row(7, 2)
    assert {hit.file for hit in result.search("a thing", encoder="fake")} == {None}


@pytest.fixture
def run(monkeypatch, capfd):
    return partial(run_cae, monkeypatch, capfd)


def test_the_command(run, result_folder, loads, picture_folder, monkeypatch):
    code, stdout, stderr = run("search", result_folder, "red car", "--limit", 3)
    assert (code, stderr) == (0, "loading PyTorch …\nloading the encoder fake …\n")
    assert len(stdout.splitlines()) == 4
    opened = []
    monkeypatch.setattr("typer.launch", opened.append)
    like = picture_folder / "blue/1.png"
    code, stdout, stderr = run("search", result_folder, "--like", like, "--limit", 2, "--json", "--open")
    assert (code, stderr) == (0, "loading PyTorch …\n")
    document = json.loads(stdout)
    assert document["text"] is None
    assert document["like"] == str(like)
    assert [set(hit) for hit in document["pictures"]] == [{"row", "path", "file", "similarity", "cluster", "name"}] * 2
    assert opened == [hit["file"] for hit in document["pictures"]]
    code, _, stderr = run("search", result_folder)
    assert code == 1
    assert "\nerror: give either a text or a picture (--like" in stderr


def test_a_search_needs_no_lightning():
    assert_not_loaded("import cae.results.search", "lightning", "pytorch_lightning", "open_clip")
