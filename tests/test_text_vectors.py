"""Text vectors made elsewhere: read with their texts, clustered with, and refused by file and row."""

import json
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import FakeEncoder, with_row
from safetensors.torch import save_file
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from cae import CAE, CAEClusterer
from cae.callbacks import ClusteringCallback
from cae.data import EmbeddingData, ImageFolderData
from cae.encoders import EncoderError
from cae.method.fitted import ModelError
from cae.models.trained import TAC
from cae.text import TextError, bank_of_vectors, build_bank, load_banks, load_corpus, load_vectors

D, T = 16, 40
GENERATOR = torch.Generator().manual_seed(0)
VECTORS = 3 * torch.randn(T, D, generator=GENERATOR)
TEXTS = [f"thing {i}" for i in range(T)]
X = normalize(VECTORS[:3].repeat_interleave(20, 0) + 0.3 * torch.randn(60, D, generator=GENERATOR), dim=1)


def write_npy(folder, texts=TEXTS, vectors=VECTORS, stem="nouns"):
    np.save(folder / f"{stem}.npy", vectors.numpy())
    (folder / f"{stem}.txt").write_text("".join(f"{text}\n" for text in texts))
    return folder / f"{stem}.npy"


def write_safetensors(folder, texts=TEXTS, vectors=VECTORS):
    save_file({"embedding": vectors}, folder / "nouns.safetensors", metadata={"texts": json.dumps(texts)})
    return folder / "nouns.safetensors"


def write_parquet(folder, texts=TEXTS, vectors=VECTORS):
    pq.write_table(pa.table({"caption": texts, "embedding": list(vectors.numpy())}), folder / "nouns.parquet")
    return folder / "nouns.parquet"


def write_other_parquet(folder, texts=TEXTS, vectors=VECTORS):
    table = pa.table({"id": range(len(vectors)), "prompt": texts, "text_embedding": list(vectors.numpy())})
    pq.write_table(table, folder / "nouns.parquet")
    return folder / "nouns.parquet"


def write_beside(folder, texts=TEXTS, vectors=VECTORS):
    save_file({"embeddings": vectors}, folder / "nouns.safetensors")
    (folder / "nouns.txt").write_text("\r\n".join(texts) + "\r\n\r\n")
    return folder / "nouns.safetensors"


def write_clip_retrieval(folder, texts=TEXTS, vectors=VECTORS):
    for name in ("text_emb", "metadata"):
        (folder / "clip" / name).mkdir(parents=True)
    for i, start in enumerate(range(0, T, 15)):
        part = slice(start, start + 15)
        np.save(folder / f"clip/text_emb/text_emb_{i}.npy", vectors[part].numpy())
        pq.write_table(pa.table({"caption": texts[part]}), folder / f"clip/metadata/metadata_{i}.parquet")
    return folder / "clip"


WAYS = [write_npy, write_safetensors, write_parquet, write_other_parquet, write_beside, write_clip_retrieval]


@pytest.mark.parametrize("write", WAYS)
def test_vectors_come_with_their_texts(tmp_path, write):
    source = write(tmp_path)
    bank = load_vectors("caption", source)
    assert bank.texts == TEXTS
    assert bank.embeddings.dtype == torch.float16
    torch.testing.assert_close(bank.embeddings.float(), normalize(VECTORS, dim=1), atol=1e-3, rtol=0)
    known = bank.provenance()
    assert (known["kind"], known["name"], known["rows"], known["source_rows"]) == ("caption", source.name, T, T)


def test_vectors_in_place_of_a_corpus_are_told_from_texts(tmp_path):
    with pytest.raises(TextError, match=r"nouns\.npy holds vectors, .*load_vectors reads it"):
        load_corpus("noun", str(write_npy(tmp_path)))
    with pytest.raises(TextError, match=r"no such file: expected wordnet, imagenet22k, .*or of text vectors \(\.npy"):
        load_corpus("noun", "nowhere")


def test_what_is_recorded_differs_where_the_vectors_do():
    one, same, other = (bank_of_vectors("noun", TEXTS, v) for v in (VECTORS, VECTORS * 2, -VECTORS))
    assert one.provenance() == same.provenance()
    assert one.provenance()["vectors"] != other.provenance()["vectors"]
    assert one.provenance()["sha256"] == other.provenance()["sha256"]


def test_a_text_that_is_there_twice_counts_once(tmp_path):
    texts = ["ant", "Ant ", "bee", "ant", *TEXTS[4:]]
    bank = load_vectors("noun", write_npy(tmp_path, texts))
    assert bank.texts == ["ant", "bee", *TEXTS[4:]]
    torch.testing.assert_close(bank.embeddings[1].float(), normalize(VECTORS[2], dim=0), atol=1e-3, rtol=0)
    assert load_vectors("caption", tmp_path / "nouns.npy").texts == ["ant", "Ant", "bee", *TEXTS[4:]]


