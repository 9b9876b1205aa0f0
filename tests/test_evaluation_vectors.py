"""`cae evaluate` on embeddings and text vectors: no encoder is loaded, and what cannot run is said."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import FakeEncoder
from torch.nn.functional import normalize

from cae.evaluation import DatasetError, evaluate
from cae.text import TextError

D = FakeEncoder.dim
GENERATOR = torch.Generator().manual_seed(0)
WORDS = [f"thing {i}" for i in range(30)]
VECTORS = normalize(torch.randn(30, D, generator=GENERATOR), dim=1)
X = normalize(VECTORS[:3].repeat_interleave(15, 0) + 0.05 * torch.randn(45, D, generator=GENERATOR), dim=1)
Y = np.arange(45) // 15


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Embeddings with labels, and vectors of nouns, captions and class names; an encoder that is asked for fails."""
    for home in ("cae.evaluation.run", "cae.encoders.deferred"):
        monkeypatch.setattr(f"{home}.load_encoder", lambda *_, **__: pytest.fail("an encoder is loaded"))
    np.save(tmp_path / "x.npy", X.numpy())
    np.save(tmp_path / "x.labels.npy", Y)
    for name, rows in {"nouns": slice(None), "captions": slice(None), "classes": slice(0, 3)}.items():
        np.save(tmp_path / f"{name}.npy", VECTORS[rows].numpy())
        (tmp_path / f"{name}.txt").write_text("\n".join(WORDS[rows]))
    table = pa.table({"embedding": list(X.numpy()), "label": [WORDS[i] for i in Y]})
    pq.write_table(table, tmp_path / "x.parquet")
    return tmp_path


def study(files, methods, **options):
    results = evaluate(
        str(files / options.pop("dataset", "x.npy")), methods, files / "out", encoder="some", seeds=[0], **options
    )
    return {result["method"]: round(result["acc"]["mean"]) for result in results}


ALL = ["kmeans", "zero-shot", "tac:n_init=2", "paper:n_init=2", "default:n_init=2", "auto:n_init=2"]


def test_nouns_alone_make_a_table(files, caplog):
    scores = study(files, ALL, nouns=str(files / "nouns.npy"))
    assert list(scores) == [
        "kmeans", "tac:n_init=2", "paper:n_init=2:modalities=noun", "default:n_init=2:modalities=noun",
        "auto:n_init=2:modalities=noun",
    ]  # fmt: skip
    assert scores["default:n_init=2:modalities=noun"] == 100
    assert "zero-shot is left out: the classes of" in caplog.text
    document = json.loads((files / "out/results.json").read_text())
    assert document["encoder"] == {"spec": "none", "fingerprint": "none", "dim": D}
    assert document["corpora"]["noun"]["name"] == "nouns.npy"
    assert "without their encoder" in (files / "out/results.md").read_text()


@pytest.mark.parametrize("methods", [["default:n_init=2"], ["kmeans"]], ids=["nouns alone", "no texts"])
def test_embeddings_are_drawn_with_the_texts_there_are(files, methods, caplog):
    study(files, methods, nouns=files / "nouns.npy", tsne=True)
    assert (files / "out/tsne.png").is_file() == ("are not drawn" not in caplog.text) == (methods != ["kmeans"])


def test_nouns_and_captions_leave_the_methods_as_they_are(files, caplog):
    scores = study(files, ALL[3:], nouns=files / "nouns.npy", captions=files / "captions.npy")
    assert list(scores) == ALL[3:]
    assert not caplog.text


def test_methods_without_their_texts_are_left_out_with_a_word(files, caplog):
    scores = study(files, ["kmeans", "tac", "default:n_init=2"], captions=files / "captions.npy")
    assert list(scores) == ["kmeans", "default:n_init=2:modalities=caption"]
    assert "tac is left out: it needs nouns" in caplog.text
    with pytest.raises(ValueError, match="no method is left to run"):
        study(files, ["tac"], captions=files / "captions.npy")


def test_zero_shot_takes_the_vectors_of_names(files):
    assert study(files, ["zero-shot"], nouns=files / "nouns.npy", class_names=files / "classes.npy") == {
        "zero-shot": 100
    }


@pytest.mark.parametrize(
    ("dataset", "why"),
    [("x.npy", "have no names"), ("x.parquet", "nothing says which encoder to embed the class names")],
)
def test_zero_shot_that_cannot_run_is_said(files, dataset, why, caplog):
    study(files, ["kmeans", "zero-shot"], dataset=dataset, nouns=files / "nouns.npy")
    assert why in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING
    with pytest.raises(DatasetError, match=f"zero-shot cannot run: .*{why}"):
        study(files, ["zero-shot"], dataset=dataset, nouns=files / "nouns.npy")


def test_names_in_a_text_file_are_encoded(files, monkeypatch):
    class Known(FakeEncoder):
        def encode_texts(self, texts):
            return VECTORS[[WORDS.index(text.removeprefix("a photo of ")) for text in texts]]

    monkeypatch.setattr("cae.encoders.deferred.load_encoder", lambda *_, **__: Known())
    assert study(files, ["zero-shot"], class_names=files / "classes.txt") == {"zero-shot": 100}
    document = json.loads((files / "out/results.json").read_text())
    assert document["encoder"]["fingerprint"] == "fake-1"
    assert study(files, ["zero-shot"], dataset="x.parquet") == {"zero-shot": 100}


def test_widths_that_differ_name_both_files(files):
    np.save(files / "nouns.npy", VECTORS[:, :9].numpy())
    message = r"nouns\.npy holds vectors of width 9, .*x\.npy embeddings of width 48"
    with pytest.raises(TextError, match=message):
        study(files, ["default"], nouns=files / "nouns.npy")
    np.save(files / "classes.npy", VECTORS[:3, :9].numpy())
    with pytest.raises(DatasetError, match="class names have width 9, the embeddings of x 48"):
        study(files, ["zero-shot"], class_names=files / "classes.npy")


def test_a_row_that_is_no_embedding_is_named(files):
    x = X.numpy().copy()
    x[4] = np.nan
    np.save(files / "x.npy", x)
    with pytest.raises(DatasetError, match=r"row 4 \(the first is 0\) of .*x\.npy holds NaN"):
        study(files, ["kmeans"])
