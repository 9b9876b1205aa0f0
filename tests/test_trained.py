"""The trained methods under a real Trainer: fit, predict, test, resume, disk, two processes."""

import contextlib
import logging
import warnings

import lightning.pytorch as pl
import pytest
import torch
from conftest import FakeEncoder
from lightning.pytorch.callbacks import Callback, LearningRateFinder
from processes import free_port, leave_group
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, TensorDataset

from cae import CAE, TAC, ImageFolderData
from cae.callbacks import ClusteringCallback
from cae.data import EmbeddingData
from cae.method.fitted import ModelError
from cae.metrics import clustering_scores
from cae.models.trained import TRAINED, load_pretrained
from cae.models.trained import losses as loss_functions
from cae.models.trained.mca import has_hyponym, smaller_space

K = 3


def toy(n=90):
    """Embeddings in three tight groups around nouns of the bank, and which is which."""
    centres = FakeEncoder().encode_texts([f"a photo of thing {i}" for i in range(K)])
    labels = torch.arange(n) % K
    noise = torch.randn(n, centres.shape[1], generator=torch.Generator().manual_seed(0))
    return normalize(centres[labels] + 0.05 * noise, dim=1), labels


def trainer(**options):
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 20}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**{**defaults, **quiet, **options})


def quietly(call, *arguments, **options):
    """Without Lightning's hints about workers and validation, which a test on a few rows does not need."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        return call(*arguments, **options)


def fit(module, data, **options):
    runner = trainer(**options)
    quietly(runner.fit, module, data)
    return runner


def predict(module, data, **options):
    batches = quietly(trainer(**options).predict, module, data)
    return torch.cat([batch["cluster"] for batch in batches])


def test_a_fit_on_our_data_needs_no_hint_about_validation(picture_folder, text_files):
    """Warnings are errors here: a fit has nothing to validate on, and says so to Lightning."""
    module, data = TAC(K, encoder=FakeEncoder(), **text_files), ImageFolderData(picture_folder, num_workers=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
        trainer(max_epochs=1).fit(module, data)
    assert torch.is_tensor(module.validation_step(torch.zeros(1, 48).add(1), 0)["cluster"])


@pytest.fixture(params=TRAINED)
def make(request, fake_encoder, text_files):
    """A maker of one of the methods on the toy's scale."""
    return lambda **options: TRAINED[request.param](
        K, **{"encoder": fake_encoder, **text_files, "n_init": 2, **options}
    )


@pytest.fixture
def tac(fake_encoder, text_files):
    return lambda **options: TRAINED["tac-heads"](K, **{"encoder": fake_encoder, **text_files, **options})


def test_lightnings_learning_rate_finder_sets_the_rate_that_is_trained_with(tac, tmp_path):
    """Its early stop takes a loss below zero, which TAC's is, for one that explodes: a user has to turn that off."""
    x, labels = toy(900)
    module = tac(batch_size=60)
    finder = LearningRateFinder(1e-4, 0.1, num_training_steps=40, early_stop_threshold=None)
    runner = fit(module, EmbeddingData(x, batch_size=300), callbacks=[finder], max_epochs=10, default_root_dir=tmp_path)
    assert len(finder.optimal_lr.results["loss"]) == 40
    assert module.hparams["learning_rate"] == finder.optimal_lr.suggestion()
    assert runner.optimizers[0].param_groups[0]["lr"] == finder.optimal_lr.suggestion()
    assert clustering_scores(predict(module, EmbeddingData(x)), labels)["acc"] > 95


def test_fit_on_embeddings_finds_the_groups(make):
    x, labels = toy()
    module = make()
    fit(module, DataLoader(TensorDataset(x, labels), batch_size=32), max_epochs=60)
    found = predict(module, DataLoader(x, batch_size=32))
    assert clustering_scores(found, labels)["acc"] > 95
    assert [cluster.size for cluster in module.fitted.clusters] == torch.bincount(found, minlength=K).tolist()
    assert len({cluster.name for cluster in module.fitted.clusters}) == K


