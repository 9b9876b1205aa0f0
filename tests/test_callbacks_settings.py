"""`ClusteringCallback` as it is set: texts, loggers, several callbacks, the number of clusters, and LightningCLI."""

import csv
import sys

import pytest
import torch
from callback_cases import Classifier, D, K, fit, loader, samples, trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch.nn.functional import normalize

from cae.callbacks import ClusteringCallback, ClusteringError, sample
from cae.text import TextBank, build_bank, load_corpus


@pytest.fixture(autouse=True)
def same_weights():
    """Whichever test ran before."""
    torch.manual_seed(0)


def test_several_callbacks_do_not_mix(tmp_path):
    first, second = ClusteringCallback(K, label="label"), ClusteringCallback(4, label="label", prefix="four_")
    run = trainer(first, second)
    fit(run)
    assert {"cluster_acc", "four_acc"} <= set(run.callback_metrics)
    assert first.state_key != second.state_key
    run.save_checkpoint(tmp_path / "both.ckpt")
    saved = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    assert len(saved[second.state_key]["clustering"]["centers"]) == 4


@pytest.fixture
def banks(text_files) -> dict[str, TextBank]:
    """Texts in the space of the samples."""

    class Texts:
        spec, dim, fingerprint, prompt = "texts", D, "texts-1", "{}"

        def encode_texts(self, texts):
            return normalize(torch.randn(len(texts), D, generator=torch.Generator().manual_seed(0)), dim=1)

    return {kind: build_bank(load_corpus(kind, text_files[f"{kind}s"]), Texts()) for kind in ("noun", "caption")}


def test_with_text_banks_the_clusters_are_those_of_cae(banks):
    run = trainer(ClusteringCallback(K, label="label", banks=banks, strict=True, n_init=2))
    fit(run)
    weights = [run.callback_metrics[f"cluster_beta_{name}"] for name in ("image", "noun", "caption")]
    assert sum(weights) == pytest.approx(1, abs=1e-5)


def test_an_encoder_embeds_the_texts_before_training(fake_encoder, text_files):
    class Model(Classifier):
        def embed(self, batch):
            return torch.nn.functional.pad(super().embed(batch), (0, fake_encoder.dim - D))

    callback = ClusteringCallback(K, method="embed", encoder=fake_encoder, strict=True, n_init=2, **text_files)
    run = trainer(callback)
    fit(run, Model())
    assert set(callback.banks) == {"noun", "caption"}
    assert "cluster_beta_noun" in run.callback_metrics


@pytest.mark.parametrize("inference_mode", [True, False])
def test_any_inference_mode_will_do(inference_mode, banks):
    run = trainer(ClusteringCallback(K, banks=banks, strict=True, n_init=2), inference_mode=inference_mode)
    fit(run)
    assert "cluster_silhouette" in run.callback_metrics


class WandbDouble(WandbLogger):
    """Lightning's W&B logger without W&B behind it."""

    experiment = name = version = save_dir = None

    def __init__(self):
        self.tables = []

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *_, **__):
        pass

    def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
        self.tables.append((key, columns, data))

    def after_save_checkpoint(self, checkpoint_callback):
        pass

    def finalize(self, status):
        pass


def test_details_go_to_the_loggers_that_can_show_them(tmp_path):
    board, table, wandb = TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv"), WandbDouble()
    callback = ClusteringCallback(K, label="label", details=True, strict=True)
    fit(trainer(callback, logger=[board, table, wandb]))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(board.log_dir).Reload()
    assert events.Tags()["histograms"] == ["cluster_labels"]
    assert "cluster_acc" in events.Tags()["scalars"]
    assert list((tmp_path / "tb").rglob("metadata.tsv"))
    with (tmp_path / "csv/lightning_logs/version_0/metrics.csv").open() as file:
        scored = [row for row in csv.DictReader(file) if row["cluster_acc"]]
    assert all(row["epoch"] and row["cluster_size_0"] and row["cluster_size_2"] for row in scored)
    key, columns, rows = wandb.tables[-1]
    assert (key, columns, len(rows)) == ("cluster_table", ["cluster", "class"], 90)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 1}, "n_clusters must be a whole number of at least 2, or auto, got 1"),
        ({"n_clusters": "many"}, "n_clusters must be a whole number of at least 2, or auto, got 'many'"),
        ({"n_clusters": 2.5}, "n_clusters must be a whole number of at least 2, or auto, got 2.5"),
        ({"every_n_epochs": 2, "every_n_train_steps": 2}, "not both"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1"),
        ({"max_samples": 2}, "max_samples must be at least n_clusters = 3, got 2"),
        (
            {"n_clusters": "auto", "max_samples": 0},
            "max_samples must be at least 6, which n_clusters='auto' takes, got 0",
        ),
        ({"banks": {}, "encoder": "lite"}, "banks or an encoder"),
        ({"banks": {}, "captions": "glosses"}, "banks, or nouns and captions"),
        ({"epsilom": 1}, "did you mean 'epsilon'"),
        ({"method": 3}, "method must be a function of module and batch, or the name of a method .* got 3"),
    ],
)
def test_settings_are_checked_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        ClusteringCallback(**{"n_clusters": K, **options})


