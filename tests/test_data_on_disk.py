"""What is only in memory, or behind a data set, becomes files: as they should be called, and nothing is lost by it."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from cae.data import HuggingFaceData, Images
from cae.data import on_disk as module
from cae.data.on_disk import on_disk


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


def rows(classes, labels):
    images = [Image.new("RGB", (8, 8), (20 * i, 0, 0)) for i in range(len(labels))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def test_classes_become_folders_that_are_listed_and_lie_below(tmp_path):
    classes = ["..", ".net", "a/b", "a_b", "A_B", "x" * 300]
    folder = on_disk(rows(classes, list(range(6))), tmp_path)
    found = {name.partition("/")[0] for name in names(folder)}
    assert found == {"unnamed", "net", "a_b", "a_b (2)", "A_B (3)", "x" * 100}
    assert names(tmp_path) == {f"source/{name}" for name in names(folder)}


@pytest.mark.parametrize("labels", [[-1, -1, -1], [0, -1, 1]])
def test_images_without_a_class_are_of_none(tmp_path, labels):
    data = rows(["ant", "bee"], labels)
    assert HuggingFaceData(data).images.labels is None
    assert names(on_disk(data, tmp_path)) == {"0.png", "1.png", "2.png"}


def test_images_that_were_written_before_can_be_written_anew(tmp_path, picture_folder):
    folder = on_disk(ImageFolder(picture_folder), tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    assert on_disk(ImageFolder(folder), tmp_path) == folder
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == before


def test_what_was_written_stays_until_all_is_written_anew(tmp_path, picture_folder, monkeypatch):
    folder = on_disk(ImageFolder(picture_folder), tmp_path)
    before = names(folder)

    def read(index, side):
        if index == 2:
            raise KeyboardInterrupt
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(module, "_images_of", lambda _: (Images(read, ["a", "b", "c"]), None))
    with pytest.raises(KeyboardInterrupt):
        on_disk([], tmp_path)
    assert names(folder) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_array_may_be_mapped_from_the_file_that_it_goes_to(tmp_path):
    x = torch.randn(50_000, 8).numpy()
    np.save(tmp_path / "source.npy", x)
    mapped = np.load(tmp_path / "source.npy", mmap_mode="r")
    assert np.array_equal(np.load(on_disk(mapped, tmp_path)), x)
