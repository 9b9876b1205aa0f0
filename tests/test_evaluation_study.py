"""A whole evaluation, from pictures to tables, as library and as command."""

import json
import sys

import numpy as np
import pytest
import torch

from cae import evaluation
from cae.cli import commands as cli
from cae.evaluation import DatasetError, embed, load_dataset
from cae.evaluation.paper import PAPER
from cae.evaluation.tables import markdown, sweeps
from cae.text import TextError

# Texts of the fake encoder are noise, far from every picture: transport at the default epsilon is slow to balance.
pytestmark = pytest.mark.filterwarnings("ignore:cosine_sinkhorn")

FAST = "n_init=2:images_per_center=5:epsilon=0.1"


@pytest.fixture
def encoder(monkeypatch, fake_encoder):
    monkeypatch.setattr("cae.evaluation.run.load_encoder", lambda *_, **__: fake_encoder)
    return fake_encoder


@pytest.fixture
def evaluate(encoder, picture_folder, text_files, tmp_path):
    def evaluate(methods, **changes):
        options = {"encoder": "fake", "seeds": range(2), "workers": 0, **text_files, **changes}
        return evaluation.evaluate(str(picture_folder), methods, tmp_path / "out", **options)

    return evaluate


def test_results_on_disk(evaluate, tmp_path):
    methods = ["kmeans", "zero-shot", f"default:{FAST}", f"tac:{FAST}"]
    results = evaluate(methods, tsne=True)
    document = json.loads((tmp_path / "out/results.json").read_text())
    assert document["results"] == json.loads(json.dumps(results))
    assert [result["method"] for result in results] == methods
    for result in results:
        for metric in ("nmi", "acc", "ari"):
            assert set(result[metric]) == {"mean", "std"}
            runs = [run[metric] for run in result["runs"]]
            assert result[metric]["mean"] == pytest.approx(np.mean(runs))
            assert result[metric]["std"] == pytest.approx(np.std(runs, ddof=1))
        assert result["seconds"]["total"] > 0
        assert -1 <= result["stability"] <= 1
    assert results[0]["acc"]["mean"] == 100  # red, green and blue
    stages = {
        "centers",
        "retrieval",
        "transport",
        "counterparts",
        "fusion",
        "spectral clustering",
        "assignment",
        "tree of groups",
        "naming",
        "total",
    }
    assert set(results[2]["seconds"]) == stages
    assert results[2]["config"]["images_per_center"] == 5
    assert document["dataset"]["images"] == 30
    assert document["seeds"] == [0, 1]
    assert document["corpora"]["noun"]["sha256"]
    assert document["encoder"]["fingerprint"] == "fake-1"
    assert document["peak_memory_bytes"]["host"] > 0
    assert "| k-means on image embeddings (`kmeans`) | 100.0 ± 0.0 |" in (tmp_path / "out/results.md").read_text()
    for plot in ("accuracy.png", "tsne.png"):
        assert (tmp_path / "out" / plot).read_bytes()[:4] == b"\x89PNG"


def test_a_sweep_gets_its_plot(evaluate, tmp_path):
    results = evaluate([f"default:{FAST}:top_k={k}" for k in (4, 2)], seeds=[0])
    (shared,) = sweeps(results)
    assert shared == f"default:{FAST}:top_k"
    assert [value for value, _ in sweeps(results)[shared]] == [2, 4]
    assert len(list((tmp_path / "out").glob("sweep-*.png"))) == 1
    assert results[0]["stability"] is None


def test_pictures_are_embedded_once(encoder, picture_folder, monkeypatch):
    data = load_dataset(str(picture_folder))
    first = embed(data, encoder, workers=0)
    monkeypatch.setattr(type(encoder), "encode_images", None)
    again = embed(data, encoder, workers=0)
    assert torch.equal(first.x, again.x)
    assert torch.equal(again.labels, data.labels)


def test_unreadable_pictures_lose_their_labels_too(encoder, picture_folder):
    (picture_folder / "blue" / "0.png").write_bytes(b"no picture")
    embedded = embed(load_dataset(str(picture_folder)), encoder, workers=0)
    assert len(embedded.x) == 29
    assert torch.bincount(embedded.labels).tolist() == [9, 10, 10]
    for file in picture_folder.rglob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="none of the 30 pictures"):
        embed(load_dataset(str(picture_folder)), encoder, workers=0)


