"""`cae.cluster` and `Result`: what the command line does, from Python, and on data that lie in no folder."""

import re
import shutil

import datasets
import numpy as np
import pytest
import torch
from conftest import FakeEncoder
from filelock import FileLock, Timeout
from PIL import Image
from torchvision.datasets import ImageFolder

import cae
from cae.data import HuggingFaceData, ImageError
from cae.results import edits_file, run
from cae.results.edits import EditError
from cae.results.writing import OutputError


@pytest.fixture
def options(monkeypatch, text_files, tmp_path):
    """Of `cae.cluster`: a small encoder in the place of CLIP, small texts, no progress."""
    for home in ("cae.models.embedder", "cae.encoders.deferred"):
        monkeypatch.setattr(f"{home}.load_encoder", lambda *_, **__: FakeEncoder())
    return {**text_files, "out": tmp_path / "out", "workers": 0, "progress": False}


@pytest.fixture
def result(options, picture_folder):
    return cae.cluster(picture_folder, 3, **options)


def test_a_folder(result, picture_folder):
    assert len(result.labels) == len(result.names) == 30
    assert sorted(np.bincount(result.labels)) == [10, 10, 10]
    assert result.scores["CAE"]["acc"] == 100
    assert {cluster["name"] for cluster in result.clusters} == set(result.names)
    again = cae.Result(result.folder)
    assert again.assignments == result.assignments
    assert repr(again).endswith("30 rows, 3 clusters)")


def test_it_is_edited_as_on_the_command_line(result):
    first, second, third = (cluster["name"] for cluster in result.clusters)
    assert result.rename(first, "boats").clusters[0]["name"] == "boats"
    assert len(result.merge(["boats", second]).clusters) == 2
    assert len(result.split("boats", 2).clusters) == 3
    moved = result.assignments["path"][0].as_py()
    result.move([moved], third).pin(third)
    assert dict(zip(result.assignments["path"].to_pylist(), result.names, strict=True))[moved] == third
    for _ in range(5):
        result.undo()
    assert [cluster["name"] for cluster in result.clusters] == [first, second, third]
    with pytest.raises(EditError, match="no picture is chosen"):
        result.move([], first)
    with pytest.raises(EditError, match="at least two"):
        result.merge([first])


def test_edits_that_cannot_be_made_change_nothing_and_say_why(result):
    first, second, third = (cluster["name"] for cluster in result.clusters)
    with pytest.raises(EditError, match="there are no edits, and so nothing to take back"):
        result.undo()
    with pytest.raises(EditError, match="no edit was taken back last"):
        result.redo()
    groups = re.escape(f"there is no group 9; they are 0 ({first}), 1 ({second}), 2 ({third})")
    for missing in (9, "9"):
        with pytest.raises(EditError, match=groups):
            result.rename(missing, "boats")
    result.rename(first, "boats").undo()
    with pytest.raises(EditError, match="at least one group"):
        result.pin()
    assert result.redo().clusters[0]["name"] == "boats"


def test_a_method_that_there_is_not_is_refused(options, picture_folder):
    with pytest.raises(ValueError, match="unknown method 'tac_heads'; choose one of cae, tac-heads, cae-heads, mca"):
        cae.cluster(picture_folder, 3, method="tac_heads", **options)


def test_an_edit_reads_those_before_once(result, monkeypatch):
    read, load = [], edits_file.load_json
    result.rename(0, "boats")
    monkeypatch.setattr(edits_file, "load_json", lambda path: read.append(path) or load(path))
    result.rename(1, "ships")
    assert read == [result.folder / "edits.json"]


def test_it_is_drawn_exported_updated_compared_and_predicts(result, picture_folder, tmp_path):
    assert result.report(progress=False) == result.folder / "report" / "index.html"
    assert result.export("folders", tmp_path / "groups", progress=False).written == 30
    Image.new("RGB", (24, 20), (200, 10, 10)).save(picture_folder / "red" / "new.png")
    (picture_folder / "broken.png").write_bytes(b"no picture")
    done = result.update(picture_folder, workers=0, progress=False)
    assert [path.name for path in done.diff.paths] == ["broken.png", "new.png"]
    assert [path.name for path in done.skipped] == ["broken.png"]
    assert len(result.labels) == 31
    assert result.update(picture_folder, workers=0, progress=False).diff.known == 31
    assert result.compare(result).ari == result.compare(result.folder).ari == 100
    found = result.predict(picture_folder / "red", workers=0, progress=False)
    assert len(found.prediction.cluster.unique()) == 1