def test_fit_on_a_folder_encodes_each_picture_once_and_predict_needs_no_texts(make, picture_folder, monkeypatch):
    module = make()
    encoded = []
    encode = module.encoder.encode_images
    monkeypatch.setattr(module.encoder, "encode_images", lambda images: encoded.append(len(images)) or encode(images))
    data = ImageFolderData(picture_folder, batch_size=4, num_workers=0)
    fit(module, data, max_epochs=3)
    assert sum(encoded) == len(data.paths)
    monkeypatch.setattr(module, "load_banks", lambda *_: pytest.fail("texts at prediction"))
    labels = predict(module, data)
    assert len(labels) == len(data.paths)
    for batch_size in (1, 7):
        assert torch.equal(
            predict(module, ImageFolderData(picture_folder, batch_size=batch_size, num_workers=0)), labels
        )


def test_a_fresh_module_trains_on_what_it_is_to_predict(make):
    x, labels = toy()
    module = make()
    found = predict(module, DataLoader(x, batch_size=32))
    assert clustering_scores(found, labels)["acc"] > 95
    assert torch.equal(predict(module, DataLoader(x, batch_size=5)), found)
    assert sum(cluster.size for cluster in module.fitted.clusters) == len(x)


def test_same_seed_same_result_and_another_seed_another(make):
    x, _ = toy()

    def weights(seed):
        torch.manual_seed(torch.seed() % 1000)  # the global state is of no account
        module = make(seed=seed)
        fit(module, DataLoader(x, batch_size=32), max_epochs=2)
        return torch.cat([value.flatten() for value in module.network().parameters()])

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_making_the_heads_draws_no_random_numbers_of_the_callers(make):
    module, before = make(), torch.get_rng_state()
    module.build_heads(48)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_resumed_run_ends_where_an_unbroken_one_ends(make, tmp_path):
    x, _ = toy()
    loader = DataLoader(x, batch_size=32)
    unbroken, broken, resumed = make(batch_size=30), make(batch_size=30), make(batch_size=30)
    fit(unbroken, loader, max_epochs=4)
    fit(broken, loader, max_epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    quietly(trainer(max_epochs=4).fit, resumed, loader, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for name, value in unbroken.heads.state_dict().items():
        torch.testing.assert_close(resumed.heads.state_dict()[name], value, msg=name)


def test_checkpoint_and_folder_give_the_same_labels(make, fake_encoder, tmp_path):
    x, _ = toy()
    loader = DataLoader(x, batch_size=32)
    module = make()
    fit(module, loader, max_epochs=5).save_checkpoint(tmp_path / "trained.ckpt")
    expected = predict(module, loader)
    restored = type(module).load_from_checkpoint(tmp_path / "trained.ckpt", encoder=fake_encoder, weights_only=True)
    assert torch.equal(predict(restored, loader), expected)
    assert restored.fitted.clusters == module.fitted.clusters
    module.save_pretrained(tmp_path / "model")
    again = load_pretrained(tmp_path / "model", encoder=fake_encoder)
    assert type(again) is type(module)
    assert torch.equal(predict(again, loader), expected)
    assert again.fitted.clusters == module.fitted.clusters
    assert again.config == module.config


def test_a_network_damaged_in_a_checkpoint_is_not_used(tac, fake_encoder, tmp_path):
    """torch.load checks no checksum of a tensor; the fitted state beside it has one."""
    x, _ = toy()
    loader = DataLoader(x, batch_size=32)
    module = tac()
    fit(module, loader, max_epochs=5).save_checkpoint(tmp_path / "whole.ckpt")
    checkpoint = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    for key, value in checkpoint["state_dict"].items():
        if key.startswith("heads."):
            checkpoint["state_dict"][key] = value + 1
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    restored = type(module).load_from_checkpoint(tmp_path / "damaged.ckpt", encoder=fake_encoder, weights_only=True)
    assert torch.equal(predict(restored, loader), predict(module, loader))


def test_a_trained_model_is_not_taken_for_a_training_free_one(tac, fake_encoder, tmp_path):
    module = tac()
    with pytest.raises(ModelError, match="not fitted yet"):
        module.save_pretrained(tmp_path)
    fit(module, DataLoader(toy()[0], batch_size=32), max_epochs=1)
    module.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="holds a model of tac-heads, not of cae"):
        CAE.from_pretrained(tmp_path, encoder=fake_encoder)
    with pytest.raises(ModelError, match="holds a model of tac-heads, not of mca"):
        TRAINED["mca"].from_pretrained(tmp_path, encoder=fake_encoder)
    fake_encoder.fingerprint = "another"
    with pytest.raises(ModelError, match="fitted with encoder"):
        predict(load_pretrained(tmp_path, encoder=fake_encoder), DataLoader(toy()[0], batch_size=32))


def test_a_model_that_was_moved_takes_rows_of_any_device(make, fake_encoder, tmp_path, monkeypatch):
    """Heads move with the module, the fitted state does not. A meta tensor meets no other, as one on a GPU."""
    x, _ = toy()
    module = make()
    fit(module, DataLoader(x, batch_size=32), max_epochs=1).save_checkpoint(tmp_path / "trained.ckpt")
    restored = type(module).load_from_checkpoint(tmp_path / "trained.ckpt", encoder=fake_encoder, weights_only=True)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which knows no meta tensors
    found = restored.to("meta").predict_embeddings(x)
    assert {column.device.type for column in found} == {"meta"}
    assert found.cluster.shape == (len(x),)


def test_trainer_test_scores_against_labels(tac):
    x, labels = toy()
    module = tac()
    loader = DataLoader(TensorDataset(x, labels), batch_size=32)
    with pytest.raises(ModelError, match="not fitted yet"):
        quietly(trainer().test, module, loader, verbose=False)
    fit(module, loader, max_epochs=60)
    (scores,) = quietly(trainer().test, module, loader, verbose=False)
    expected = clustering_scores(predict(module, DataLoader(x, batch_size=32)), labels)
    assert {name: 100 * scores[f"test/{name}"] for name in expected} == pytest.approx(expected)
    with pytest.raises(ValueError, match="testing needs whole-numbered classes"):
        quietly(trainer().test, module, DataLoader(x, batch_size=32), verbose=False)


def test_losses_and_label_free_scores_are_logged_and_validation_hands_out_embeddings(make):
    outputs, seen = [], {}

    class Watch(Callback):
        def on_validation_batch_end(self, trainer, module, out, batch, batch_idx, dataloader_idx=0):
            outputs.append(out)

        def on_train_epoch_end(self, trainer, module):
            seen.update(trainer.callback_metrics)

    x, labels = toy()
    loader = DataLoader(TensorDataset(x, labels), batch_size=45)
    runner = trainer(max_epochs=2, callbacks=[Watch()], num_sanity_val_steps=0)
    quietly(runner.fit, make(), loader, loader)
    assert {"train/loss", "train/consistency", "train/balance"} <= set(seen)
    assert {"train/clusters_used", "train/silhouette"} <= set(runner.callback_metrics)
    assert set(outputs[0]) == {"embedding", "cluster", "label"}


def test_the_clustering_callback_works_on_what_validation_hands_out(make):
    x, labels = toy()
    loader = DataLoader(TensorDataset(x, labels), batch_size=45)
    callback = ClusteringCallback(n_clusters=K, embedding="embedding", label="label")
    runner = trainer(max_epochs=2, callbacks=[callback])
    quietly(runner.fit, make(), loader, loader)
    assert runner.callback_metrics["cluster_acc"] > 0.95


def test_collapse_is_said(tac, caplog):
    module = tac(balance_weight=0.0, temperature=1e6, learning_rate=0.0)

    class OneCluster(Callback):
        def on_train_end(self, trainer, module):
            with torch.no_grad():
                module.network()[3].bias[0] = 100

    with caplog.at_level(logging.WARNING, logger="cae"):
        fit(module, DataLoader(toy()[0], batch_size=32), max_epochs=1, callbacks=[OneCluster()])
    assert "2 of 3 clusters hold no image" in caplog.text


def test_what_cannot_be_trained_on_is_named(tac):
    with pytest.raises(ValueError, match="pass a datamodule or a loader"):
        quietly(trainer().fit, tac())
    with pytest.raises(ValueError, match="cannot make 3 clusters of 2 images"):
        fit(tac(), DataLoader(toy(2)[0], batch_size=2))
    with pytest.raises(ValueError, match="yields no images"):
        fit(tac(), [])
    with pytest.raises(ValueError, match="neither a train_dataloader nor a predict_dataloader"):
        fit(tac(), pl.LightningDataModule())
    for option, value in (("batch_size", 1), ("batch_size", 2.5), ("neighbours", 0), ("temperature", 0.0)):
        with pytest.raises(ValueError, match=option):
            tac(**{option: value})
    with pytest.raises(ValueError, match="did you mean 'epsilon'"):
        tac(epsilom=0.1)


def test_an_index_that_tells_nothing_apart_is_refused(tac):
    """Training would go on with a tenth of the images."""
    x = toy()[0]
    samples = [{"embedding": row, "index": i % 10} for i, row in enumerate(x)]
    with pytest.raises(ValueError, match=f"{len(x) - 10} of {len(x)} images have the `index` of another"):
        fit(tac(), DataLoader(samples, batch_size=16))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint64])
