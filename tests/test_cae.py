"""`CAE` under a real Trainer: one pass on a fresh module, the same labels ever after."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, BatchSizeFinder
from PIL import Image
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from cae import CAE, CAEHeads, ImageFolderData
from cae.data import EmbeddingData
from cae.method.fitted import ModelError
from cae.metrics import clustering_scores
from cae.models.pending import on_cpu
from cae.text import TextError

K = 3


@pytest.fixture
def module(fake_encoder, text_files):
    return CAE(K, encoder=fake_encoder, n_init=3, **text_files)


def trainer(**options):
    return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, **options)


def predict(module, data):
    with warnings.catch_warnings():
        # A hint about speed, which a test on a few pictures does not need.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        return trainer().predict(module, data)


@pytest.fixture
def blobs(module):
    """(60, D) embeddings in three groups, and the groups."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(K, module.encoder.dim, generator=generator)
    groups = torch.arange(60) % K
    return normalize(centers[groups] + 0.5 * torch.randn(60, module.encoder.dim, generator=generator), dim=1), groups


def joined(batches, key="cluster"):
    return torch.cat([batch[key] for batch in batches])


def test_fresh_predict_fits_and_fills_in_every_batch(module, picture_folder):
    batches = predict(module, ImageFolderData(picture_folder, batch_size=4, num_workers=0))
    labels = joined(batches)
    assert set(labels.tolist()) == set(range(K))
    assert joined(batches, "index").tolist() == list(range(len(labels)))
    torch.testing.assert_close(joined(batches, "beta").sum(dim=1), torch.ones(len(labels)))
    assert joined(batches, "confidence").isfinite().all()
    assert [cluster.id for cluster in module.fitted.clusters] == list(range(K))


def test_images_are_encoded_once(module, picture_folder, monkeypatch):
    encoded = []
    encode = module.encoder.encode_images
    monkeypatch.setattr(module.encoder, "encode_images", lambda images: encoded.append(len(images)) or encode(images))
    data = ImageFolderData(picture_folder, batch_size=4, num_workers=0)
    predict(module, data)
    assert sum(encoded) == len(data.paths)


@pytest.mark.parametrize("method", [CAE, CAEHeads])
@pytest.mark.parametrize("misspelt", [{"nouns": "nuons.txt"}, {"captions": "flickr"}])
def test_a_corpus_that_is_not_there_is_named_before_an_encoder_is_loaded(
    method, misspelt, text_files, picture_folder, monkeypatch
):
    monkeypatch.setattr("cae.models.embedder.load_encoder", lambda *_, **__: pytest.fail("a download for nothing"))
    module = method(K, **{**text_files, **misspelt})
    with pytest.raises(TextError, match=next(iter(misspelt.values()))):
        trainer(max_epochs=1).fit(module, datamodule=ImageFolderData(picture_folder, num_workers=0))


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_predict_again_gives_the_labels_of_the_fit(module, picture_folder, batch_size):
    at_fit = predict(module, ImageFolderData(picture_folder, batch_size=4, num_workers=0))
    again = predict(module, ImageFolderData(picture_folder, batch_size=batch_size, num_workers=0))
    assert torch.equal(joined(at_fit), joined(again))


def test_checkpoint_and_folder_give_the_same_labels(module, picture_folder, fake_encoder, tmp_path):
    data = ImageFolderData(picture_folder, batch_size=4, num_workers=0)
    runner = trainer()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        expected = joined(runner.predict(module, data))
    runner.save_checkpoint(tmp_path / "cae.ckpt")
    torch.load(tmp_path / "cae.ckpt", weights_only=True)
    from_checkpoint = CAE.load_from_checkpoint(tmp_path / "cae.ckpt", encoder=fake_encoder, weights_only=True)
    module.save_pretrained(tmp_path / "model")
    from_folder = CAE.from_pretrained(tmp_path / "model", encoder=fake_encoder)
    assert torch.equal(joined(predict(from_checkpoint, data)), expected)
    assert torch.equal(joined(predict(from_folder, data)), expected)


