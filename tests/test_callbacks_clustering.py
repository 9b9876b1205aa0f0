"""`ClusteringCallback` in real training runs: right scores at the right time, and nothing else is any different."""

import random
import warnings
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from callback_cases import Classifier, D, K, fit, loader, samples, trainer, validate
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader, TensorDataset

from cae.callbacks import ClusteringCallback, ClusteringError
from cae.callbacks.clustering import LOWEST
from cae.metrics import clustering_scores


@pytest.fixture(autouse=True)
def same_weights():
    """Whichever test ran before."""
    torch.manual_seed(0)


class Recorder(DummyLogger):
    """A logger that remembers."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append(metrics)

    def values(self, name):
        return [row[name] for row in self.rows if name in row]


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


class OtherOrder(torch.utils.data.Sampler):
    """Batches of all samples, in another order in each epoch."""

    def __len__(self):
        return 3

    def __iter__(self):
        return iter(torch.randperm(90).reshape(3, 30).tolist())


def test_batches_of_a_sampler_of_ones_own_may_come_in_any_order():
    callback = ClusteringCallback(K, strict=True)
    fit(trainer(callback), val=DataLoader(samples(), batch_sampler=OtherOrder()))
    assert "stability" not in callback.clustering.scores


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
