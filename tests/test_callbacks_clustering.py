"""`ClusteringCallback` in real training runs: right scores at the right time, and nothing else is any different."""

import random
import sys
import warnings
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader, TensorDataset

from cae.callbacks import ClusteringCallback, ClusteringError, sample
from cae.callbacks.clustering import LOWEST
from cae.metrics import clustering_scores
from cae.text import TextBank, build_bank, load_corpus

K, D = 3, 8


@pytest.fixture(autouse=True)
def same_weights():
    """Whichever test ran before."""
    torch.manual_seed(0)


class Classifier(pl.LightningModule):
    """Somebody's model: a linear layer to embeddings and one to classes."""

    def __init__(self, outputs=lambda z, y: {"embedding": z, "label": y}):
        super().__init__()
        self.body, self.head, self.outputs = torch.nn.Linear(D, D), torch.nn.Linear(D, K), outputs
        self.dropout = torch.nn.Dropout(0.1)

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.head(self.dropout(self.body(batch[0]))), batch[1])

    def validation_step(self, batch, batch_idx):
        return self.outputs(self.body(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def embed(self, batch):
        return self.body(batch[0])

    def noisy(self, batch):
        assert not torch.is_grad_enabled()
        noise = torch.rand(()) + random.random() + np.random.rand()
        return {"z": self.body(batch[0]) + 1e-6 * noise}


def samples(n=90, shift=2.0):
    y = torch.arange(n) % K
    noise = torch.randn(n, D, generator=torch.Generator().manual_seed(0))
    return TensorDataset(torch.eye(D)[y] * shift + 0.3 * noise, y)


def loader(data=None, **options):
    return DataLoader(data or samples(), **{"batch_size": 32, **options})


class Recorder(DummyLogger):
    """A logger that remembers."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append(metrics)

    def values(self, name):
        return [row[name] for row in self.rows if name in row]


def trainer(*callbacks, logger=False, **options):
    options = {"max_epochs": 2, "num_sanity_val_steps": 0, **options}
    return pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )


def fit(run, module=None, train=None, val=None, **options):
    with warnings.catch_warnings():
        # A hint about speed, which a test on a few samples does not need.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        run.fit(module or Classifier(), train or loader(), val or loader(), **options)


def validate(run, module=None, val=None):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        run.validate(module or Classifier(), loader() if val is None else val, verbose=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.uint64])
def test_classes_may_be_of_any_integer_type(dtype):
    x, y = samples().tensors
    callback = ClusteringCallback(K, label="label")
    fit(trainer(callback, max_epochs=1), val=loader(TensorDataset(x, (40 * y).to(dtype))))
    assert callback.clustering.scores["acc"] > 0.9


def test_scores_are_those_of_the_clusters():
    callback, logger = ClusteringCallback(K, label="label"), Recorder()
    run = trainer(callback, logger=logger)
    fit(run)
    expected = clustering_scores(callback.clustering.labels, samples().tensors[1])
    for name, percent in expected.items():
        assert run.callback_metrics[f"cluster_{name}"] == pytest.approx(percent / 100)
        assert logger.values(f"cluster_{name}")[-1] == pytest.approx(percent / 100)
    assert run.callback_metrics["cluster_acc"] > 0.9
    assert callback.clustering.sizes == torch.bincount(callback.clustering.labels).tolist()
    assert run.callback_metrics["cluster_size_max"] == max(callback.clustering.sizes)
    assert -1 <= run.callback_metrics["cluster_silhouette"] <= 1
    assert len(logger.values("cluster_stability")) == 1  # from the second epoch on


@pytest.mark.parametrize("label", ["label", None])
def test_monitors_and_loggers_see_each_score_of_the_last_run(label):
    generator = torch.Generator().manual_seed(0)
    module = Classifier(lambda z, y: {"embedding": torch.randn(z.shape, generator=generator), "label": y})
    callback, logger = ClusteringCallback(K, label=label, max_samples=40), Recorder()
    run = trainer(callback, logger=logger, max_epochs=4)
    fit(run, module)
    for name, score in callback.clustering.scores.items():
        assert run.callback_metrics[f"cluster_{name}"] == pytest.approx(score, abs=1e-6)
        assert logger.values(f"cluster_{name}")[-1] == pytest.approx(score, abs=1e-6)


def test_without_labels_there_are_label_free_scores_only():
    run = trainer(ClusteringCallback(K))
    fit(run)
    assert {"cluster_silhouette", "cluster_stability"} <= set(run.callback_metrics)
    assert not {"cluster_acc", "cluster_nmi", "cluster_ari"} & set(run.callback_metrics)


@pytest.mark.parametrize(
    ("outputs", "options"),
    [
        (lambda z, y: {"out": {"z": z}, "y": y}, {"embedding": "out.z", "label": "y"}),
        (lambda z, y: {"out.z": z, "y": y}, {"embedding": "out.z", "label": "y"}),
        (lambda z, y: {"out": SimpleNamespace(z=[z], y=y)}, {"embedding": "out.z.0", "label": "out.y"}),
        (lambda z, y: {"a": z, "b": y}, {"embedding": lambda out: out["a"], "label": lambda out: out["b"]}),
        (lambda z, y: {"embedding": z.bfloat16(), "label": y.int()}, {"label": "label"}),
        (lambda z, y: None, {"method": "embed", "label": "1"}),
        (lambda z, y: None, {"method": "noisy", "embedding": "z", "label": lambda batch: batch[1]}),
    ],
    ids=["path", "dotted key", "attributes", "functions", "bfloat16", "method", "method and key"],
)
def test_embeddings_are_found(outputs, options):
    run = trainer(ClusteringCallback(K, strict=True, **options))
    validate(run, Classifier(outputs))
    assert run.callback_metrics["cluster_acc"] > 0.9


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_a_method_is_called_in_the_precision_of_the_trainer(precision):
    seen = []

    class Model(Classifier):
        def embed(self, batch):
            seen.append((super().embed(batch).dtype, self.training, torch.is_grad_enabled()))
            return super().embed(batch)

    validate(trainer(ClusteringCallback(K, method="embed", strict=True), precision=precision), Model())
    dtype = {"bf16-mixed": torch.bfloat16, "64-true": torch.float64}[precision]
    assert set(seen) == {(dtype, False, False)}


def test_monitors_and_early_stopping_use_the_scores(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="cluster_acc", mode="max")
    stopping = EarlyStopping("cluster_acc", mode="max", stopping_threshold=0.9)
    run = trainer(ClusteringCallback(K, label="label"), checkpoint, stopping, max_epochs=5)
    fit(run)
    assert run.current_epoch < 5
    assert checkpoint.best_model_score == run.callback_metrics["cluster_acc"]
    assert run.should_stop


def test_monitors_have_scores_in_every_epoch_and_loggers_measured_ones_only(tmp_path):
    seen, logger = [], Recorder()

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append(float(trainer.callback_metrics["cluster_acc"]))

    checkpoint = ModelCheckpoint(tmp_path, monitor="cluster_acc", mode="max", save_top_k=-1)
    run = trainer(
        ClusteringCallback(K, label="label", every_n_epochs=2), Watch(), checkpoint, logger=logger, max_epochs=5
    )
    fit(run)
    first, second = logger.values("cluster_acc")
    assert seen == [LOWEST["acc"], *2 * [pytest.approx(first)], *2 * [pytest.approx(second)]]


def test_every_n_steps_counts_from_the_last_clustering():
    callback, logger = ClusteringCallback(K, every_n_train_steps=4), Recorder()
    # 3 steps an epoch, a validation after each: due after step 4, 8 and 12.
    run = trainer(callback, logger=logger, max_epochs=4, val_check_interval=1, check_val_every_n_epoch=1)
    fit(run)
    assert len(logger.values("cluster_silhouette")) == 3


def test_the_sanity_check_is_left_alone(monkeypatch):
    counted = []
    monkeypatch.setattr(ClusteringCallback, "_collect", lambda *_: counted.append(1))
    run = trainer(ClusteringCallback(K), num_sanity_val_steps=2, max_epochs=1)
    with pytest.warns(RuntimeWarning, match="no embeddings were collected"):
        fit(run)
    assert len(counted) == 3  # of the epoch's validation


def test_epochs_it_skips_do_not_look_at_the_outputs(monkeypatch):
    monkeypatch.setattr(ClusteringCallback, "_collect", lambda *_: pytest.fail("looked"))
    fit(trainer(ClusteringCallback(K, every_n_epochs=3, strict=True)))


def generator_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def trained(*callbacks, **options):
    pl.seed_everything(0, verbose=False)
    module = Classifier()
    fit(trainer(*callbacks, **options), module, train=loader(shuffle=True))
    return module, generator_states()


@pytest.mark.parametrize("options", [{"method": "noisy", "embedding": "z"}, {"embedding": "nowhere"}])
def test_training_is_bit_for_bit_the_same(options):
    modes = set()

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            # Lightning clears gradients before validation; none must have come since.
            assert all(weight.grad is None for weight in pl_module.parameters())

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            modes.add((pl_module.training, pl_module.head.training, torch.is_grad_enabled()))

    (expected, states), callback = trained(), ClusteringCallback(K, **options)
    if "method" in options:
        module, found = trained(callback, Watch())
        assert callback.clustering is not None
    else:
        with pytest.warns(RuntimeWarning, match="was not clustered"):
            module, found = trained(callback, Watch())
    assert found == states
    for name, weight in expected.state_dict().items():
        assert torch.equal(weight, module.state_dict()[name])
    assert modes == {(True, True, True)}


BAD = {
    "no key": (lambda z, y: {"features": z}, {}, r"batch 0: validation_step has no 'embedding'.*keys features"),
    "no attribute": (lambda z, y: {"out": z}, {"embedding": "out.z"}, r"no 'z' in a torch.float32 tensor"),
    "nothing": (lambda z, y: None, {}, "on_validation_batch_end, batch 0: .*in None"),
    "flat": (lambda z, y: {"embedding": z[:, 0]}, {}, r"embedding 'embedding' of validation_step.*shape \(32,\)"),
    "whole numbers": (lambda z, y: {"embedding": z.long()}, {}, r"tensor of floats \(B, D\), got a torch.int64"),
    "labels": (lambda z, y: {"embedding": z, "y": y[:5]}, {"label": "y"}, r"label 'y'.*\(32,\), got .*shape \(5,\)"),
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


def test_a_failure_leaves_monitors_their_last_scores(tmp_path):
    module = Classifier()
    module.outputs = lambda z, y: {"embedding": z, "label": y} if module.current_epoch == 0 else {}
    checkpoint = ModelCheckpoint(tmp_path, monitor="cluster_acc", mode="max")
    stopping = EarlyStopping("cluster_acc", mode="max", patience=5)
    run, logger = trainer(ClusteringCallback(K, label="label"), checkpoint, stopping, max_epochs=3), Recorder()
    run.loggers = [logger]
    with pytest.warns(RuntimeWarning, match="validation_step has no"):
        fit(run, module)
    assert run.current_epoch == 3
    assert logger.values("cluster_acc") == [pytest.approx(float(checkpoint.best_model_score))]


def test_a_change_of_width_between_epochs_is_named():
    module = Classifier()
    module.outputs = lambda z, y: {"embedding": z[:, : D - 2 * module.current_epoch]}
    with pytest.raises(ClusteringError, match=r"'embedding' of shape \(90, 6\) is 6 wide, but 8 at the last.*step 3"):
        fit(trainer(ClusteringCallback(K, strict=True)), module)


@pytest.mark.parametrize("shuffle", [False, True])
def test_clusters_keep_their_ids(shuffle):
    rotations = [torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(s)))[0] for s in range(4)]
    module, seen = Classifier(), []

    def outputs(z, y):
        # New directions in each epoch tell k-means other starts; where samples come in another order, only the
        # directions can tell what a cluster was.
        x = torch.eye(D)[y] + 0.05 * z
        return {"embedding": x if shuffle else x @ rotations[module.current_epoch], "label": y}

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            centers = callback.clustering.centers
            seen.append(centers.argmax(dim=1).tolist() if shuffle else callback.clustering.labels.tolist())

    module.outputs = outputs
    callback = ClusteringCallback(K, label="label", strict=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Your `val_dataloader`'s sampler has shuffling enabled")
        fit(trainer(callback, Watch(), max_epochs=4), module, val=loader(shuffle=shuffle))
    assert all(ids == seen[0] for ids in seen)
    assert ("stability" in callback.clustering.scores) != shuffle


def test_a_cap_takes_the_same_samples_in_every_epoch():
    callback = ClusteringCallback(K, label="label", max_samples=20)
    run = trainer(callback)
    fit(run)
    assert len(callback.clustering.labels) == 20
    assert "cluster_stability" in run.callback_metrics


def test_several_loaders_are_clustered_as_one():
    class Model(Classifier):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            return super().validation_step(batch, batch_idx)

    callback = ClusteringCallback(K, label="label", strict=True)
    fit(trainer(callback), Model(), val=[loader(), loader(samples(30))])
    assert len(callback.clustering.labels) == 120


def test_several_callbacks_do_not_mix(tmp_path):
    first, second = ClusteringCallback(K, label="label"), ClusteringCallback(4, label="label", prefix="four_")
    run = trainer(first, second)
    fit(run)
    assert {"cluster_acc", "four_acc"} <= set(run.callback_metrics)
    assert first.state_key != second.state_key
    run.save_checkpoint(tmp_path / "both.ckpt")
    saved = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    assert len(saved[second.state_key]["clustering"]["centers"]) == 4


def test_a_resumed_run_goes_on_with_the_same_ids_and_scores(tmp_path):
    whole, part = ClusteringCallback(K, label="label"), ClusteringCallback(K, label="label")
    pl.seed_everything(0, verbose=False)
    fit(trainer(whole, max_epochs=4))

    pl.seed_everything(0, verbose=False)
    run = trainer(part, max_epochs=2)
    fit(run)
    run.save_checkpoint(tmp_path / "half.ckpt")
    resumed, logger = ClusteringCallback(K, label="label"), Recorder()
    run = trainer(resumed, max_epochs=4, logger=logger)
    fit(run, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    # Dropout goes on with other numbers, so weights differ a little; ids and the sample set are the same.
    assert torch.equal(resumed.clustering.labels, whole.clustering.labels)
    assert resumed.clustering.samples == whole.clustering.samples
    assert len(logger.values("cluster_stability")) == 2  # the first compares with the clustering in the checkpoint


def test_a_resumed_run_shows_monitors_the_saved_scores(tmp_path):
    run = trainer(ClusteringCallback(K, label="label"), max_epochs=1)
    fit(run)
    run.save_checkpoint(tmp_path / "one.ckpt")
    expected = run.callback_metrics["cluster_acc"]
    run = trainer(ClusteringCallback(K, label="label", every_n_epochs=5), max_epochs=2)
    fit(run, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert run.callback_metrics["cluster_acc"] == expected


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
    header = (tmp_path / "csv/lightning_logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"cluster_size_0", "cluster_size_2", "cluster_acc"} <= set(header)
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
        ({"max_samples": 2}, "max_samples must be at least n_clusters = 3"),
        ({"banks": {}, "encoder": "lite"}, "banks or an encoder"),
        ({"epsilom": 1}, "did you mean 'epsilon'"),
    ],
)
def test_settings_are_checked_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        ClusteringCallback(**{"n_clusters": K, **options})


def test_a_method_that_is_not_there_is_named_before_training():
    with pytest.raises(ValueError, match="Classifier has no method 'encode'"):
        fit(trainer(ClusteringCallback(K, method="encode")))


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
    assert (callback.config.seed, callback.config.epsilon, callback.source.method) == (3, 0.5, "forward")


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


@pytest.mark.parametrize(
    ("outputs", "options"),
    [
        (lambda z, y: None, {"method": lambda module, batch: module.body(batch[0]), "label": "1"}),
        (lambda z, y: z.mean(), {"method": lambda module, batch: {"z": module.body(batch[0])}, "embedding": "z"}),
        (lambda z, y: (z.mean(), z, y), {"embedding": "1", "label": "2"}),
        (lambda z, y: {"loss": z.mean(), "layers": [{"z": z}], "y": y}, {"embedding": "layers.0.z", "label": "y"}),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_whatever_the_step_returns(stage, compiled, outputs, options):
    callback, module = ClusteringCallback(K, strict=True, **options), Classifier(outputs)
    if compiled:
        module.body.compile(backend="eager")
    run = trainer(callback, accumulate_grad_batches=2)
    fit(run, module) if stage == "fit" else validate(run, module)
    assert sum(callback.clustering.sizes) == 90


def test_a_module_without_embeddings_is_told_the_line_to_add():
    hint = r"method=lambda module, batch: module.backbone\(batch\[0\]\)"
    with pytest.warns(RuntimeWarning, match="validation_step has no 'embedding'.*return it there, or .*" + hint):
        fit(trainer(ClusteringCallback(K)), Classifier(lambda z, y: None))
    with pytest.warns(RuntimeWarning, match="clusters at the end of validation runs, and this fit has none.*" + hint):
        fit(trainer(ClusteringCallback(K), limit_val_batches=0))


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_a_module_of_others_needs_one_line_and_an_empty_validation_step():
    """As in lightly's examples: a training step alone, and a backbone whose pooled outputs are (B, D, 1, 1)."""

    class Others(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.AdaptiveAvgPool2d(1))

        def training_step(self, batch, batch_idx):
            return self.backbone(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Validated(Others):
        def validation_step(self, batch, batch_idx):
            pass

    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(images, torch.arange(12) % 3), batch_size=6)
    flat = ClusteringCallback(3, method=lambda module, batch: module.backbone(batch[0]).flatten(1), label="1")
    with pytest.warns(RuntimeWarning, match=r"`def validation_step\(self, batch, batch_idx\): pass` is enough"):
        trainer(flat).fit(Others(), loader, loader)
    trainer(flat).fit(Validated(), loader, loader)
    assert len(flat.clustering.labels) == 12
    assert flat.clustering.scores["acc"] > 0.3
    pooled = ClusteringCallback(3, method=lambda module, batch: module.backbone(batch[0]))
    with pytest.warns(RuntimeWarning, match=r"shape \(6, 4, 1, 1\); pool it, or add \.flatten\(1\)"):
        trainer(pooled).fit(Validated(), loader, loader)


def test_a_run_resumed_in_the_middle_of_an_epoch_goes_on_clustering(tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4:  # the first of three steps of the second epoch
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    first, resumed = ClusteringCallback(K, label="label"), ClusteringCallback(K, label="label")
    fit(trainer(first, Save(), max_epochs=2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
        fit(trainer(resumed, max_epochs=3), ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    assert resumed.clustering.samples == first.clustering.samples
    assert "stability" in resumed.clustering.scores