broken = partial(with_row, VECTORS)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda f: write_npy(f, TEXTS[:-3]),
            r"nouns\.txt holds 37 texts, .*nouns\.npy 40 vectors: row 37 .*without a text",
        ),
        (
            lambda f: write_npy(f, [*TEXTS, "b"]),
            r"nouns\.txt holds 41 texts, .*nouns\.npy 40 .*row 40 .*without a vector",
        ),
        (lambda f: write_npy(f, [*TEXTS[:5], " ", *TEXTS[6:]]), r"line 6 of .*nouns\.txt has no text"),
        (
            lambda f: write_parquet(f, [*TEXTS[:5], None, *TEXTS[6:]]),
            r"row 5 \(the first is 0\) of .*nouns\.parquet has no",
        ),
        (lambda f: write_parquet(f, list(range(T))), r"row 0 \(the first is 0\) of .*nouns\.parquet has no text"),
        (
            lambda f: write_safetensors(f, TEXTS[:9]),
            r"nouns\.safetensors holds 9 texts, .*nouns\.safetensors 40 vectors",
        ),
        (
            lambda f: write_npy(f, vectors=broken(7, float("nan"))),
            r"row 7 \(the first is 0\) of .*nouns\.npy holds NaN",
        ),
        (lambda f: write_parquet(f, vectors=broken(7, 0)), r"row 7 \(the first is 0\) of .*nouns\.parquet is zero"),
    ],
)
def test_texts_and_vectors_that_do_not_fit_are_named_by_file_and_row(tmp_path, write, message):
    with pytest.raises(TextError, match=message):
        load_vectors("noun", write(tmp_path))


@pytest.mark.parametrize(
    ("write", "forget", "message"),
    [
        (write_npy, "nouns.txt", r"vectors in .*nouns\.npy, but no texts: expected .*nouns\.txt with one text a line"),
        (write_beside, "nouns.txt", "a JSON list `texts` in its metadata, or"),
        (write_clip_retrieval, "clip/metadata", r"expected a column `caption` in metadata/\*\.parquet"),
    ],
)
def test_vectors_without_texts_are_refused(tmp_path, write, forget, message):
    source = write(tmp_path)
    (tmp_path / forget).rename(tmp_path / "elsewhere")
    with pytest.raises(TextError, match=message):
        load_vectors("noun", source)


def test_metadata_that_is_no_list_of_texts_is_refused(tmp_path):
    for texts in ("[1, 2]", "not json", "{}", "[" * 100_000):
        save_file({"embedding": VECTORS}, tmp_path / "x.safetensors", metadata={"texts": texts})
        with pytest.raises(TextError, match=r"x\.safetensors cannot be used"):
            load_vectors("noun", tmp_path / "x.safetensors")


def test_vectors_in_memory_that_do_not_fit_are_refused():
    with pytest.raises(TextError, match=r"39 texts for vectors of shape \(40, 16\)"):
        bank_of_vectors("noun", TEXTS[:-1], VECTORS)
    with pytest.raises(TextError, match=r"row 7 .* of mine is zero"):
        bank_of_vectors("noun", TEXTS, broken(7, 0), name="mine")


def test_a_cached_bank_can_be_taken_elsewhere(text_files, isolated_cache):
    corpus = load_corpus("noun", text_files["nouns"])
    made = build_bank(corpus, FakeEncoder())
    (file,) = isolated_cache.rglob("embeddings.safetensors")
    again = load_vectors("noun", file)
    assert again.texts == made.texts
    torch.testing.assert_close(again.embeddings, made.embeddings, atol=1e-3, rtol=0)


@pytest.fixture
def no_encoder(monkeypatch):
    """Loading an encoder fails the test."""
    for home in ("cae.models.embedder", "cae.encoders", "cae.encoders.deferred", "cae.models.estimator"):
        monkeypatch.setattr(f"{home}.load_encoder", lambda *_, **__: pytest.fail("an encoder is loaded"))


def trainer(**options):
    return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, **options)


def clusters(batches):
    return torch.cat([batch["cluster"] for batch in batches])


def assert_three_groups(labels):
    groups = torch.as_tensor(labels).reshape(3, 20)
    assert (groups == groups[:, :1]).all()
    assert len(set(groups[:, 0].tolist())) == 3