def test_texts_are_selected_on_the_training_split(evaluate, picture_folder):
    with pytest.raises(DatasetError, match="no folders `train` and `test`"):
        evaluate(["tac"], fit_on="train")
    for part in ("train", "test"):
        (picture_folder / part).mkdir()
    for colour in ("red", "green", "blue"):
        (picture_folder / "train" / colour).mkdir()
        for i in range(5):
            (picture_folder / colour / f"{i}.png").rename(picture_folder / "train" / colour / f"{i}.png")
        (picture_folder / colour).rename(picture_folder / "test" / colour)
    results = evaluate([f"tac:{FAST}"], fit_on="train", seeds=[0])
    assert results[0]["acc"]["mean"] > 30


def test_class_names_are_read_as_texts_are(evaluate, tmp_path):
    """With a byte order mark, as Windows' editors begin a file: it is no part of a name."""
    plain, marked = (tmp_path / f"{name}.txt" for name in ("plain", "marked"))
    plain.write_text("blue\ngreen\nred\n")
    marked.write_text("blue\r\n\r\ngreen \r\nred\r\n", encoding="utf-8-sig")
    scores = [evaluate(["zero-shot"], class_names=names)[0]["nmi"] for names in (plain, marked)]
    assert scores[0] == scores[1]


def test_what_does_not_fit_is_named_before_anything_runs(evaluate, tmp_path):
    (tmp_path / "names.txt").write_text("red\ngreen\n")
    with pytest.raises(DatasetError, match="2 class names for the 3 classes"):
        evaluate(["zero-shot"], class_names=tmp_path / "names.txt")
    with pytest.raises(TextError, match=r"nowhere\.txt cannot be read"):
        evaluate(["zero-shot"], class_names=tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        evaluate(["kmeans", "magic"])
    with pytest.raises(ValueError, match="at least one method"):
        evaluate([])


def test_zero_shot_is_left_out_without_names(encoder, text_files, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 48)).astype(np.float32))
    np.save(tmp_path / "x.labels.npy", np.arange(20) % 2)
    results = evaluation.evaluate(
        str(tmp_path / "x.npy"), ["kmeans", "zero-shot"], tmp_path / "out", encoder="fake", seeds=[0], **text_files
    )
    assert [result["method"] for result in results] == ["kmeans"]


def test_the_papers_numbers_stand_beside_ours():
    assert len(PAPER) == 8
    assert PAPER["CIFAR-10"]["paper"] == {"nmi": 81.7, "acc": 90.9, "ari": 80.5}
    spread = {"mean": 50.0, "std": 1.0}
    result = {"method": "tac", "about": "TAC", "seconds": {"total": 2.0}, "nmi": spread, "acc": spread, "ari": spread}
    conditions = {
        "dataset": {"name": "CIFAR-10", "images": 10000, "classes": 10, "texts_selected_on": "train"},
        "seeds": [0],
        "corpora": {},
        "encoder": {"spec": "lite"},
        "machine": {"gpu": None, "cores": 2},
    }
    page = markdown([result], conditions)
    assert "| paper (CLIP ViT-B/32): NMI / ACC / ARI |" in page
    assert "| TAC (`tac`) | 50.0 ± 1.0 | 50.0 ± 1.0 | 50.0 ± 1.0 | 2.0 | 80.8 / 90.1 / 79.8 |" in page
    assert "not CLIP" in page


def test_the_command(encoder, picture_folder, text_files, tmp_path, monkeypatch, capfd):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cae", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, *capfd.readouterr()

    out = tmp_path / "out"
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"]]
    options = ["--seeds", 1, "--out", out, "--workers", 0, *texts]
    code, stdout, stderr = run("--dataset", picture_folder, "--methods", f"kmeans, default:{FAST}", *options)
    assert code == 0, stderr
    assert "kmeans" in stdout
    assert json.loads((out / "results.json").read_text())["results"][0]["method"] == "kmeans"
    code, _, stderr = run("--dataset", tmp_path / "nowhere", *options)
    assert code == 1
    assert "no data set" in stderr