def test_a_model_of_another_encoder_is_refused(module, picture_folder, fake_encoder, tmp_path):
    data = ImageFolderData(picture_folder, batch_size=4, num_workers=0)
    predict(module, data)
    module.save_pretrained(tmp_path)
    fake_encoder.fingerprint = "another"
    with pytest.raises(ModelError, match="fitted with encoder"):
        predict(CAE.from_pretrained(tmp_path, encoder=fake_encoder), data)


def test_an_unfitted_module_has_nothing_to_save(module, tmp_path):
    with pytest.raises(ModelError, match="not fitted yet"):
        module.save_pretrained(tmp_path)


@pytest.mark.parametrize("pack", ["tensor", "tuple", "dict"])
def test_takes_embeddings_however_they_are_packed(module, pack):
    x = torch.nn.functional.normalize(torch.randn(40, module.encoder.dim, generator=torch.Generator().manual_seed(0)))
    samples = {
        "tensor": list(x),
        "tuple": TensorDataset(x, torch.zeros(40)),
        "dict": [{"embedding": row, "label": 0} for row in x],
    }[pack]
    labels = joined(predict(module, DataLoader(samples, batch_size=16)))
    assert len(labels) == 40
    assert set(labels.tolist()) == set(range(K))


def test_precision_of_the_trainer_does_not_change_labels_of_embeddings(module):
    x = torch.nn.functional.normalize(torch.randn(40, module.encoder.dim, generator=torch.Generator().manual_seed(0)))
    loader = DataLoader(x, batch_size=16)
    expected = predict(module, loader)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        found = trainer(precision="bf16-mixed").predict(module, loader)
    assert torch.equal(joined(found, "confidence"), joined(expected, "confidence"))


def test_several_loaders_are_fitted_together(module):
    x = torch.nn.functional.normalize(torch.randn(40, module.encoder.dim, generator=torch.Generator().manual_seed(0)))
    first, second = predict(module, [DataLoader(x[:16], batch_size=8), DataLoader(x[16:], batch_size=8)])
    assert torch.equal(
        joined(predict(module, DataLoader(x, batch_size=40))), torch.cat([joined(first), joined(second)])
    )


@pytest.mark.parametrize("pack", [list, lambda loaders: dict(zip("ab", loaders, strict=True))])
def test_a_fit_of_several_loaders_is_refused(module, blobs, pack):
    loaders = pack([DataLoader(blobs[0][:16], batch_size=8), DataLoader(blobs[0][16:], batch_size=8)])
    with warnings.catch_warnings(), pytest.raises(ValueError, match="a fit takes one loader, got 2: join"):
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer(max_epochs=1).fit(module, loaders)


def test_fit_then_predict_gives_what_a_fresh_predict_gives(module, picture_folder, fake_encoder, text_files):
    data = ImageFolderData(picture_folder, batch_size=4, num_workers=0)
    expected = predict(module, data)
    fitted = CAE(K, encoder=fake_encoder, n_init=3, **text_files)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        runner = trainer(max_epochs=7)
        runner.fit(fitted, datamodule=data)
    assert runner.current_epoch == 1  # one pass is all
    assert torch.equal(joined(predict(fitted, data)), joined(expected))
    assert fitted.fitted.clusters == module.fitted.clusters


def test_no_warning_in_a_normal_run(module, blobs):
    """Warnings are errors here; the other tests only pass over Lightning's hint on workers."""
    data = EmbeddingData(*blobs, batch_size=16)
    trainer(max_epochs=1).fit(module, datamodule=data)
    trainer().predict(module, datamodule=data)
    trainer().test(module, datamodule=data, verbose=False)


def test_test_logs_scores_against_the_classes(module, blobs):
    data = EmbeddingData(*blobs, batch_size=16)
    trainer(max_epochs=1).fit(module, datamodule=data)
    batches = trainer().predict(module, datamodule=data)
    (logged,) = trainer().test(module, datamodule=data, verbose=False)
    expected = clustering_scores(joined(batches), blobs[1])
    for name in ("nmi", "acc", "ari"):
        assert logged[f"test/{name}"] == pytest.approx(expected[name] / 100, abs=1e-6)
    for name in ("confidence", "similarity"):
        assert logged[f"test/{name}"] == pytest.approx(float(joined(batches, name).mean()), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.uint16])
