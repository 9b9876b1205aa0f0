"""The command line as a user meets it: files written, exit codes, and messages that say what to do."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from types import SimpleNamespace

import numpy
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from conftest import assert_not_loaded, page_of
from PIL import Image

from cae.cli import terminal
from cae.cli.terminal import print_choices
from cae.results.saved import SavedResult

K = 3


def test_cluster_writes_what_it_promises(clustered, picture_folder):
    out, stdout, _ = clustered
    table = pq.read_table(out / "assignments.parquet")
    assert table.column_names == [
        "path", "cluster", "name", "confidence", "similarity", "runner_up", "beta_image", "beta_noun", "beta_caption",
        "top_nouns", "top_caption", "sha256", "leaf",
    ]  # fmt: skip
    assert len(pacsv.read_csv(out / "assignments.csv")) == len(table)
    rows = table.to_pylist()
    assert all((picture_folder / row["path"]).is_file() for row in rows)
    assert all(len(row["top_nouns"]) == 3 and row["top_caption"] for row in rows)
    clusters = json.loads((out / "clusters.json").read_text())["clusters"]
    assert [set(cluster) for cluster in clusters] == [
        {"id", "name", "gloss", "size", "nouns", "captions", "representatives"}
    ] * K
    assert sum(cluster["size"] for cluster in clusters) == len(table)
    assert {row["name"] for row in rows} <= {cluster["name"] for cluster in clusters}
    run = json.loads((out / "run.json").read_text())
    assert run["corpora"]["noun"]["sha256"]
    assert run["encoder"]["fingerprint"]
    assert run["scores"]["CAE"]["acc"] >= 0
    assert "image k-means" in stdout


def test_a_run_ends_with_a_report_and_says_where(clustered, run, tmp_path):
    out, stdout, _ = clustered
    assert f"report: {out}/report/index.html\nto change the groups in the browser: cae open {out}\n" in stdout
    assert "image k-means" in (out / "report/index.html").read_text(encoding="utf-8")
    stages = json.loads((out / "run.json").read_text())["stages"]
    assert {"texts", "transport", "spectral clustering", "naming"} <= set(stages)
    code, stdout, _ = run("report", out, "--out", tmp_path / "page")
    assert code == 0
    assert stdout == f"report: {tmp_path}/page/index.html\n"
    assert (tmp_path / "page/index.html").is_file()


def test_a_result_may_lie_among_its_pictures(run, picture_folder, text_files):
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"]]
    for out in (picture_folder, picture_folder / "cae-result", picture_folder / "cae-result"):
        code, _, stderr = run("cluster", picture_folder, "-k", K, "--out", out, "--workers", 0, *texts)
        assert code == 0, stderr
        assert (out / "report/report_files/thumbnails/00000.webp").is_file()
        assert len(pq.read_table(out / "assignments.parquet")) == 30


def test_the_folder_of_the_pictures_may_be_called_anything(run, picture_folder, text_files, tmp_path):
    """As by bytes that are no UTF-8, which old disks and archives hold."""
    place, out = tmp_path / os.fsdecode(b"caf\xe9"), tmp_path / "out"
    picture_folder.rename(place)
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"]]
    for arguments in (
        ["cluster", place, "-k", K, "--out", out, "--workers", 0, *texts],
        ["edit", out, "rename", 0, "boats"],
        ["update", out, place, "--workers", 0],
        ["export", out, "--to", "json", "--out", tmp_path / "json"],
        ["export", out, "--to", "folders", "--out", tmp_path / os.fsdecode(b"export\xe9")],
    ):
        code, _, stderr = run(*arguments)
        assert code == 0, stderr
    assert SavedResult.load(out).root == place
    assert f"{tmp_path}/caf" in page_of(out)
    code, _, stderr = run("cluster", place, "-k", K, "--out", tmp_path / os.fsdecode(b"out\xe9"))
    assert (code, "out\ufffd: its name is no UTF-8; choose another folder" in stderr) == (1, True)


def test_json_is_one_document_and_the_report_can_be_left_out(run, picture_folder, text_files, tmp_path):
    out = tmp_path / "out"
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"]]
    code, stdout, stderr = run(
        "cluster", picture_folder, "-k", K, "--out", out, "--workers", 0, "--json", "--no-report", *texts
    )
    assert code == 0, stderr
    document = json.loads(stdout)
    assert document["report"] is None
    assert document["run"] == json.loads((out / "run.json").read_text())
    assert [cluster["id"] for cluster in document["clusters"]] == list(range(K))
    assert not (out / "report").exists()


def test_a_folder_without_sub_folders_has_no_scores(run, monkeypatch, picture_folder, text_files, tmp_path):
    monkeypatch.setattr("cae.method.kmeans.image_kmeans", lambda *_, **__: pytest.fail("a baseline that nobody sees"))
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"]]
    code, stdout, stderr = run(
        "cluster", picture_folder / "red", "-k", 2, "--out", tmp_path / "out", "--workers", 0, *texts
    )
    assert code == 0, stderr
    assert json.loads((tmp_path / "out/run.json").read_text())["scores"] == {}
    assert "image k-means" not in stdout


def test_predict_gives_the_same_clusters_without_refitting(clustered, run, picture_folder, tmp_path):
    out, *_ = clustered
    for model in (out, out / "model"):
        code, _, stderr = run("predict", model, picture_folder, "--out", tmp_path / "again", "--workers", 0)
        assert code == 0, stderr
        assert pq.read_table(tmp_path / "again/assignments.parquet").equals(pq.read_table(out / "assignments.parquet"))


def test_a_trained_method_writes_the_same_files_and_predicts_from_them(run, picture_folder, text_files, tmp_path):
    out, again = tmp_path / "result", tmp_path / "again"
    out.mkdir()
    for name in ("placement.safetensors", "run.json"):
        (out / name).write_text('of an earlier run, which had a tree, and damaged: "beta_histogram", "beta_mean"')
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"], "--workers", 0]
    code, stdout, stderr = run("cluster", picture_folder, "-k", K, "--method", "tac-heads", "--out", out, *texts)
    assert code == 0, stderr
    run_json = json.loads((out / "run.json").read_text())
    assert run_json["method"] == "tac-heads"
    assert not (out / "placement.safetensors").exists()
    assert set(run_json["scores"]) == {"image k-means", "tac-heads"}
    assert "the groups rest on" not in stdout
    code, _, stderr = run("predict", out, picture_folder, "--out", again, "--workers", 0)
    assert code == 0, stderr
    assert pq.read_table(again / "assignments.parquet").equals(pq.read_table(out / "assignments.parquet"))
    assert (out / "report/index.html").is_file()
    shutil.copy(picture_folder / "red/0.png", picture_folder / "green/copy.png")
    Image.new("RGB", (9, 9), "red").save(picture_folder / "red/new.png")
    code, stdout, stderr = run("update", out, picture_folder, "--workers", 0)
    assert code == 0, stderr
    assert "1 picture added" in stdout


def test_names_and_paths_are_printed_as_they_are_and_give_the_terminal_no_orders(run, picture_folder, tmp_path):
    nasty = "\x1b[2J\x1b]0;owned\x07\x9b31m[red]:dog:[/nothing]\\"
    (tmp_path / "nouns.txt").write_text("".join(f"{nasty} {i}\n" for i in range(9)), encoding="utf-8")
    (tmp_path / "captions.txt").write_text(f"{nasty}\n", encoding="utf-8")
    name = nasty.replace("/", "|") + "\n\tforged"
    shutil.copy(picture_folder / "red/0.png", picture_folder / "red" / f"{name}.png")
    (picture_folder / "red" / f"broken {name}.png").touch()
    (picture_folder / "red").rename(picture_folder / name)
    out = tmp_path / "[/out] [b]:cat:"
    arguments = ["--nouns", tmp_path / "nouns.txt", "--captions", tmp_path / "captions.txt", "--workers", 0]
    shown = ""
    for command in (
        ["cluster", picture_folder, "-k", K, "--out", out, *arguments],
        ["edit", out, "rename", 0, f"{nasty} new"],  # is refused
        ["edit", out, "pin", 0],
        ["edit", out, "undo"],
        ["update", out, picture_folder, "--workers", 0],
        ["compare", out, out],
        ["compare", out, out, "--json"],
        ["cluster", picture_folder, "-k", K, "--out", out, "--json", "--no-report", *arguments],
        ["export", out, "--to", "folders", "--out", tmp_path / name],
        ["predict", out, picture_folder, "--out", tmp_path / f"{out.name} again", "--workers", 0],
        ["edit", out, "rename", name, "x"],
    ):
        code, stdout, stderr = run(*command)
        assert code == ("rename" in command), stderr
        shown += stdout + stderr
    assert not set(shown) & {"\x1b", "\x07", "\x9b", "\t"}
    assert "\\x1b[2J" in shown
    assert "\\n\\tforged" in shown
    assert not [line for line in shown.splitlines() if line.strip().startswith("forged")]
    assert "[red]:dog:[/nothing]\\" in shown
    assert "[/out] [b]:cat:/report/index.html" in shown


def test_what_modules_warn_of_is_one_line_without_orders_to_the_terminal(run, result_folder, tmp_path):
    place = result_folder.rename(tmp_path / "a\n\x1b[2Jb")
    said = (place / "clusters.json").read_text()
    (place / "clusters.json").write_text(said.replace('"size"', '"other": 1, "size"', 1))
    code, _, stderr = run("edit", place)
    assert code == 0
    assert "a\\n\\x1b[2Jb/clusters.json was changed or damaged" in stderr
    assert "\x1b" not in stderr


def test_update_adds_what_is_new_and_compare_sees_it(clustered, run, picture_folder, tmp_path):
    out, *_ = clustered
    shutil.copytree(out, tmp_path / "before")
    pixels = numpy.random.default_rng(1).integers(0, 60, (20, 24, 3), dtype=numpy.uint8)
    Image.fromarray(pixels + numpy.array([0, 150, 0], dtype=numpy.uint8)).save(picture_folder / "green/new.png")
    (picture_folder / "red/0.png").write_bytes((picture_folder / "red/1.png").read_bytes())
    code, stdout, stderr = run("update", out, picture_folder, "--workers", 0)
    assert code == 0, stderr
    assert "1 picture added, 29 there already" in stdout
    assert "1 picture changed since" in stderr
    assert f"report: {out}/report/index.html" in stdout
    assert "31 pictures" in page_of(out)
    code, stdout, stderr = run("update", out, picture_folder, "--workers", 0)
    assert code == 0, stderr
    assert "0 pictures added, 30 there already" in stdout

    code, stdout, stderr = run("compare", tmp_path / "before", out)
    assert code == 0, stderr
    assert "30 pictures in both, 0 in A alone, 1 in B alone" in stdout
    assert f"on a page: cae report {out} --compare {tmp_path}/before" in stdout
    code, stdout, stderr = run("report", out, "--compare", tmp_path / "before", "-o", tmp_path / "page")
    assert code == 0, stderr
    assert "<dt>only here</dt><dd>1</dd>" in (tmp_path / "page/index.html").read_text(encoding="utf-8")
    code, stdout, _ = run("compare", tmp_path / "before", out, "--json")
    found = json.loads(stdout)
    assert code == 0
    assert found["ari"] == pytest.approx(100)
    assert found["moves"] == []


def test_export_says_what_it_did_and_what_is_missing(clustered, run, picture_folder, tmp_path):
    out, *_ = clustered
    (picture_folder / "red/0.png").unlink()
    code, stdout, stderr = run("export", out, "--to", "folders", "--out", tmp_path / "sorted")
    assert code == 0
    assert "29 files" in stdout
    assert "1 picture missing and left out (red/0.png)" in stderr
    code, _, stderr = run("report", out)
    assert code == 0
    assert "1 picture missing and shown as gaps (red/0.png); moved? give --images DIR" in " ".join(stderr.split())
    assert run("export", out, "--to", "json", "--out", tmp_path / "json")[1] == f"1 file in {tmp_path}/json\n"


def test_unreadable_pictures_are_listed_and_skipped(run, picture_folder, text_files, tmp_path):
    (picture_folder / "red" / "empty.jpg").write_bytes(b"")
    code, _, stderr = run(
        "cluster", picture_folder, "-k", K, "--out", tmp_path / "out", "--nouns", text_files["nouns"],
        "--captions", text_files["captions"], "--workers", 2,
    )  # fmt: skip
    assert code == 0
    assert "skipped red/empty.jpg" in stderr
    assert list(json.loads((tmp_path / "out/run.json").read_text())["skipped"]) == ["red/empty.jpg"]
    assert "red/empty.jpg" not in pq.read_table(tmp_path / "out/assignments.parquet")["path"].to_pylist()


def test_what_is_left_out_is_counted_and_named_everywhere(run, picture_folder, text_files, tmp_path):
    for i in range(12):
        (picture_folder / "red" / f"{i}.svg").write_text("<svg/>")
    (picture_folder / "blue" / "empty.jpg").write_bytes(b"")
    (picture_folder / "green" / "0.png").rename(picture_folder / "green" / "noending")
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"], "--workers", 0]
    code, _, stderr = run("cluster", picture_folder, "-k", K, "--out", tmp_path / "out", *texts)
    assert code == 0
    told = "skipped 12 .svg files (red/0.svg, red/1.svg, red/10.svg, …): cae reads no .svg files; export them as PNG"
    assert told in stderr
    skipped = json.loads((tmp_path / "out/run.json").read_text())["skipped"]
    assert len(skipped) == 13
    assert skipped["red/11.svg"].startswith("cae reads no .svg files")
    html = (tmp_path / "out/report/index.html").read_text(encoding="utf-8")
    assert "13 files in no group:" in html
    assert f"<li>{told.removeprefix('skipped ')}" in html
    assert "<li>blue/empty.jpg: an empty file</li>" in html
    assert "13 files skipped" in html
    paths = pq.read_table(tmp_path / "out/assignments.parquet")["path"].to_pylist()
    assert "green/noending" in paths
    assert run("export", tmp_path / "out", "--to", "folders", "--out", tmp_path / "sorted")[1].startswith("30 files")

    code, _, stderr = run("update", tmp_path / "out", picture_folder)
    assert code == 0
    assert told in stderr


def test_max_pixels_leaves_out_what_is_larger(run, picture_folder, text_files, tmp_path, monkeypatch):
    monkeypatch.setenv("CAE_MAX_PIXELS", "100")  # what the option changes for the time of the test
    Image.new("RGB", (90, 90)).save(picture_folder / "red" / "large.png")
    code, _, stderr = run(
        "cluster", picture_folder, "-k", K, "--out", tmp_path / "out", "--nouns", text_files["nouns"],
        "--captions", text_files["captions"], "--workers", 2, "--no-report", "--max-pixels", 8099,
    )  # fmt: skip
    assert code == 0
    assert "skipped red/large.png: over the limit of 8,099 pixels: it has 8,100; allow more with --max-pixels" in stderr
    assert len(pq.read_table(tmp_path / "out/assignments.parquet")) == 30


def test_texts_build_fills_the_cache(run, text_files):
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"]]
    code, stdout, _ = run("texts", "build", *texts)
    assert code == 0
    assert "nouns:" in stdout
    assert "captions:" in stdout


def test_a_row_of_a_table_is_one_line_where_there_is_no_screen(clustered, run):
    out, *_ = clustered
    name = "a name " * 40
    assert run("edit", out, "rename", "0", name)[0] == 0
    _, stdout, _ = run("edit", out)
    assert len([line for line in stdout.splitlines() if name.strip() in line]) == 2  # in the table and in the edit


def test_a_choice_that_nothing_decided_is_told_as_such(clustered, run, monkeypatch, picture_folder, text_files):
    out, stdout, _ = clustered
    assert "undecided" not in stdout
    monkeypatch.setattr("cae.method.auto.Probe.score", lambda *_: 0.0)
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"], "--workers", 0]
    code, stdout, stderr = run("cluster", picture_folder, "-k", K, "-o", out, "--no-report", *texts)
    assert code == 0, stderr
    assert "how much the texts weigh: undecided, so image alone\n" in stdout
    assert "in percent: image alone 0" in stdout
    assert "does not show this yet" in stderr  # the page of the first run


@pytest.mark.parametrize(
    "command",
    ["", "cluster", "predict", "demo", "edit", "export", "update", "compare", "texts", "texts build"],
)
def test_help_on_every_level(run, command):
    code, stdout, _ = run(*command.split(), "--help")
    assert code == 0
    assert "Usage" in stdout


def test_python_runs_the_package():
    done = subprocess.run([sys.executable, "-m", "cae", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"{version('cae-clustering')}\n"


def test_help_does_not_load_torch():
    assert_not_loaded("from cae import cli", "torch", "lightning")


def test_the_counts_next_to_the_chosen_one_are_told_however_far_they_lie(capfd):
    curve = {"46": 0.8794, "51": 0.8875, "56": 0.8859, "62": 0.8798}
    count = {"chosen": 56, "from": "fused", "curves": {"fused": curve}}
    print_choices(SimpleNamespace(fitted=SimpleNamespace(provenance={"cluster_count": count})))
    assert "56, modularity 0.886, the most of those about as good (with 46: 0.879, 51: 0.887, 62: 0.880)" in " ".join(
        capfd.readouterr().out.split()
    )


def test_the_number_of_clusters_may_be_left_out(run, tmp_path, text_files, tree_folder):
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"]]
    code, stdout, stderr = run("cluster", tmp_path / "colours", "--out", tmp_path / "found", "--workers", 0, *texts)
    assert code == 0, stderr
    assert "number of groups: " in stdout


def test_what_is_loaded_is_told_before_it_is_loaded(run, capfd, monkeypatch, picture_folder, text_files, tmp_path):
    told, texts = [], ["--nouns", text_files["nouns"], "--captions", text_files["captions"], "--workers", 0]

    def load_encoder(*_, **__):
        told.append(capfd.readouterr().err)
        raise ValueError("enough")

    monkeypatch.setattr("cae.models.embedder.load_encoder", load_encoder)
    for quiet in ([], ["--quiet"]):
        run("cluster", picture_folder, "-k", K, "--encoder", "lite", "-o", tmp_path / "out", *texts, *quiet)
    assert told == ["loading PyTorch …\nencoder …\n", ""]


COMMANDS_OF_TORCH = """cluster photos
demo
predict result photos
update result photos
open result
report result
search result boats --json
duplicates result
compare result other
cut result -k 3
edit result
edit result undo
export result --to csv
evaluate --dataset photos
texts build"""
NEVER_QUIET = ("edit", "compare")


def test_pytorch_is_told_of_before_it_is_loaded(tmp_path):
    """Which takes seconds; on the error stream, so that what is printed can be read by programs."""
    program = """if True:
        import sys
        from typer.testing import CliRunner
        from cae.cli.commands import app
        sys.modules["torch"] = None
        for command in sys.argv[1:]:
            done = CliRunner().invoke(app, command.split())
            print(command, ascii(done.stdout), ascii(done.stderr), type(done.exception).__name__, sep=": ")
    """
    for name in ("photos", "result", "other"):
        (tmp_path / name).mkdir()
    said = dict.fromkeys(COMMANDS_OF_TORCH.splitlines(), "loading PyTorch …\n")
    said |= {f"{command} --quiet": "" for command in said if not command.startswith(NEVER_QUIET)}
    done = subprocess.run(
        [sys.executable, "-c", program, *said], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    expected = [f"{command}: '': {line!a}: ModuleNotFoundError" for command, line in said.items()]
    assert done.stdout.splitlines() == expected


def test_a_bar_has_room_for_an_encoders_name_and_shows_it_as_it_is(capsys, monkeypatch):
    """Which may be that of a model that somebody else made."""
    monkeypatch.setattr(terminal.err, "_width", 80)
    with terminal.progress_bars(quiet=False) as reporter:
        reporter("encoder")(0, 1, "open_clip:[/b]\n\x1b[2J")
        reporter("pictures")(123456, 123456)
    *_, encoder, pictures = capsys.readouterr().err.splitlines()
    assert encoder.rstrip().endswith("open_clip:[/b]\\n\\x1b[2J")
    assert "123,456/123,456" in pictures


def test_without_a_terminal_each_piece_of_work_is_told_as_it_begins(capsys):
    with terminal.progress_bars(quiet=False) as reporter:
        report = reporter("nouns")
        assert capsys.readouterr().err == "nouns …\n"
        report(3, 3)
    assert "3/3" in capsys.readouterr().err
    with terminal.progress_bars(quiet=True) as reporter:
        reporter("nouns")
    assert capsys.readouterr().err == ""
