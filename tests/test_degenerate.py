"""Data with hardly anything in it to cluster: sensible results or clear errors, no empty cluster without a word."""

import logging
import shutil

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from cae import CAEClusterer
from cae.config import CAEConfig
from cae.method import pipeline
from cae.text import Corpus, TextBank

PRESETS = ("auto", "default", "paper", "tac")


def random_rows(n, d=16):
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(n + d)), dim=1)


def banks(dim, nouns=60, captions=60):
    made = {}
    for kind, n in (("noun", nouns), ("caption", captions)):
        corpus = Corpus(kind, "random", [f"{kind} {i}" for i in range(n)], None, n)
        made[kind] = TextBank(corpus, random_rows(n, dim).half(), "{}", "random", "random-1")
    return made


def one_huge():
    """2,000 pictures of one thing, and two each of five others."""
    generator = torch.Generator().manual_seed(0)
    things = torch.eye(16)[[0] * 2000 + [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]]
    return normalize(things + 0.01 * torch.randn(things.shape, generator=generator), dim=1)


CASES = {  # rows, K, and how many nouns and captions there are
    "K = N": (random_rows(12), 12),
    "K = N - 1": (random_rows(12), 11),
    "K = 1": (random_rows(12), 1),
    "K > N": (random_rows(12), 13),
    "all equal": (random_rows(1).repeat(50, 1), 3),
    "two exact groups": (torch.eye(16)[torch.arange(40) % 2], 2),
    "two exact groups, K = 3": (torch.eye(16)[torch.arange(40) % 2], 3),
    "one huge, many tiny": (one_huge(), 6),
    "each 1000 times": (random_rows(12).repeat(1000, 1), 5),
    "each 1000 times, K = all": (random_rows(12).repeat(1000, 1), 12),
    "each 1000 times, K > all": (random_rows(12).repeat(1000, 1), 13),
    "N = 0": (random_rows(2)[:0], 2),
    "N = 1": (random_rows(1), 2),
    "N = 2": (random_rows(2), 2),
    "N = 3": (random_rows(3), 2),
    "N < images_per_center": (random_rows(100), 7),
    "opposite": (torch.cat([random_rows(20), -random_rows(20)]), 2),
    "D = 1": (random_rows(20, 1), 2),
    "D = 1, K = 3": (random_rows(20, 1), 3),
    "D = 2": (random_rows(50, 2), 4),
    "one noun": (random_rows(60), 4, 1, 60),
    "one caption": (random_rows(60), 4, 60, 1),
    "one noun, one caption": (random_rows(60), 4, 1, 1),
}


def outcome(name, preset, k, caplog):
    """`clustered`, `told` with a warning of empty clusters, or `refused`; anything else fails."""
    x, own_k, *texts = CASES[name]
    caplog.clear()
    try:
        with caplog.at_level(logging.WARNING, "cae"):
            config = CAEConfig.from_preset(preset, own_k if k == "own" else k, n_init=3)
            fitted, found = pipeline.fit(x, banks(x.shape[1], *texts), config)
    except ValueError as error:
        assert str(error)
        return "refused"
    sizes = found.cluster.bincount(minlength=fitted.config.n_clusters)
    assert len(sizes) == fitted.config.n_clusters == len(fitted.clusters)
    assert [cluster.size for cluster in fitted.clusters] == sizes.tolist()
    assert all(column.isfinite().all() for column in found)
    assert torch.equal(pipeline.predict(x, fitted).cluster, found.cluster)
    told = [record.getMessage() for record in caplog.records if "hold no image" in record.getMessage()]
    assert len(told) == (sizes == 0).any()
    assert len(x.unique(dim=0)) < len(sizes) or not told, "clusters are empty that could be full"
    return "told" if told else "clustered"


@pytest.mark.parametrize("name", [name for name, (x, *_) in CASES.items() if len(x) < 1000])
@pytest.mark.parametrize("k", ["own", "auto"])
def test_embeddings(name, k, caplog):
    outcome(name, "default", k, caplog)


def test_what_becomes_of_a_few(caplog):
    assert outcome("K = N", "auto", "own", caplog) == "clustered"
    assert outcome("all equal", "auto", "own", caplog) == "told"
    assert outcome("all equal", "auto", "auto", caplog) == "refused"
    assert outcome("each 1000 times, K > all", "default", "own", caplog) == "told"
    assert outcome("one huge, many tiny", "default", "own", caplog) == "clustered"
    assert outcome("two exact groups", "auto", "auto", caplog) == "clustered"
    assert outcome("N = 1", "auto", "own", caplog) == "refused"


def test_the_number_of_groups_is_at_most_that_of_different_images():
    x = torch.eye(16)[torch.arange(60) % 5]
    fitted, _ = pipeline.fit(x, banks(16), CAEConfig.from_preset("default", "auto"))
    assert fitted.config.n_clusters == 5
    with pytest.raises(ValueError, match="50 images that are all the same have no number of clusters"):
        pipeline.fit(CASES["all equal"][0], banks(16), CAEConfig.from_preset("default", "auto"))


def test_without_texts_empty_clusters_are_told_too(caplog):
    x = CASES["two exact groups"][0].numpy()
    assert set(CAEClusterer(3, settings={"n_init": 2}).fit(x).labels_) == {0, 1}
    assert "1 of 3 clusters hold no image" in caplog.text


def make_folder(root, kind):
    root.mkdir()
    pictures = {
        "equal": [Image.new("RGB", (8, 8), "red")] * 9,
        "one": [Image.new("RGB", (8, 8), "red")],
        "shapes": [
            Image.effect_noise(size, 90) for size in ((1, 1), (20_000, 10), (1, 5000), (7, 9), (2, 2), (64, 64))
        ],
        "none readable": [],
    }[kind]
    for i, picture in enumerate(pictures):
        picture.save(root / f"{i}.png")
    (root / "broken.png").write_bytes(b"broken")
    return root


FOLDERS = ("equal", "one", "shapes", "none readable")


def folder_outcome(run, tmp_path, caplog, kind, *options):
    """Exit code and messages of `cae cluster` on a folder; the report is drawn, too."""
    root = tmp_path / "folder"
    shutil.rmtree(root, ignore_errors=True)
    code, _, stderr = run("cluster", make_folder(root, kind), "--out", tmp_path / "out", "--workers", 0, *options)
    assert code in (0, 1)
    assert "skipped broken.png" in stderr or code == 1
    return code, " ".join((stderr + caplog.text).split())


@pytest.mark.parametrize(
    ("kind", "k", "code", "message"),
    [
        ("equal", "2", 0, "1 of 2 clusters hold no image"),
        ("equal", "auto", 1, "all the same"),
        ("one", "2", 1, "fewer clusters"),
        ("shapes", "6", 0, "skipped broken.png"),
        ("shapes", "auto", 0, "skipped broken.png"),
        ("none readable", "2", 1, "too few for 2 clusters"),
        ("one", "auto", 1, "too few to find out how many clusters there are: that takes 6; give --clusters or add"),
    ],
)
def test_folders(run, tmp_path, text_files, caplog, kind, k, code, message):
    texts = ("--nouns", text_files["nouns"], "--captions", text_files["captions"])
    found, said = folder_outcome(run, tmp_path, caplog, kind, "-k", k, *texts)
    assert found == code, said
    assert message in said