def test_an_index_may_be_of_any_integer_type(tac, dtype):
    """PyTorch compares few unsigned numbers with the positions they are sorted into."""
    samples = [{"embedding": row, "index": torch.tensor(i).to(dtype)} for i, row in enumerate(toy()[0])]
    module = tac()
    fit(module, DataLoader(samples, batch_size=16))
    assert module.fitted is not None


def test_the_number_of_clusters_is_found_out_before_training(make, fake_encoder, tmp_path):
    x, labels = toy()
    module = TRAINED[make().method](
        "auto", encoder=fake_encoder, nouns=make().sources["noun"], captions=make().sources["caption"]
    )
    found = module.fit_embeddings(x).cluster
    assert module.config.n_clusters == module.fitted.config.n_clusters == K
    assert clustering_scores(found, labels)["acc"] > 95
    assert module.fitted.provenance["cluster_count"]["chosen"] == K
    module.save_pretrained(tmp_path)
    again = load_pretrained(tmp_path, encoder=fake_encoder)
    assert torch.equal(again.predict_embeddings(x).cluster, found)


def test_the_order_of_numbered_images_does_not_matter(tac):
    x, _ = toy()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    there, back = tac(), tac()
    found = there.fit_embeddings(x)
    assert torch.equal(back.fit_embeddings(x[order], order).cluster, found.cluster[order])


