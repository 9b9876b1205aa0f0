"""The data modules of images: folders, Hugging Face and torchvision data sets, and what their labels are."""

import io
import os
import tarfile
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, random_split
from torchvision.datasets import FakeData
from torchvision.datasets import ImageFolder as TorchvisionFolder

from cae.data import (
    EmbeddingData,
    HuggingFaceData,
    ImageFolderData,
    TorchvisionData,
    list_images,
    read_image,
)


def samples(data, loader="predict_dataloader"):
    """Path and class of each sample by its index, in the order they come; and the pictures."""
    batches = list(getattr(data, loader)())
    found = {}
    for batch in batches:
        labels = batch["label"].tolist() if "label" in batch else [None] * len(batch["index"])
        found.update(zip(batch["index"].tolist(), zip(batch["path"], labels, strict=True), strict=True))
    return found, torch.cat([batch["image"] for batch in batches])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loader", ["predict_dataloader", "test_dataloader", "train_dataloader"])
def test_a_folder_has_order_paths_and_classes(attached, picture_folder, workers, loader):
    data = attached(ImageFolderData(picture_folder, batch_size=7, num_workers=workers))
    found, images = samples(data, loader)
    assert list(found) == list(range(30))
    assert data.classes == ["blue", "green", "red"]
    for index, (path, label) in found.items():
        assert picture_folder / path == data.paths[index]
        assert path.startswith(data.classes[label])
    assert images.shape == (30, 3, 4, 4)


def test_unreadable_pictures_are_left_out_and_the_rest_keep_their_numbers(attached, picture_folder):
    (picture_folder / "green" / "0.png").write_bytes(b"")
    data = attached(ImageFolderData(picture_folder, batch_size=1, num_workers=0))
    found, images = samples(data)
    assert sorted(set(range(30)) - set(found)) == [10]
    assert len(images) == 29


def test_loose_pictures_have_no_classes(attached, picture_folder):
    (picture_folder / "red" / "0.png").rename(picture_folder / "loose.png")
    data = attached(ImageFolderData(picture_folder, num_workers=0))
    assert data.classes == []
    assert "label" not in next(iter(data.predict_dataloader()))


def test_identity_tells_of_any_change(picture_folder):
    def identity():
        return ImageFolderData(picture_folder).identity

    seen = [identity()]
    assert identity() == seen[0]
    (picture_folder / "red" / "0.png").write_bytes((picture_folder / "red" / "1.png").read_bytes())
    seen.append(identity())
    (picture_folder / "red" / "0.png").rename(picture_folder / "red" / "x.png")
    seen.append(identity())
    (picture_folder / "red" / "x.png").unlink()
    seen.append(identity())
    assert len(set(seen)) == 4


def test_what_the_store_has_is_not_read_again(attached, picture_folder, tmp_path, fake_encoder):
    data = attached(ImageFolderData(picture_folder, num_workers=0))
    embedder = data.trainer.lightning_module
    embedder.store_folder = tmp_path / "store"
    embedder.open_store()
    embedder.store.append(torch.arange(12), torch.eye(fake_encoder.dim)[:12])
    assert list(samples(data, "train_dataloader")[0]) == list(range(12, 30))
    assert list(samples(data)[0]) == list(range(30))
    embedder.store.close()


def test_without_a_trainer_there_is_nobody_to_ask(picture_folder):
    with pytest.raises(RuntimeError, match="only inside a trainer"):
        ImageFolderData(picture_folder).predict_dataloader()


@pytest.fixture
def rows(picture_folder):
    paths = list_images(picture_folder)
    names = sorted({path.parent.name for path in paths})
    columns = {"picture": [str(path) for path in paths], "label": [names.index(path.parent.name) for path in paths]}
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_gives_what_the_folder_gives(attached, rows, picture_folder, streaming):
    expected, images = samples(attached(ImageFolderData(picture_folder, num_workers=0)))
    data = HuggingFaceData(rows.to_iterable_dataset() if streaming else rows, batch_size=7, num_workers=0)
    found, same = samples(attached(data))
    assert {i: label for i, (_, label) in found.items()} == {i: label for i, (_, label) in expected.items()}
    assert torch.equal(same, images)


def test_hugging_face_streams_are_shared_out(attached, rows, monkeypatch):
    shares = []
    for rank in range(3):
        data = attached(HuggingFaceData(rows.to_iterable_dataset(), batch_size=7, num_workers=0))
        monkeypatch.setattr(type(data.trainer), "world_size", 3)
        monkeypatch.setattr(type(data.trainer), "global_rank", rank)
        shares.append(list(samples(data)[0]))
    assert [len(share) for share in shares] == [10, 10, 10]
    assert sorted(index for share in shares for index in share) == list(range(30))


