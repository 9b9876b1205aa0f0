"""`cae cluster` and `cae predict` on embeddings made elsewhere; what cae writes is read back by every door."""

import json
import os
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from conftest import FakeEncoder, run_cae, with_row
from lightning import Trainer
from PIL import Image
from torch.nn.functional import normalize

import cae
from cae import CAE
from cae.callbacks import PredictionWriter
from cae.data import EmbeddingData, list_images, read_embeddings
from cae.encoders import EncoderError
from cae.evaluation import load_dataset
from cae.results.layout import ResultError
from cae.results.saved import SavedResult

K, D = 3, FakeEncoder.dim
GENERATOR = torch.Generator().manual_seed(0)
WORDS = [f"thing {i}" for i in range(30)]
VECTORS = normalize(torch.randn(30, D, generator=GENERATOR), dim=1)
X = normalize(VECTORS[:3].repeat_interleave(10, 0) + 0.05 * torch.randn(30, D, generator=GENERATOR), dim=1)
Y = [WORDS[i // 10] for i in range(30)]


@pytest.fixture
def run(monkeypatch, capfd, tmp_path):
    """Run `cae …` where loading an encoder fails the test; returns (exit code, stdout, stderr)."""
    for home in ("cae.models.embedder", "cae.encoders", "cae.encoders.deferred"):
        monkeypatch.setattr(f"{home}.load_encoder", lambda *_, **__: pytest.fail("an encoder is loaded"))
    monkeypatch.chdir(tmp_path)

    return partial(run_cae, monkeypatch, capfd)


@pytest.fixture
def nouns(tmp_path):
    np.save(tmp_path / "nouns.npy", VECTORS.numpy())
    (tmp_path / "nouns.txt").write_text("\n".join(WORDS))
    return tmp_path / "nouns.npy"


def write_parquet(file, x=X, **columns):
    pq.write_table(pa.table({"embedding": list(x.numpy()), **columns}), file)
    return file


def pictures_of_embeddings(folder):
    """Ten pictures each of three colours, with their paths below the folder and their embeddings."""
    generator = np.random.default_rng(0)
    for i in range(30):
        pixels = generator.integers(0, 60, (12, 12, 3), dtype=np.uint8)
        pixels[..., i // 10] += 150
        (folder / "photos").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"photos/{i:02d}.png")
    return [f"photos/{i:02d}.png" for i in range(30)]


def test_a_file_of_embeddings_is_clustered_without_an_encoder(run, nouns, tmp_path):
    np.save(tmp_path / "x.npy", X.numpy().astype(np.float16))
    code, stdout, stderr = run("cluster", "x.npy", "-k", K, "--nouns", nouns, "--out", "out")
    assert code == 0, stderr
    assert "30 embeddings in" in stdout
    assert "no page: the embeddings name no pictures" in stdout
    assert "captions: none, as none are given beside the vectors" in stdout
    rows = pacsv.read_csv("out/assignments.csv").to_pylist()
    assert [row["path"] for row in rows] == list(range(30))
    assert [len({row["cluster"] for row in rows[i : i + 10]}) for i in (0, 10, 20)] == [1, 1, 1]
    assert all(row["beta_caption"] == 0 and not row["top_caption"] for row in rows)
    assert len({row["sha256"] for row in rows}) == 30
    document = json.loads((tmp_path / "out/run.json").read_text())
    assert document["encoder"]["spec"] == "none"
    assert document["embeddings"] == [str(tmp_path / "x.npy")]
    assert document["scores"] == {}
    assert not (tmp_path / "out/report").exists()


def test_what_is_known_by_embeddings_is_predicted_edited_compared_and_exported(run, nouns, tmp_path):
    source = write_parquet(tmp_path / "x.parquet", label=Y)
    code, stdout, stderr = run("cluster", source, "-k", K, "--nouns", nouns, "--out", "out")
    assert code == 0, stderr
    assert "agreement with the labels" in stdout
    assert json.loads((tmp_path / "out/run.json").read_text())["scores"]["CAE"]["acc"] == 100
    code, _, stderr = run("predict", "out", source, "--out", "again")
    assert code == 0, stderr
    assert (tmp_path / "again/assignments.csv").read_bytes() == (tmp_path / "out/assignments.csv").read_bytes()
    for command in (["edit", "out", "rename", 0, "mine"], ["export", "out", "--to", "csv"], ["compare", "out", "out"]):
        code, _, stderr = run(*command)
        assert code == 0, stderr
    assert "mine" in (tmp_path / "cae-export/csv/assignments.csv").read_text()
    code, _, stderr = run("cluster", write_parquet(tmp_path / "y.parquet", X.flip(0)), "-k", K, "--nouns", nouns,
                          "--out", "out")  # fmt: skip
    assert code == 0, stderr
    assert "mine" in SavedResult.load("out").edited.assignments["name"].to_pylist()  # in another order the same rows
    for command in (["report", "out"], ["export", "out", "--to", "folders"]):
        code, _, stderr = run(*command)
        assert code == 1
        assert "made from embeddings that name no pictures" in stderr
    code, _, stderr = run("update", "out", source)
    assert code == 1
    assert "`cae predict` sorts embeddings" in stderr


@pytest.mark.parametrize("absolute", [False, True])
def test_a_column_of_paths_brings_the_page(run, nouns, tmp_path, absolute):
    paths = pictures_of_embeddings(tmp_path / "data")
    if absolute:
        paths = [str(tmp_path / "data" / path) for path in paths]
    write_parquet(tmp_path / "data/x.parquet", image_path=paths)
    code, stdout, stderr = run("cluster", "data/x.parquet", "-k", K, "--nouns", nouns, "--out", "out")
    assert code == 0, stderr
    assert "30 pictures in" in stdout
    result = SavedResult.load("out")
    assert result.assignments["path"].to_pylist() == paths
    assert all(picture is not None and picture.is_file() for picture in result.image_paths)
    assert result.changed() == []
    page = (tmp_path / "out/report/index.html").read_text(encoding="utf-8")
    assert "Missing from" not in page
    assert (tmp_path / "out/report/report_files/thumbnails/00000.webp").is_file()
    code, _, stderr = run("export", "out", "--to", "folders", "--out", "taken")
    assert code == 0, stderr
    assert len(list_images(tmp_path / "taken")) == 30


def test_paths_that_lead_nowhere_up_or_into_html_do_no_harm(run, nouns, tmp_path):
    paths = pictures_of_embeddings(tmp_path / "data")
    (tmp_path / "data/tables").mkdir()
    paths = [f"../{path}" for path in paths[:-2]] + ["<img src=x onerror=alert(1)>.png", "https://example.org/a.png"]
    write_parquet(tmp_path / "data/tables/x.parquet", path=paths)
    code, _, stderr = run("cluster", "data/tables/x.parquet", "-k", K, "--nouns", nouns, "--out", "out")
    assert code == 0, stderr
    result = SavedResult.load("out")
    assert [picture is not None for picture in result.image_paths] == [True] * 28 + [False] * 2
    page = (tmp_path / "out/report/index.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "2 of 30 pictures" in page


def test_a_folder_of_clip_retrieval_is_images_and_texts_at_once(run, tmp_path):
    paths = pictures_of_embeddings(tmp_path / "clip")
    for name in ("img_emb", "text_emb", "metadata"):
        (tmp_path / "clip" / name).mkdir()
    for i in range(2):
        part = slice(15 * i, 15 * i + 15)
        np.save(tmp_path / f"clip/img_emb/img_emb_{i}.npy", X[part].numpy())
        np.save(tmp_path / f"clip/text_emb/text_emb_{i}.npy", VECTORS[part].numpy())
        table = pa.table({"image_path": paths[part], "caption": WORDS[part]})
        pq.write_table(table, tmp_path / f"clip/metadata/metadata_{i}.parquet")
    code, _, stderr = run("cluster", "clip", "-k", K, "--captions", "clip", "--out", "out")
    assert code == 0, stderr
    result = SavedResult.load("out")
    assert result.fitted.config.modalities == ("caption",)
    assert result.assignments["path"].to_pylist() == paths
    assert {record["name"] for record in result.clusters} <= set(WORDS)
    assert (tmp_path / "out/report/index.html").is_file()


broken = partial(with_row, X)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (broken(4, float("nan")), "row 4 (the first is 0) of x.npy holds NaN or infinity"),
        (broken(4, 0), "row 4 (the first is 0) of x.npy is zero"),
        (X[:, :7], "x.npy holds embeddings of width 7, those of {nouns} have width 48"),
        (X[:2], "x.npy holds 2 embeddings, too few for 3 clusters"),
    ],
)
def test_bad_embeddings_are_named(run, nouns, tmp_path, x, message):
    np.save(tmp_path / "x.npy", x.numpy())
    code, _, stderr = run("cluster", "x.npy", "-k", K, "--nouns", nouns, "--out", "out")
    assert code == 1
    assert message.format(nouns=nouns) in stderr
    assert not (tmp_path / "out/run.json").exists()


def test_embeddings_without_texts_of_their_space_are_told_what_to_give(run, tmp_path, monkeypatch):
    """The default encoder cannot be downloaded here, and another one, as for images, would be the wrong one."""

    def unreachable(*_, **__):
        raise EncoderError("the weights cannot be downloaded", "Use --encoder lite")

    monkeypatch.setattr("cae.models.embedder.load_encoder", unreachable)
    with pytest.raises(EncoderError, match="the weights cannot be downloaded; give vectors of nouns") as caught:
        cae.cluster(X, K, out=tmp_path / "out", progress=False)
    for remedy in ("--nouns FILE, nouns=FILE", "--encoder, encoder=", "cae.CAEClusterer"):
        assert remedy in str(caught.value)
    assert "lite" not in str(caught.value)


def test_embeddings_of_another_width_than_the_encoders_are_told_what_to_give(fake_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("cae.models.embedder.load_encoder", lambda *_, **__: fake_encoder)
    with pytest.raises(ValueError, match=r"of the encoder fake have width 48; .* give vectors of nouns"):
        cae.cluster(X[:, :7], K, out=tmp_path / "out", progress=False)


def test_bad_texts_are_named(run, nouns, tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    np.save(tmp_path / "captions.npy", VECTORS[:, :9].numpy())
    command = ("cluster", "x.npy", "-k", K, "--nouns", nouns, "--captions", "captions.npy", "--out", "out")
    code, _, stderr = run(*command)
    assert code == 1
    assert "there are vectors in captions.npy, but no texts: expected captions.txt" in stderr
    (tmp_path / "captions.txt").write_text("\n".join(WORDS))
    code, _, stderr = run(*command)
    assert code == 1
    assert "captions.npy holds vectors of width 9, the data embeddings of width 48" in stderr
    code, _, stderr = run("texts", "build", "--nouns", nouns)
    assert code == 1
    assert "holds vectors: nothing to embed" in stderr


def test_a_result_that_lies_about_its_rows_is_refused(run, nouns, tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    assert run("cluster", "x.npy", "-k", K, "--nouns", nouns, "--out", "out", "--no-report")[0] == 0
    document = json.loads((tmp_path / "out/run.json").read_text())
    (tmp_path / "out/run.json").write_text(json.dumps({**document, "rows_are": ["embeddings"]}))
    with pytest.raises(ResultError, match="rows_are"):
        SavedResult.load("out")


def written_by_a_result(folder, nouns):
    module = CAE(K, nouns=nouns, n_init=2, return_embeddings=True)
    from cae.results.run import run_embeddings
    from cae.results.writing import write_result

    np.save(folder / "source.npy", X.numpy())
    found = run_embeddings(
        module, folder / "source.npy", device=torch.device("cpu"), reporter=lambda _: lambda *_: None
    )
    (folder / "result").mkdir()
    write_result(found, folder / "result", {})
    return folder / "result/embeddings.safetensors"


def written_by_the_prediction_writer(folder, nouns):
    module = CAE(K, nouns=nouns, n_init=2, return_embeddings=True)
    module.fit_embeddings(X)
    data = EmbeddingData(X, np.repeat(np.arange(3), 10), num_workers=0)
    writer = PredictionWriter(folder / "predictions.parquet")
    Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[writer]).predict(
        module, data, return_predictions=False
    )
    return folder / "predictions.parquet"


def written_by_a_module_with_a_store(folder, nouns):
    module = CAE(K, nouns=nouns, n_init=2, store=folder / "store")
    Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).predict(
        module, EmbeddingData(X, num_workers=0), return_predictions=False
    )
    return folder / "store"


WRITERS = [
    written_by_a_result,
    written_by_the_prediction_writer,
    written_by_a_module_with_a_store,
]


@pytest.mark.parametrize("write", WRITERS)
def test_what_cae_writes_every_door_reads(run, nouns, tmp_path, write):
    file = write(tmp_path, nouns)
    x, _ = read_embeddings(file)
    np.testing.assert_allclose(x.astype(np.float32), X.numpy(), atol=1e-3)
    np.testing.assert_allclose(EmbeddingData(file).x.float().numpy(), X.numpy(), atol=1e-3)
    code, _, stderr = run("cluster", file, "-k", K, "--nouns", nouns, "--out", "again", "--no-report")
    assert code == 0, stderr
    torch.testing.assert_close(SavedResult.load("again").embeddings.float(), X, atol=1e-3, rtol=0)
    code, _, stderr = run("predict", "again", file, "--out", "predicted")
    assert code == 0, stderr
    np.save(tmp_path / "labels.npy", np.repeat(np.arange(3), 10))
    data = load_dataset(os.fspath(file), labels=tmp_path / "labels.npy")
    assert (len(data.x), len(data.labels.unique())) == (30, 3)
    torch.testing.assert_close(data.x, X, atol=1e-3, rtol=0)