def test_texts_that_nothing_can_embed_are_refused_before_training():
    with pytest.raises(ValueError, match="have to be embedded: give the encoder"):
        fit(trainer(ClusteringCallback(K, nouns="wordnet")))


def test_a_method_that_is_not_there_is_named_before_training():
    message = r"method='encode': Classifier has no method 'encode'; it has embed, noisy: name one .* method=lambda "
    with pytest.raises(ValueError, match=message):
        fit(trainer(ClusteringCallback(K, method="encode")))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "body",
            r"method='body' was given the whole batch, a list of length 2, and failed: .*; .* method=lambda module",
        ),
        ("validation_step", r"method='validation_step' was given the whole batch, .* 'batch_idx'"),
        (
            lambda batch: batch[0],
            r"<lambda>' was given the module and the batch, a list of length 2, and failed: .* take",
        ),
    ],
    ids=["layer", "takes more", "takes less"],
)
def test_a_method_that_fails_is_named_with_what_it_was_given(method, message):
    with pytest.raises(ClusteringError, match=message):
        fit(trainer(ClusteringCallback(K, method=method, strict=True)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning calls jsonargparse in its old way
def test_lightning_cli_makes_the_callback(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringModel

    monkeypatch.setattr(sys, "argv", ["cli"])
    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer: {logger: false, accelerator: cpu, callbacks: [{class_path: cae.callbacks.ClusteringCallback, "
        "init_args: {n_clusters: auto, method: forward, seed: 3, epsilon: 0.5}}]}"
    )
    made = LightningCLI(
        BoringModel, args=["--config", str(config)], run=False, seed_everything_default=False, save_config_callback=None
    ).trainer.callbacks
    (callback,) = (callback for callback in made if isinstance(callback, ClusteringCallback))
    assert (callback.config.seed, callback.config.epsilon, callback.method) == (3, 0.5, "forward")
    assert callback.config == ClusteringCallback("auto", method="forward", seed=3, epsilon=0.5).config


def test_two_layers_in_one_trainer_are_told_apart(tmp_path):
    outputs = {"early": lambda z, y: z, "late": lambda z, y: -z.flip(1)}
    module = Classifier(lambda z, y: {name: layer(z, y) for name, layer in outputs.items()} | {"label": y})
    early, late = (ClusteringCallback(K, embedding=name, label="label", strict=True) for name in outputs)
    checkpoint = ModelCheckpoint(tmp_path, monitor="cluster_late_acc", mode="max")
    run = trainer(early, late, checkpoint)
    fit(run, module)
    for name, callback in (("early", early), ("late", late)):
        for score, value in callback.clustering.scores.items():
            assert run.callback_metrics[f"cluster_{name}_{score}"] == pytest.approx(value, abs=1e-6)
    saved = torch.load(checkpoint.best_model_path, weights_only=True)["callbacks"]
    assert {early.state_key, late.state_key} <= set(saved)
    # Resumed, each has its own again.
    again = [ClusteringCallback(K, embedding=name, label="label", every_n_epochs=9) for name in outputs]
    run.save_checkpoint(tmp_path / "last.ckpt")
    same = ModelCheckpoint(tmp_path, monitor="cluster_late_acc", mode="max")
    fit(trainer(*again, same, max_epochs=3), module, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    for callback, before in zip(again, (early, late), strict=True):
        assert torch.equal(callback.clustering.labels, before.clustering.labels)


def test_names_of_scores_are_such_that_every_logger_takes():
    function = ClusteringCallback(K, method=lambda module, batch: module.embed(batch), strict=True)
    run = trainer(ClusteringCallback(K, strict=True), function)
    fit(run)
    owner = "test_names_of_scores_are_such_that_every_logger_takes_locals_lambda"
    assert f"cluster_{owner}_silhouette" in run.callback_metrics


def test_two_callbacks_for_the_same_are_refused():
    def embed(module, batch):
        return module.embed(batch)

    callbacks = [ClusteringCallback(K, method=embed), ClusteringCallback(4, method=embed)]
    with pytest.raises(ValueError, match=r"two ClusteringCallbacks cluster .*embed.*a prefix of its own"):
        fit(trainer(*callbacks))


def test_the_number_of_clusters_is_found_once_and_kept(monkeypatch):
    counts = []
    count = sample.count_clusters
    monkeypatch.setattr(sample, "count_clusters", lambda *a, **k: counts.append(1) or count(*a, **k))
    callback = ClusteringCallback("auto", label="label", strict=True)
    run = trainer(callback, max_epochs=3)
    fit(run, val=loader(samples(shift=6.0)))
    assert len(callback.clustering.sizes) == K
    assert counts == [1]
    assert run.callback_metrics["cluster_acc"] == 1


def test_cluster_sizes_can_be_monitored(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="cluster_size_min", mode="max")
    callback = ClusteringCallback(K, every_n_epochs=2)
    fit(trainer(callback, checkpoint, EarlyStopping("cluster_size_max", patience=9), max_epochs=3))
    assert checkpoint.best_model_score == min(callback.clustering.sizes) > 0


BAD = {
    "no key": (lambda z, y: {"features": z}, {}, r"batch 0: validation_step has no 'embedding'.*keys features"),
    "no attribute": (lambda z, y: {"out": z}, {"embedding": "out.z"}, r"no 'z' in a torch.float32 tensor"),
    "nothing": (lambda z, y: None, {}, "on_validation_batch_end, batch 0: .*in None"),
    "flat": (lambda z, y: {"embedding": z[:, 0]}, {}, r"embedding 'embedding' of validation_step.*shape \(32,\)"),
    "whole numbers": (lambda z, y: {"embedding": z.long()}, {}, r"tensor of floats \(B, D\), got a torch.int64"),
    "labels": (lambda z, y: {"embedding": z, "y": y[:5]}, {"label": "y"}, r"label 'y'.*\(32,\), got .*shape \(5,\)"),
    "unlabelled": (
        lambda z, y: {"embedding": z, "y": y - 1},
        {"label": "y"},
        r"'y'.* negative for \d+ of 32 .*label=None",
    ),
    "no labels": (lambda z, y: {"embedding": z}, {"label": "y"}, "validation_step has no 'y'"),
    "ragged": (lambda z, y: {"embedding": z[:, : len(z) // 4]}, {}, r"shape \(26, 6\), but width 8 in the batches"),
    "NaN": (lambda z, y: {"embedding": z / (y[:, None] > 0)}, {}, r"shape \(90, 8\) holds NaN or infinity in 30 of 90"),
    "too few": (lambda z, y: {"embedding": z[:1]}, {"n_clusters": 5}, r"3 samples are too few for 5 clusters"),
    "width of texts": (
        lambda z, y: {"embedding": z[:, :5]},
        {"banks": True},
        "the noun bank has width 8, the images 5",
    ),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_only_strict_stops_training(case, strict, banks):
    outputs, options, message = BAD[case]
    options = {**options, "banks": banks} if "banks" in options else options
    run = trainer(ClusteringCallback(**{"n_clusters": K, "strict": strict, **options}), max_epochs=2)
    if strict:
        with pytest.raises(ClusteringError, match=message):
            fit(run, Classifier(outputs))
    else:
        with pytest.warns(RuntimeWarning, match=message):
            fit(run, Classifier(outputs))
        assert run.current_epoch == 2
