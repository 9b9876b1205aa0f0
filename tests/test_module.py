"""`CAE` under a real Trainer: one pass on a fresh module, the same labels ever after."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from cae import CAE, ImageFolderData
from cae.state import ModelError

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


def test_a_fresh_module_refuses_several_processes(module, monkeypatch):
    runner = trainer()
    monkeypatch.setattr(type(runner), "world_size", 2)
    with pytest.raises(RuntimeError, match="fit with devices=1"):
        runner.predict(module, DataLoader(torch.eye(module.encoder.dim), batch_size=8))


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


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.zeros(8, 5, 5), r"expected images \(B, 3, H, W\) or embeddings"),
        ([{"picture": torch.zeros(3)}] * 8, "needs one of the keys"),
        (["text"] * 8, "expected a batch of images"),
    ],
)
def test_batches_of_something_else_are_named(module, samples, message):
    with pytest.raises(ValueError, match=message):
        predict(module, DataLoader(samples, batch_size=4))


def test_settings_are_checked_at_once():
    with pytest.raises(ValueError, match="did you mean 'epsilon'"):
        CAE(3, epsilom=0.1)