def test_small_sets_get_more_epochs(tac):
    module = tac()
    assert module.epochs(100_000) == 20
    assert module.epochs(300) == 100
    assert TRAINED["tac-heads"](100).epochs(10**7) == 100


def test_the_smaller_space_drops_duplicates_and_unwanted_nouns(fake_encoder, text_files):
    module = TRAINED["mca"](K, encoder=fake_encoder, **text_files)
    bank = module.load_banks()["noun"]
    x, _ = toy()
    from cae.method.fitted import SelectedTexts

    centres = normalize(torch.stack([x[i::K].mean(dim=0) for i in range(K)]), dim=1)
    twin = normalize(centres[:1] + 0.01 * centres[1:2], dim=1)
    texts = SelectedTexts(["a", "b", "c", "twin", "none"], torch.cat([centres, twin, -centres[:1]]), torch.zeros(5))
    kept = smaller_space(x, texts, bank, epsilon=0.005)
    assert {"b", "c"} < set(kept.texts)
    assert len({"a", "twin"} & set(kept.texts)) == 1
    assert "none" not in kept.texts
    assert len(kept.embeddings) == len(kept.g) == 3


@pytest.mark.slow
def test_hypernyms_of_other_nouns_are_found():
    pytest.importorskip("nltk").corpus.wordnet.ensure_loaded()
    assert has_hyponym(["dog", "animal", "no such noun", "beagle"]).tolist() == [True, True, False, False]