def hugging_face(folder):
    return datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")


@pytest.mark.parametrize("load", [ImageFolder, hugging_face, lambda folder: HuggingFaceData(hugging_face(folder))])
def test_data_sets_of_images(options, picture_folder, load, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    data = load(picture_folder)
    result = cae.cluster(data, 3, **options)
    assert result.scores["CAE"]["acc"] == 100
    assert result.report(progress=False).is_file()
    if load is not hugging_face and not isinstance(data, ImageFolder):
        return  # a data module of Hugging Face rows does not know the names of its classes
    assert {path.name for path in (result.folder / "source").iterdir() if path.is_dir()} == {"blue", "green", "red"}


def test_a_fit_does_not_write_into_an_update_that_is_under_way(options, picture_folder, monkeypatch):
    """Which read the result before: it would write the old assignments beside the new model."""
    write, held = run.write_result, []

    def write_result(*arguments):
        with pytest.raises(Timeout):
            FileLock(options["out"] / ".lock").acquire(timeout=0)
        held.append(True)
        write(*arguments)

    monkeypatch.setattr(run, "write_result", write_result)
    cae.cluster(picture_folder, 3, **options).rename(0, "boats")
    assert held == [True]


def test_a_damaged_image_of_a_data_set_costs_that_image_alone(options, picture_folder):
    (picture_folder / "red" / "3.png").write_bytes((picture_folder / "red" / "3.png").read_bytes()[:100])
    assert len(cae.cluster(ImageFolder(picture_folder), 3, **options).labels) == 29


def test_data_sets_replace_their_own_images_and_nobody_elses(options, picture_folder):
    data = ImageFolder(picture_folder)
    for _ in range(2):
        assert len(cae.cluster(data, 3, **options).labels) == 30
    mine = options["out"] / "mine"
    (mine / "source").mkdir(parents=True)
    with pytest.raises(ImageError, match="in the way"):
        cae.cluster(data, 3, **{**options, "out": mine})


@pytest.mark.parametrize("kind", [torch.Tensor, np.asarray])
def test_embeddings_in_memory(options, kind):
    x = torch.eye(48)[:3].repeat_interleave(10, dim=0) + 0.01 * torch.randn(30, 48)
    result = cae.cluster(x if kind is torch.Tensor else x.numpy(), 3, **options)
    assert sorted(np.bincount(result.labels)) == [10, 10, 10]


def test_a_result_nobody_has_named_gives_way_to_one_of_the_same_images_only(
    options, picture_folder, tmp_path, monkeypatch
):
    """Somebody with two folders would lose the first one's groups."""
    home = tmp_path / "home"
    shutil.copytree(picture_folder, home / "photos")
    shutil.copytree(picture_folder / "red", home / "others")
    monkeypatch.chdir(home)
    del options["out"]
    for _ in range(2):
        result = cae.cluster("photos", 3, **options)
    for source in ("others", torch.eye(9)):
        with pytest.raises(OutputError, match=r"holds the result of .*photos, .* say so with --out cae-result"):
            cae.cluster(source, 3, **options)
    assert len(cae.Result("cae-result").assignments) == len(result.assignments) == 30
    home.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    cae.cluster("photos", 3, **options)
    assert len(cae.cluster("others", 2, out="cae-result", **options).assignments) == 10


def test_embeddings_nobody_has_named_give_way_to_embeddings(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    del options["out"]
    x = FakeEncoder().encode_texts([f"text {i}" for i in range(12)])
    np.save("x.npy", x.numpy())
    for source in (x, x.flip(0)):  # of what is only in memory nobody can say whether it is the same
        cae.cluster(source, 2, **options)
    with pytest.raises(OutputError, match=r"holds the result of .*source\.npy"):
        cae.cluster("x.npy", 2, **options)
    for _ in range(2):
        cae.cluster("x.npy", 2, out="cae-result", **options)
    cae.cluster("x.npy", 2, **options)
    with pytest.raises(OutputError, match=r"holds the result of .*x\.npy"):
        cae.cluster(x, 2, **options)


def test_what_cannot_be_clustered_is_named(options):
    with pytest.raises(TypeError, match=r"expected a folder of images.* got int"):
        cae.cluster(7, 3, **options)


def test_progress_is_lines_where_no_screen_redraws(options, picture_folder, capfd):
    cae.cluster(picture_folder, 3, **{**options, "progress": True})
    shown = capfd.readouterr()
    assert shown.out == ""
    assert [line for line in ("nouns …", "captions …", "pictures …", "grouping …") if line not in shown.err] == []