@pytest.mark.parametrize("data", [lambda: EmbeddingData(X, batch_size=16, num_workers=0), lambda: DataLoader(X, 16)])
@pytest.mark.parametrize("captions", [False, True])
def test_embeddings_and_text_vectors_need_no_encoder(tmp_path, no_encoder, data, captions):
    options = {"captions": write_npy(tmp_path, stem="captions")} if captions else {}
    module = CAE(3, nouns=write_npy(tmp_path), n_init=2, **options)
    labels = clusters(trainer().predict(module, data()))
    assert_three_groups(labels)
    assert module.config.modalities == (("noun", "caption") if captions else ("noun",))
    assert {cluster.name for cluster in module.fitted.clusters} <= set(TEXTS)
    assert module.fitted.provenance["encoder"] == {"spec": "none", "fingerprint": "none", "dim": D}
    module.save_pretrained(tmp_path / "model")
    again = CAE.from_pretrained(tmp_path / "model")
    assert torch.equal(clusters(trainer().predict(again, data())), labels)
    trainer(max_epochs=1).fit(module := CAE(3, nouns=tmp_path / "nouns.npy", n_init=2), data())
    assert module.fitted.n_images == len(X)


def test_a_checkpoint_of_such_a_model_predicts(tmp_path, no_encoder):
    module, runner = CAE(3, nouns=write_npy(tmp_path), n_init=2), trainer(max_epochs=1)
    data = EmbeddingData(X, num_workers=0)
    runner.fit(module, data)
    runner.save_checkpoint(tmp_path / "model.ckpt")
    again = CAE.load_from_checkpoint(tmp_path / "model.ckpt")
    (tmp_path / "nouns.npy").unlink()  # what is fitted needs it no more
    assert_three_groups(clusters(trainer().predict(again, data)))


def test_captions_alone_are_enough_but_not_for_what_needs_nouns(tmp_path):
    captions = write_npy(tmp_path, stem="captions")
    module = CAE(3, captions=captions, n_init=2)
    assert_three_groups(module.fit_embeddings(X).cluster)
    assert module.config.modalities == ("caption",)
    with pytest.raises(TextError, match="these settings need nouns, and only captions are given as vectors"):
        CAE(3, captions=captions, preset="tac")
    with pytest.raises(TextError, match="no nouns are given beside the vectors"):
        CAE(3, captions=captions, modalities=("noun", "caption")).fit_embeddings(X)


def test_a_trained_method_takes_them_as_well(tmp_path, no_encoder):
    module = TAC(3, nouns=write_npy(tmp_path))
    module.fit_embeddings(X)
    assert_three_groups(module.predict_embeddings(X).cluster)
    assert module.fitted.provenance["encoder"]["spec"] == "none"


def test_texts_of_another_width_are_refused(tmp_path):
    nouns = write_npy(tmp_path, vectors=VECTORS[:, :8])
    message = r"nouns\.npy holds vectors of width 8, the data embeddings of width 16"
    with pytest.raises(TextError, match=message):
        CAE(3, nouns=nouns).fit_embeddings(X)
    with pytest.raises(ValueError, match=r"expected embeddings of width 8, that of .*nouns\.npy, got \(60, 16\)"):
        trainer().predict(CAE(3, nouns=nouns), EmbeddingData(X, num_workers=0))


def test_pictures_with_text_vectors_are_encoded(tmp_path, monkeypatch, picture_folder):
    calls = []
    monkeypatch.setattr("cae.encoders.deferred.load_encoder", lambda spec, **_: calls.append(spec) or FakeEncoder())
    vectors = torch.randn(T, FakeEncoder.dim, generator=GENERATOR)
    module = CAE(3, nouns=write_npy(tmp_path, vectors=vectors), encoder="some", n_init=2, store=tmp_path / "store")
    trainer().predict(module, datamodule=ImageFolderData(picture_folder, num_workers=0))
    assert calls == ["some"]
    assert module.fitted.provenance["encoder"]["fingerprint"] == "fake-1"
    narrow = CAE(3, nouns=write_npy(tmp_path, vectors=vectors[:, :8]), encoder="some")
    with pytest.raises(EncoderError, match=r"some makes vectors of width 48, those of .*nouns\.npy have width 8"):
        trainer().predict(narrow, datamodule=ImageFolderData(picture_folder, num_workers=0))


def test_a_model_of_embeddings_says_that_it_cannot_encode_pictures(tmp_path, picture_folder, monkeypatch):
    module = CAE(3, nouns=write_npy(tmp_path), n_init=2)
    module.fit_embeddings(X)
    module.save_pretrained(tmp_path / "model")
    pictures = ImageFolderData(picture_folder, num_workers=0)
    with pytest.raises(EncoderError, match="nothing says by which encoder"):
        trainer().predict(CAE.from_pretrained(tmp_path / "model"), datamodule=pictures)
    monkeypatch.setattr("cae.encoders.deferred.load_encoder", lambda *_, **__: FakeEncoder())
    with pytest.raises(EncoderError, match="some makes vectors of width 48, those of the fitted model have width 16"):
        trainer().predict(CAE.from_pretrained(tmp_path / "model", encoder="some"), datamodule=pictures)