def _two_processes(rank, folder, x, p):
    """In a process of its own: the gathered loss's gradient, and a fit under DDP of two methods."""
    warnings.filterwarnings("ignore")
    texts = {kind: str(folder / f"{kind}.txt") for kind in ("nouns", "captions")}
    module, mca = (TRAINED[name](K, encoder=FakeEncoder(), **texts, batch_size=32) for name in ("tac-heads", "mca"))
    mine = p[rank * 8 : rank * 8 + 8].clone().requires_grad_()

    class Gather(Callback):
        def on_train_start(self, trainer, module):
            whole = module.gathered(mine)
            loss_functions.distillation(whole, whole.flip(0), 0.5).backward()

    runner = trainer(max_epochs=2, strategy="ddp", devices=2, callbacks=[Gather()])
    # A module of cae.data hands each process its share; training needs all.
    quietly(runner.fit, module, EmbeddingData(x, batch_size=32, num_workers=0))
    quietly(trainer(strategy="ddp", devices=2).fit, mca, EmbeddingData(x, batch_size=32, num_workers=0))
    found = {
        "grad": mine.grad,
        "weights": {name: value.clone() for name, value in module.heads.state_dict().items()},
        "steps": runner.global_step,
        "n": module.fitted.n_images,
        "mca_weights": {name: value.clone() for name, value in mca.heads.state_dict().items()},
        "mca_labels": mca.predict_embeddings(x).cluster,
    }
    torch.save(found, folder / f"{rank}.pt")
    leave_group()


def test_two_processes_train_one_network_and_losses_see_the_whole_batch(text_files, tmp_path, monkeypatch):
    x, labels = toy()
    p = torch.randn(16, K, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    _spawn(tmp_path, x, p)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["steps"] == second["steps"] == 2 * (45 // 16)
    for weights in ("weights", "mca_weights"):
        for name, value in first[weights].items():
            assert torch.equal(value, second[weights][name]), name
    assert torch.equal(first["mca_labels"], second["mca_labels"])
    assert clustering_scores(first["mca_labels"], labels)["acc"] > 95
    whole = p.clone().requires_grad_()
    loss_functions.distillation(whole, whole.flip(0), 0.5).backward()
    assert first["n"] == second["n"] == len(x)
    # DDP takes the mean of the processes' gradients, and each of them has the whole loss.
    torch.testing.assert_close(torch.cat([first["grad"], second["grad"]]) / 2, whole.grad)


def _spawn(folder, x, p):
    import os
    import subprocess
    import sys
    from pathlib import Path

    torch.save({"x": x, "p": p}, folder / "input.pt")
    port = str(free_port())
    code = (
        "import sys, torch, pathlib; sys.path.insert(0, sys.argv[1]); import test_trained as t; "
        "folder = pathlib.Path(sys.argv[2]); data = torch.load(folder / 'input.pt', weights_only=True); "
        "t._two_processes(int(sys.argv[3]), folder, data['x'], data['p'])"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(Path(__file__).parent), str(folder), str(rank)],
            env={
                **os.environ,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "WORLD_SIZE": "2",
                "NODE_RANK": "0",
                "LOCAL_RANK": str(rank),
                "RANK": str(rank),
                "OMP_NUM_THREADS": "1",
            },
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr.decode()