def test_hugging_face_passes_over_damaged_pictures_and_names_missing_columns(attached, rows):
    broken = rows.cast_column("picture", datasets.Image(decode=False)).map(
        lambda row, i: {"picture": {"bytes": b"none", "path": None} if i == 4 else row["picture"]}, with_indices=True
    )
    data = HuggingFaceData(broken, image="picture", num_workers=0)
    assert 4 not in samples(attached(data))[0]
    with pytest.raises(ValueError, match="no column 'photo'; its columns are picture, label"):
        HuggingFaceData(rows, image="photo")
    with pytest.raises(ValueError, match="no column of pictures"):
        HuggingFaceData(rows.remove_columns("picture"))


def as_strings(rows):
    names = rows.features["label"].names
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("string")})
    columns = {"picture": rows["picture"][:], "label": [names[i] for i in rows["label"]]}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize(
    "change",
    [
        as_strings,
        lambda rows: rows.cast_column("label", datasets.Value("int32")),
        lambda rows: rows.cast_column("label", datasets.Value("int64")).rename_column("label", "cls"),
    ],
)
def test_hugging_face_labels_may_be_strings_or_plain_numbers(attached, rows, picture_folder, change):
    expected, _ = samples(attached(ImageFolderData(picture_folder, num_workers=0)))
    found, _ = samples(attached(HuggingFaceData(change(rows), num_workers=0)))
    assert {i: label for i, (_, label) in found.items()} == {i: label for i, (_, label) in expected.items()}


def test_hugging_face_says_what_to_hand_over_instead(rows, picture_folder):
    with pytest.raises(TypeError, match=r"a DatasetDict of train, test: choose a split, as dataset\['train'\]"):
        HuggingFaceData(datasets.DatasetDict(train=rows, test=rows))
    frame = pd.DataFrame({"path": [str(path) for path in list_images(picture_folder)]})
    with pytest.raises(TypeError, match=r"a DataFrame is no data set of Hugging Face: make one with .*from_pandas"):
        HuggingFaceData(frame)
    dataset = datasets.Dataset.from_pandas(frame)
    with pytest.raises(ValueError, match=r"its columns are path\. If one holds paths, use \.cast_column"):
        HuggingFaceData(dataset)
    assert len(HuggingFaceData(dataset.cast_column("path", datasets.Image())).images) == 30
    with pytest.raises(ValueError, match="are strings, which a stream cannot number"):
        HuggingFaceData(as_strings(rows).to_iterable_dataset())
    missing = as_strings(rows).map(lambda row, i: {"label": None if i == 4 else row["label"]}, with_indices=True)
    with pytest.raises(ValueError, match=r"row 4 \(the first is 0\) has no label"):
        HuggingFaceData(missing)