def test_test_takes_classes_of_any_integer_type(module, blobs, dtype):
    x, groups = blobs
    classes = groups > 0 if dtype == torch.bool else 40 * groups
    trainer(max_epochs=1).fit(module, datamodule=EmbeddingData(x))
    batches = [(x, classes.to(dtype)), (x[:5], classes[:5].to(dtype))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        (logged,) = trainer().test(module, DataLoader(batches, batch_size=None), verbose=False)
    assert logged["test/acc"] == pytest.approx(2 / 3 if dtype == torch.bool else 1, abs=0.05)


def test_test_logs_on_the_device_of_the_module(module, blobs, monkeypatch):
    """Lightning's sum over processes runs where the numbers are, and NCCL's on GPUs alone; a meta device stands in."""
    logged = {}
    trainer(max_epochs=1).fit(module, datamodule=EmbeddingData(blobs[0]))
    monkeypatch.setattr(module, "log_dict", lambda scores, **_: logged.update(scores))
    monkeypatch.setattr(CAE, "device", torch.device("meta"))
    module._tested.add(torch.arange(60), on_cpu(module.predict_embeddings(blobs[0])), blobs[1])
    module.on_test_epoch_end()
    assert {score.device.type for score in logged.values()} == {"meta"}


def test_test_takes_classes_of_any_size_and_none_below_0(module, blobs):
    x, groups = blobs
    trainer(max_epochs=1).fit(module, datamodule=EmbeddingData(x))
    (small,) = trainer().test(module, datamodule=EmbeddingData(x, groups), verbose=False)
    (large,) = trainer().test(module, datamodule=EmbeddingData(x, groups * 10**12), verbose=False)
    assert large == small
    with pytest.raises(ValueError, match="a class of the test data is -1: leave out"):
        trainer().test(module, datamodule=EmbeddingData(x, groups - 1), verbose=False)


def test_a_shuffled_loader_can_be_tested_after_a_fit_and_again(module, blobs):
    data = TensorDataset(*blobs)
    shuffled = DistributedSampler(data, num_replicas=1, rank=0, shuffle=True)
    loader = DataLoader(data, batch_size=16, sampler=shuffled)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*|.*shuffling enabled.*")
        trainer(max_epochs=1).fit(module, loader)
        first, again = (trainer().test(module, loader, verbose=False) for _ in range(2))
    assert first == again


def test_batches_without_images_are_passed_over(module, blobs):
    x, groups = blobs
    whole, empty = {"embedding": x, "label": groups}, {"embedding": x[:0], "label": groups[:0]}
    trainer(max_epochs=1).fit(module, datamodule=EmbeddingData(x))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*|.*ambiguous collection.*")
        (logged,) = trainer().test(module, DataLoader([whole], batch_size=None), verbose=False)
        (beside,) = trainer().test(module, DataLoader([empty, whole], batch_size=None), verbose=False)
        assert beside == logged
        with pytest.raises(ValueError, match="no images to test on"):
            trainer().test(module, DataLoader([empty], batch_size=None), verbose=False)


def test_test_says_what_is_missing(module, blobs):
    x, groups = blobs
    with pytest.raises(ModelError, match=r"run trainer\.fit"):
        trainer().test(module, datamodule=EmbeddingData(x, groups), verbose=False)
    module.train()  # an error leaves it as it was inside the trainer
    trainer(max_epochs=1).fit(module, datamodule=EmbeddingData(x))
    with pytest.raises(ValueError, match="needs whole-numbered classes"):
        trainer().test(module, datamodule=EmbeddingData(x), verbose=False)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_fits_under_any_precision(module, picture_folder, precision):
    """Labels of fit and predict agree, whatever the encoder computes in."""
    data = ImageFolderData(picture_folder, batch_size=4, num_workers=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        runner = trainer(precision=precision, max_epochs=1, enable_model_summary=False)
        runner.fit(module, datamodule=data)
        first = runner.predict(module, datamodule=data)
        again = runner.predict(module, datamodule=data)
    assert torch.equal(joined(first), joined(again))
    assert joined(first, "beta").dtype == torch.float32


@pytest.mark.parametrize("inference_mode", [True, False])
def test_inference_mode_makes_no_difference(module, blobs, inference_mode):
    data = EmbeddingData(*blobs, batch_size=16)
    labels = joined(trainer(inference_mode=inference_mode).predict(module, datamodule=data))
    assert (labels >= 0).all()
    assert torch.equal(joined(trainer(inference_mode=not inference_mode).predict(module, datamodule=data)), labels)


def test_limited_and_development_runs(module, blobs):
    data = EmbeddingData(*blobs, batch_size=16)
    trainer(fast_dev_run=True).fit(module, datamodule=data)
    assert module.fitted.n_images == 16
    module.fitted = None
    batches = trainer(limit_predict_batches=2).predict(module, datamodule=data)
    assert module.fitted.n_images == len(joined(batches)) == 32
    assert (joined(batches) >= 0).all()


class Stream(IterableDataset):
    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


def test_a_loader_of_unknown_length(module, blobs):
    expected = joined(trainer().predict(module, datamodule=EmbeddingData(*blobs)))
    module.fitted = None
    assert torch.equal(joined(predict(module, DataLoader(Stream(blobs[0]), batch_size=16))), expected)


class Writer(BasePredictionWriter):
    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        self.labels = joined(predictions).clone()


def test_writers_at_the_end_of_the_epoch_see_the_labels(module, blobs):
    writer = Writer("epoch")
    batches = trainer(callbacks=[writer]).predict(module, datamodule=EmbeddingData(*blobs, batch_size=16))
    assert torch.equal(writer.labels, joined(batches))


def test_an_index_that_tells_nothing_apart_is_refused(module, blobs):
    samples = [{"embedding": row, "index": i % 10} for i, row in enumerate(blobs[0])]
    with pytest.raises(ValueError, match="50 of 60 images have the `index` of another"):
        predict(module, DataLoader(samples, batch_size=16))


def test_half_precision_embeddings_give_one_labelling(module, blobs, fake_encoder, text_files, tmp_path):
    data = EmbeddingData(*blobs, batch_size=16)
    half = CAE(K, encoder=fake_encoder, n_init=3, dtype="float16", **text_files)
    trainer(max_epochs=1).fit(half, datamodule=data)
    half.save_pretrained(tmp_path)
    again = CAE.from_pretrained(tmp_path, encoder=fake_encoder)
    found = trainer().predict(again, datamodule=data)
    assert torch.equal(joined(found), joined(trainer().predict(half, datamodule=data)))
    half.fitted = None
    fresh = trainer().predict(half, datamodule=data)
    for key in ("cluster", "confidence", "beta"):
        assert torch.equal(joined(found, key), joined(fresh, key)), key


def test_a_store_on_disk_changes_nothing_and_spares_the_encoder(
    module, picture_folder, fake_encoder, text_files, tmp_path, monkeypatch
):
    data = ImageFolderData(picture_folder, batch_size=4, num_workers=0)
    expected = joined(predict(module, data))
    encoded = []
    encode = fake_encoder.encode_images
    monkeypatch.setattr(fake_encoder, "encode_images", lambda images: encoded.append(len(images)) or encode(images))
    for _ in range(2):
        stored = CAE(K, encoder=fake_encoder, n_init=3, store=tmp_path / "store", **text_files)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            trainer(max_epochs=1).fit(stored, datamodule=data)
        assert sum(encoded) == len(data.paths)
        assert stored.fitted.clusters == module.fitted.clusters
    fresh = CAE(K, encoder=fake_encoder, n_init=3, store=tmp_path / "store", **text_files)
    assert torch.equal(joined(predict(fresh, data)), expected)
    assert sum(encoded) == len(data.paths)
    (picture_folder / "red" / "0.png").write_bytes((picture_folder / "blue" / "0.png").read_bytes())
    fresh.fitted = None
    predict(fresh, ImageFolderData(picture_folder, batch_size=4, num_workers=0))
    assert sum(encoded) == 2 * len(data.paths)


def test_a_trainer_goes_from_one_run_to_the_next_without_a_notice(module, blobs, caplog):
    data, runner = EmbeddingData(*blobs), trainer(max_epochs=1)
    with caplog.at_level("INFO"):
        runner.fit(module, datamodule=data)
        runner.test(module, datamodule=data, verbose=False)
    assert "override existing callbacks" not in caplog.text


def test_a_checkpoint_of_a_fit_can_be_loaded(module, blobs, fake_encoder, tmp_path):
    data = EmbeddingData(*blobs)
    runner = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=1, default_root_dir=tmp_path
    )
    runner.fit(module, datamodule=data)
    loaded = CAE.load_from_checkpoint(runner.checkpoint_callback.best_model_path, encoder=fake_encoder)
    expected = trainer().predict(module, datamodule=data)
    assert torch.equal(joined(trainer().predict(loaded, datamodule=data)), joined(expected))


def test_a_tuner_of_the_batch_size_leaves_a_fitted_module(picture_folder, fake_encoder, text_files, tmp_path):
    found = []
    for callbacks in ([], [BatchSizeFinder(steps_per_trial=1, max_trials=2)]):
        module = CAE(3, encoder=fake_encoder, n_init=3, **text_files)
        data = ImageFolderData(picture_folder, batch_size=4, num_workers=0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            trainer(max_epochs=1, callbacks=callbacks, default_root_dir=tmp_path).fit(module, datamodule=data)
        found.append(module.fitted)
    assert found[0].n_images == found[1].n_images
    assert torch.equal(found[0].partition.centroids, found[1].partition.centroids)


def test_a_fitted_module_is_called_on_images_or_embeddings(module, picture_folder):
    quiet = trainer(max_epochs=1)
    with pytest.raises(ModelError, match="not fitted yet"):
        module(torch.zeros(1, 48))
    quiet.fit(module, ImageFolderData(picture_folder, num_workers=0))
    paths = sorted(picture_folder.rglob("*.png"))
    images = torch.stack([module.encoder.preprocess(Image.open(path)) for path in paths])
    with pytest.raises(TypeError, match=r"got ndarray; .*torch\.as_tensor"):
        module(images.numpy())
    found = module(images)
    assert torch.equal(found["cluster"], module(module.embed(images))["cluster"])
    assert sorted(found["cluster"].bincount().tolist()) == [10, 10, 10]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.zeros(8, 5, 5), r"expected images \(B, 3, H, W\) or embeddings"),
        ([{"picture": torch.zeros(3)}] * 8, "needs one of the keys"),
        (["text"] * 8, "expected a batch of images"),
        (
            [{"embedding": torch.ones(48), "index": f"{i}.jpg"} for i in range(8)],
            "`index` of the batch must be a tensor of whole numbers .*, got a list: number",
        ),
        ([{"embedding": torch.ones(48), "index": i / 2} for i in range(8)], "got a torch.float64 tensor"),
        (torch.ones(8, 3), r"expected embeddings of width 48, that of the encoder .*, got \(\d, 3\)"),
    ],
)
def test_batches_of_something_else_are_named(module, samples, message):
    with pytest.raises(ValueError, match=message):
        predict(module, DataLoader(samples, batch_size=4))


def test_a_fusion_that_collapses_is_said(fake_encoder, text_files, caplog):
    """The letter of Eq. 7 makes counterparts so short that the image alone is left."""
    x = torch.nn.functional.normalize(
        torch.randn(60, fake_encoder.dim, generator=torch.Generator().manual_seed(0)), dim=1
    )
    CAE(3, encoder=fake_encoder, preset="paper", epsilon=0.05, **text_files).fit_embeddings(x)
    assert "collapsed to the image embeddings; a larger gamma" in caplog.text
    caplog.clear()
    CAE(3, encoder=fake_encoder, preset="default", epsilon=0.05, **text_files).fit_embeddings(x)
    assert "collapsed" not in caplog.text