def test_embeddings_in_a_trainer_without_texts_are_told_what_to_give(monkeypatch):
    def unreachable(*_, **__):
        raise EncoderError("the weights cannot be downloaded", "Use --encoder lite")

    monkeypatch.setattr("cae.models.embedder.load_encoder", unreachable)
    for run in (trainer().predict, trainer(max_epochs=1).fit):
        with pytest.raises(EncoderError, match="the weights cannot be downloaded; give vectors of nouns") as caught:
            run(CAE(3), EmbeddingData(X, num_workers=0))
        assert "lite" not in str(caught.value)
    for run in (trainer().predict, trainer(max_epochs=1).fit):  # a loader does not say what it holds
        with pytest.raises(EncoderError, match=r"Use --encoder lite\. If your batches hold embeddings, give"):
            run(CAE(3), DataLoader(X, batch_size=20))


@pytest.mark.parametrize("make", [CAE, ClusteringCallback, TAC])
def test_vectors_in_memory_are_told_to_be_saved(make):
    with pytest.raises(TypeError, match=r"nouns: expected .* a file, got ndarray; save vectors as nouns\.npy"):
        make(3, nouns=VECTORS.numpy())


def test_a_fitted_model_labels_embeddings_without_its_encoder(tmp_path, monkeypatch, picture_folder, text_files):
    fitted = CAE(3, encoder=FakeEncoder(), n_init=2, **text_files)
    x = normalize(torch.randn(30, FakeEncoder.dim, generator=GENERATOR), dim=1)
    labels = fitted.fit_embeddings(x).cluster
    fitted.save_pretrained(tmp_path / "model")
    home = "cae.encoders.deferred.load_encoder"
    monkeypatch.setattr(home, lambda *_, **__: pytest.fail("an encoder is loaded"))
    module = CAE.from_pretrained(tmp_path / "model")
    data = EmbeddingData(x, labels, num_workers=0)
    assert torch.equal(trainer().predict(module, datamodule=data)[0]["cluster"], labels)
    assert trainer().test(module, datamodule=data, verbose=False)[0]["test/acc"] == 1

    other = FakeEncoder()
    other.fingerprint = "fake-2"
    monkeypatch.setattr(home, lambda *_, **__: other)
    with pytest.raises(ModelError, match=r"fitted with encoder fake \(fake-1\), but this one is fake \(fake-2\)"):
        module(torch.rand(2, 3, 4, 4))


def test_banks_of_vectors_and_of_corpora_mix(tmp_path, text_files):
    vectors = torch.randn(T, FakeEncoder.dim, generator=GENERATOR)
    sources = {"noun": write_npy(tmp_path, vectors=vectors, stem="things"), "caption": text_files["captions"]}
    banks = load_banks(["noun", "caption"], sources, FakeEncoder)
    assert len(banks["noun"].texts) == T
    assert (banks["caption"].encoder, len(banks["caption"].texts)) == ("fake", 90)


def test_an_encoder_for_two_corpora_is_loaded_once(text_files):
    calls = []
    sources = {"noun": text_files["nouns"], "caption": text_files["captions"]}
    load_banks(["noun", "caption"], sources, lambda: calls.append(1) or FakeEncoder())
    assert calls == [1]


def test_the_clusterer_takes_them(tmp_path, no_encoder):
    found = CAEClusterer(3, nouns=write_npy(tmp_path), settings={"n_init": 2}).fit(X.numpy())
    assert_three_groups(found.labels_)
    assert found.fitted_.config.modalities == ("noun",)
    both = CAEClusterer(3, nouns=tmp_path / "nouns.npy", captions="glosses")
    with pytest.raises(ValueError, match="nouns and captions that are no vectors have to be embedded"):
        both.fit(X.numpy())
    banks = {"noun": bank_of_vectors("noun", TEXTS, VECTORS)}
    in_memory = CAEClusterer(3, banks=banks, settings={"n_init": 2, "modalities": ("noun",)}).fit(X.numpy())
    assert (in_memory.labels_ == found.labels_).all()


class Model(pl.LightningModule):
    def validation_step(self, batch, batch_idx):
        return {"embedding": batch}


def test_the_callback_takes_them(tmp_path, no_encoder):
    callback = ClusteringCallback(3, nouns=write_npy(tmp_path), strict=True)
    trainer(callbacks=[callback]).validate(Model(), DataLoader(X, 20), verbose=False)
    assert_three_groups(callback.clustering.labels)
    assert set(callback.clustering.scores) >= {"beta_image", "beta_noun"}
    assert "beta_caption" not in callback.clustering.scores
