"""New pictures in an old result: old rows stay, content decides what is new, outliers and a due refit are told."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from cae import Result
from cae.models.cae import CAE
from cae.report import redraw_report, write_report
from cae.results.layout import ResultError
from cae.results.run import run_folder
from cae.results.saved import SavedResult
from cae.results.update import add_images, diff_folder, is_outlier, outliers, refit_reasons
from cae.utils.checksums import content_hash


@pytest.fixture
def paint():
    """A picture of one colour and some noise."""

    def paint(path, channel, seed):
        pixels = np.random.default_rng(seed).integers(0, 60, (20, 24, 3), dtype=np.uint8)
        pixels[..., channel] += 150
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return paint


@pytest.fixture
def update(result_folder, fake_encoder):
    """What `cae update` does, with the fake encoder."""

    def update(folder):
        result = SavedResult.load(result_folder)
        news = diff_folder(result, folder)
        module = CAE.from_pretrained(result_folder / "model", encoder=fake_encoder, return_embeddings=True)
        found = run_folder(
            module, folder, device=torch.device("cpu"), batch_size=4, workers=0, reporter=lambda _: lambda *_: None,
            paths=news.paths,
        )  # fmt: skip
        add_images(result, found)
        return SavedResult.load(result_folder).assignments.slice(len(result.assignments)).to_pylist()

    return update


def test_old_rows_stay_byte_for_byte_and_new_ones_follow(result_folder, picture_folder, paint, update):
    old = SavedResult.load(result_folder)
    vectors = old.embeddings
    csv = (result_folder / "assignments.csv").read_text(encoding="utf-8").splitlines()
    model = {path: path.read_bytes() for path in (result_folder / "model").iterdir()}
    paint(picture_folder / "green/new.png", 1, 77)
    added = update(picture_folder)

    new = SavedResult.load(result_folder)
    assert [row["path"] for row in added] == ["green/new.png"]
    assert new.assignments.slice(0, 30).select(old.assignments.column_names).equals(old.assignments)
    lines = (result_folder / "assignments.csv").read_text(encoding="utf-8").splitlines()
    assert all(now.startswith(was) for now, was in zip(lines, csv, strict=False))
    assert torch.equal(new.embeddings[:30], vectors)
    assert model == {path: path.read_bytes() for path in (result_folder / "model").iterdir()}
    row = new.assignments.to_pylist()[30]
    assert row["sha256"] == content_hash(picture_folder / "green/new.png")
    greens = {row["cluster"] for row in old.assignments.to_pylist() if row["path"].startswith("green")}
    assert row["cluster"] in greens
    assert sum(record["size"] for record in new.clusters) == len(new.embeddings) == new.run["images"] == 31
    assert new.run["updates"][0]["added"] == 1


def test_updates_add_up_and_the_same_again_adds_nothing(result_folder, picture_folder, paint, update, tmp_path):
    paint(picture_folder / "green/new.png", 1, 77)
    assert len(update(picture_folder)) == 1
    assert diff_folder(SavedResult.load(result_folder), picture_folder).paths == []
    elsewhere = paint(tmp_path / "elsewhere/x.png", 2, 78)
    assert [row["path"] for row in update(elsewhere.parent)] == [str(elsewhere)]
    result = SavedResult.load(result_folder)
    assert result.image_paths[-1] == elsewhere
    assert [update["added"] for update in result.run["updates"]] == [1, 1]


def test_content_decides_what_is_new(result_folder, picture_folder, paint):
    (picture_folder / "copy.png").write_bytes((picture_folder / "red/0.png").read_bytes())
    (picture_folder / "red/1.png").rename(picture_folder / "red/moved.png")
    (picture_folder / "red/2.png").write_bytes((picture_folder / "red/3.png").read_bytes())
    first = paint(picture_folder / "new 1.png", 0, 99)
    (picture_folder / "new 2.png").write_bytes(first.read_bytes())
    news = diff_folder(SavedResult.load(result_folder), picture_folder)
    assert news.paths == [first]
    assert news.changed == ["red/2.png"]
    assert news.known == 28 + 1 + 1 + 1  # in place, copied, moved, and the twin of the new one


def test_the_page_takes_in_new_pictures_and_shows_those_that_fit_nowhere(
    result_folder, picture_folder, paint, update, monkeypatch
):
    def silent(_what):
        return lambda *_: None

    write_report(SavedResult.load(result_folder), result_folder / "report", silent)
    assert outliers(SavedResult.load(result_folder)).tolist() == [False] * 30
    paint(picture_folder / "green/new.png", 1, 77)
    Image.effect_mandelbrot((24, 20), (-3, -2.5, 2, 2.5), 20).convert("RGB").save(picture_folder / "odd.png")
    added = update(picture_folder)
    assert {row["path"]: row["outlier"] for row in added} == {"green/new.png": False, "odd.png": True}
    assert outliers(SavedResult.load(result_folder)).tolist() == [False] * 30 + [row["outlier"] for row in added]
    monkeypatch.setattr("cae.report.page.lay_out", lambda *_, **__: pytest.fail("the old map will do"))
    redraw_report(result_folder, silent)
    html = (result_folder / "report/index.html").read_text(encoding="utf-8")
    assert "1 picture added since the groups were made is unlike" in html
    assert "32 pictures" in html
    assert len(list((result_folder / "report/report_files/thumbnails").iterdir())) == 2


def test_unreadable_files_are_told_and_do_no_harm(result_folder, picture_folder, update):
    (picture_folder / "broken.jpg").write_bytes(b"no picture")
    assert update(picture_folder) == []
    result = SavedResult.load(result_folder)
    assert list(result.run["skipped"]) == ["broken.jpg"]
    assert len(result.assignments) == 30


@pytest.mark.parametrize("name", ["embeddings.safetensors", "placement.safetensors"])
def test_damage_is_told_before_new_pictures_are_embedded(tree_folder, tmp_path, paint, monkeypatch, name):
    paint(tmp_path / "colours/new.png", 0, seed=9)
    (tree_folder / name).write_bytes(b"damaged")
    monkeypatch.setattr("cae.results.run.predict_source", lambda *_, **__: pytest.fail("pictures are embedded"))
    with pytest.raises(ResultError, match=f"{name} is damaged"):
        Result(tree_folder).update(tmp_path / "colours", workers=0, progress=False)


def test_outliers_are_unlike_all_that_was_fitted():
    def around(axes, n, seed):
        noise = torch.randn(n, 32, generator=torch.Generator().manual_seed(seed))
        return normalize(torch.eye(32)[[axes[i % len(axes)] for i in range(n)]] + 0.1 * noise, dim=1)

    fitted = around([0, 1, 2], 900, seed=0)
    assert is_outlier(around([5], 50, seed=1), fitted.half()).all()
    # The share that the quantile promises, on fresh pictures of the same kind.
    assert 0.003 < is_outlier(around([0, 1, 2], 3000, seed=2), fitted.half()).mean() < 0.03
    assert is_outlier(fitted[:0], fitted.half()).tolist() == []


def with_added(result, outliers):
    """The result, had its fit seen all but the last pictures, and these been outliers or not."""
    n = len(result.assignments) - len(outliers)
    table = result.assignments.append_column("outlier", pa.array([False] * n + outliers))
    changed = dataclasses.replace(result, assignments=table)
    changed.__dict__["fitted"] = dataclasses.replace(result.fitted, n_images=n)
    return changed


def test_a_refit_is_due_when_pictures_stop_fitting_or_there_are_many(result_folder):
    result = SavedResult.load(result_folder)
    assert refit_reasons(result, 0) == []
    assert refit_reasons(with_added(result, [False] * 9 + [True]), 0) == []
    assert refit_reasons(with_added(result, [False] * 8 + [True] * 2), 0) == [
        "20% of the added pictures are unlike any group"
    ]
    assert refit_reasons(with_added(result, [True] * 3), 0) == []  # too few to tell
    (many,) = refit_reasons(with_added(result, [False] * 11), 0)
    assert many == "11 pictures are new or changed since 19 were clustered"
    assert refit_reasons(result, 16) == ["16 pictures are new or changed since 30 were clustered"]