@pytest.mark.parametrize("streaming", [False, True])
def test_archives_of_webdataset_are_data_sets_of_hugging_face(
    attached, picture_folder, tmp_path, monkeypatch, streaming
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    with tarfile.open(tmp_path / "pictures.tar", "w") as archive:
        for number, path in enumerate(list_images(picture_folder)):
            (tmp_path / "class").write_text(str(number // 10))
            archive.add(path, f"{number:04d}.png")
            archive.add(tmp_path / "class", f"{number:04d}.cls")
    rows = datasets.load_dataset(
        "webdataset", data_files={"train": str(tmp_path / "pictures.tar")}, split="train", streaming=streaming
    )
    expected, images = samples(attached(ImageFolderData(picture_folder, num_workers=0)))
    found, same = samples(attached(HuggingFaceData(rows, num_workers=0)))
    assert {i: label for i, (_, label) in found.items()} == {i: label for i, (_, label) in expected.items()}
    assert torch.equal(same, images)


def test_torchvision(attached, picture_folder):
    expected, images = samples(attached(ImageFolderData(picture_folder, num_workers=0)))
    data = attached(TorchvisionData(TorchvisionFolder(picture_folder), num_workers=0))
    found, same = samples(data)
    assert found == expected
    assert torch.equal(same, images)
    assert data.identity == ImageFolderData(picture_folder).identity
    assert samples(attached(TorchvisionData(FakeData(5), num_workers=0)))[1].shape == (5, 3, 4, 4)
    with pytest.raises(TypeError, match="leave its transform unset"):
        samples(attached(TorchvisionData(FakeData(5, transform=lambda _: torch.zeros(3)), num_workers=0)))


def test_fewer_samples_than_processes_are_refused():
    data = EmbeddingData(torch.eye(2), num_workers=0)
    data.trainer = SimpleNamespace(world_size=3, global_rank=0)
    with pytest.raises(ValueError, match="2 samples cannot be shared by 3 processes"):
        data.loader()


def torchvision_like(**attributes):
    """A data set of six images that keeps its classes as one of torchvision's does."""

    class Like(Dataset):
        def __getitem__(self, index):
            return Image.new("RGB", (8, 8)), 0

        def __len__(self):
            return 6

    found = Like()
    vars(found).update(attributes)
    return found


CLASSES = [2, 0, 1, 1, 0, 2]


@pytest.mark.parametrize(
    "kept",
    [
        {"targets": CLASSES},  # CIFAR, ImageFolder, Places365, LFWPeople
        {"targets": torch.tensor(CLASSES)},  # MNIST
        {"labels": np.array(CLASSES, dtype=np.uint8)},  # STL10, SVHN
        {"_labels": CLASSES},  # DTD, Flowers102, Food101, Pets, SUN397, Aircraft, CLEVR
        {"y": CLASSES},  # Caltech101 and 256
        {"_samples": [("a.jpg", label) for label in CLASSES]},  # Cars, GTSRB, FER2013, SST2, Imagenette
    ],
    ids=lambda kept: next(iter(kept)),
)
def test_classes_are_found_where_torchvision_keeps_them_and_through_parts(kept):
    dataset = torchvision_like(classes=["a", "b", "c"], **kept)
    data = TorchvisionData(dataset)
    assert (data.images.labels.tolist(), data.classes) == (CLASSES, ["a", "b", "c"])
    part = Subset(Subset(dataset, [5, 3, 1]), [2, 0])
    assert TorchvisionData(part).images.labels.tolist() == [0, 2]
    first, second = random_split(dataset, [4, 2])
    both = TorchvisionData(ConcatDataset([first, second]))
    assert both.images.labels.tolist() == [CLASSES[i] for i in (*first.indices, *second.indices)]
    assert both.classes == ["a", "b", "c"]


@pytest.mark.parametrize(
    "kept",
    [
        {"targets": ["a.xml"] * 6},  # VOCDetection
        {"labels": [-1] * 6},  # STL10, unlabelled
        {"_samples": [("a.jpg", None)] * 6},  # FER2013, test
        {"targets": [[0, 1]] * 6},
        {"targets": [0, 1]},
        {},
    ],
)
def test_what_is_no_class_is_not_taken_for_one(kept):
    assert TorchvisionData(torchvision_like(**kept)).images.labels is None
    mixed = ConcatDataset([torchvision_like(**kept), torchvision_like(targets=CLASSES)])
    assert TorchvisionData(mixed).images.labels is None


class Opened(Dataset):
    """Files that are opened, and read at the first look at a pixel."""

    def __init__(self, *paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return Image.open(io.BytesIO(self.paths[index].read_bytes())), 0


def test_images_of_any_mode_look_as_those_of_a_folder(tmp_path):
    ramp = np.linspace(0, 60_000, 64, dtype=np.uint16).reshape(8, 8)
    made = {
        "clear.png": Image.new("RGBA", (8, 8), (200, 0, 0, 0)),
        "palette.gif": Image.new("P", (8, 8), 1),
        "deep.png": Image.fromarray(ramp),
        "print.tif": Image.new("CMYK", (8, 8), (0, 255, 255, 0)),
    }
    for name, image in made.items():
        image.save(tmp_path / name, **({"transparency": 1} if name == "palette.gif" else {}))
    data = TorchvisionData(Opened(*(tmp_path / name for name in made)))
    for i, name in enumerate(made):
        assert np.array_equal(data.images.read(i, None), read_image(tmp_path / name)), name


@pytest.mark.parametrize("broken", ["cut", "huge"])
def test_a_file_that_fails_only_when_it_is_read_costs_that_image_alone(attached, tmp_path, broken, monkeypatch):
    for i, side in enumerate((8, 100)):
        noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    if broken == "cut":
        (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:9000])
    else:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = attached(TorchvisionData(Opened(tmp_path / "0.png", tmp_path / "1.png"), num_workers=0))
    assert list(samples(data)[0]) == [0]


def test_files_of_any_name_are_listed(picture_folder):
    (picture_folder / "red/1.png").rename(picture_folder / os.fsdecode(b"red/caf\xe9.png"))
    paths = TorchvisionData(TorchvisionFolder(picture_folder)).images.paths
    assert "red/caf\ufffd.png" in paths
    assert "blue/0.png" in paths


@pytest.mark.parametrize(
    "kept",
    [
        {"samples": [0] * 6},
        {"samples": [{"file": "a.png"}] * 6, "root": "photos"},
        {"samples": [("elsewhere/a.png", 0)] * 6, "root": "photos"},
        {"samples": [("photos/a.png", 0)] * 2, "root": "photos"},
        {"samples": None, "root": None},
    ],
)
def test_what_else_a_data_set_calls_samples_is_left_alone(kept):
    images = TorchvisionData(torchvision_like(**kept)).images
    assert (images.paths, images.identity) == (["0", "1", "2", "3", "4", "5"], None)
