"""What `cae` says of what it cannot do, and of being interrupted: one line, and its exit code."""

import shutil
import signal

import numpy as np
import pytest
import typer

from cae.api import Result
from cae.encoders import EncoderError
from cae.utils.files import hold, holding

K = 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["cluster", "{folder}/nowhere", "-k", "3"], 1, "no such folder"),
        (["cluster", "{empty}", "-k", "3"], 1, "no pictures"),
        (["cluster", "{folder}", "-k", "1"], 2, "at least 2"),
        (["cluster", "{folder}", "-k", "500"], 1, "too few for 500 clusters"),
        (["cut", "{empty}"], 2, "--clusters"),
        (["cut", "{empty}", "-k", "many"], 2, "--clusters"),
        (["cut", "{empty}", "-k", "3"], 1, "no result of `cae cluster`"),
        (
            ["cluster", "{folder}", "-k", "3", "--method", "mca", "--preset", "tac"],
            1,
            "(--preset) is for the method cae",
        ),
        (["cluster", "{folder}", "-k", "3", "--out", "{file}"], 1, "choose another folder with --out"),
        (["cluster", "{folder}", "-k", "3", "--nouns", "{blank}"], 1, "blank.txt"),
        (["cluster", "{folder}", "-k", "3", "--nouns", "no-such-corpus"], 1, "no-such-corpus"),
        (["cluster", "{folder}", "-k", "3", "--device", "abacus"], 1, "try device='cpu' (--device cpu)"),
        (["predict", "{empty}", "{folder}"], 1, "not a model folder"),
        (["report", "{empty}"], 1, "no result of `cae cluster`"),
        (["export", "{empty}", "--to", "csv"], 1, "no result of `cae cluster`"),
        (["export", "{empty}", "--to", "xml"], 2, "'--to': 'xml' is not one of"),
        (["update", "{empty}", "{folder}"], 1, "no result of `cae cluster`"),
        (["compare", "{empty}", "{empty}"], 1, "no result of `cae cluster`"),
        (["edit", "{empty}"], 1, "no result of `cae cluster`"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_bad_input_ends_with_a_message_and_a_code(run, picture_folder, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    places = {
        "folder": picture_folder,
        "empty": tmp_path / "void",
        "file": tmp_path / "file",
        "blank": tmp_path / "blank.txt",
    }
    places["empty"].mkdir()
    places["file"].write_text("x")
    places["blank"].write_text("\n \n")
    found, _, stderr = run(*(argument.format(**places) for argument in arguments))
    assert found == code
    assert message in " ".join(stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["cluster", "nowhere"],
        ["predict", "nowhere", "."],
        ["predict", ".", "nowhere"],
        ["update", ".", "nowhere"],
        *(
            [command, "nowhere", *rest]
            for command, *rest in (
                ["open"],
                ["report"],
                ["cut", "-k", "3"],
                ["edit", "undo"],
                ["search", "boats"],
                ["duplicates"],
                ["compare", "."],
                ["export", "--to", "csv"],
            )
        ),
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_told_before_anything_is_loaded(run, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    code, _, stderr = run(*arguments)
    assert (code, stderr.strip()) == (1, "error: no such folder or file: nowhere")


@pytest.mark.parametrize("name", ["model/model.safetensors", "clusters.json", "assignments.csv", "run.json"])
def test_a_result_takes_the_place_of_no_other_files(run, picture_folder, tmp_path, monkeypatch, name):
    """As of a project that has a model in its folder `model`."""
    monkeypatch.setattr("cae.results.run.run_folder", lambda *_, **__: pytest.fail("work that would be lost"))
    mine = tmp_path / "project" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    code, _, stderr = run("cluster", picture_folder, "-k", K, "--out", tmp_path / "project")
    assert (code, "belongs to no result and would be overwritten" in stderr) == (1, True)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("said", ['{"format_version": 1, "root": "/", "images": 3}', '{"loss": 1}\n{"loss": 2}\n'])
def test_a_file_of_another_program_makes_no_result(run, result_folder, picture_folder, tmp_path, monkeypatch, said):
    out = tmp_path / "project"
    out.mkdir()
    (out / "clusters.json").write_text("mine")
    (out / "run.json").write_text(said)
    code, _, stderr = run("predict", result_folder, picture_folder, "--workers", 0, "--out", out)
    assert code == 0, stderr
    monkeypatch.setattr("cae.results.run.run_folder", lambda *_, **__: pytest.fail("work that would be lost"))
    code, _, stderr = run("cluster", picture_folder, "-k", K, "--out", out)
    files = "run.json, assignments.parquet, assignments.csv, clusters.json"
    assert (code, f"{files} in {out} belong to no result" in stderr) == (1, True)
    assert [(out / name).read_text() for name in ("clusters.json", "run.json")] == ["mine", said]


@pytest.mark.parametrize("command", [["open", "--no-browser"], ["report"], ["edit"], ["search", "--like", "x"]])
def test_a_file_of_another_program_is_not_called_an_old_result(run, tmp_path, command):
    (tmp_path / "run.json").write_text('{"loss": 1}')
    code, _, stderr = run(command[0], tmp_path, *command[1:])
    assert (code, "is no result of `cae cluster`: run.json is of another program" in stderr) == (1, True)


def test_a_result_whose_record_was_emptied_is_made_again_once_its_files_are_removed(
    run, result_folder, picture_folder, text_files
):
    """As a full disk leaves it. What is to be removed is said at once, and nothing more is in the way."""
    Result(result_folder).rename(0, "boats")
    (result_folder / "run.json").write_text("")
    code, _, stderr = run("edit", result_folder)
    assert (code, "run.json is damaged or of another program (it is empty)" in stderr) == (1, True)
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"], "--workers", 0, "--no-report"]
    command = ["cluster", picture_folder, "-k", K, "--out", result_folder, *texts]
    code, _, stderr = run(*command)
    assert (code, "run.json, by which a result is known, is empty" in stderr) == (1, True)
    for name in stderr.partition("remove ")[2].partition(";")[0].split(", "):
        place = result_folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert [path.name for path in result_folder.iterdir() if path.suffix] == ["edits.json"]
    code, stdout, stderr = run(*command)
    assert (code, "boats" in stdout) == (0, True), stderr


@pytest.mark.parametrize("said", ["[", '{"loss": 1}\n{"loss": 2}\n', "[]"])
def test_what_cluster_would_not_write_over_is_no_reason_to_run_it_again(run, picture_folder, tmp_path, said):
    (tmp_path / "run.json").write_text(said)
    code, _, stderr = run("edit", tmp_path)
    assert (code, "is no result of `cae cluster`: run.json is damaged or of another program (" in stderr) == (1, True)
    assert "again" not in stderr
    code, _, stderr = run("cluster", picture_folder, "-k", K, "--out", tmp_path)
    assert (code, "run.json belongs to no result" in stderr) == (1, True)


@pytest.mark.parametrize("command", ["cluster", "predict", "evaluate"])
def test_a_second_run_into_a_folder_is_refused_before_it_computes(
    run, result_folder, picture_folder, tmp_path, monkeypatch, command
):
    for work in ("cae.results.run.run_source", "cae.results.run.predict_source", "cae.evaluation.evaluate"):
        monkeypatch.setattr(work, lambda *_, **__: pytest.fail("work that would be lost"))
    out = tmp_path / "busy"
    out.mkdir()
    before = {"cluster": [], "predict": [result_folder], "evaluate": ["--dataset"]}[command]
    with holding(out / ".making"):
        code, _, stderr = run(command, *before, picture_folder, "--out", out)
    assert (code, "another run of `cae` is at work on" in stderr, "--out" in stderr) == (1, True, True)


def test_a_folder_is_held_while_a_fit_computes_and_not_longer(run, picture_folder, text_files, tmp_path, monkeypatch):
    from cae.results import run as module

    out, whole, busy = tmp_path / "result", module.run_source, []

    def run_source(*arguments, **options):
        with pytest.raises(TimeoutError):
            hold(out / ".making", 0)
        busy.append(True)
        return whole(*arguments, **options)

    monkeypatch.setattr(module, "run_source", run_source)
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"]]
    code, _, stderr = run("cluster", picture_folder, "-k", K, "--out", out, "--workers", 0, "--no-report", *texts)
    assert (code, busy) == (0, [True]), stderr
    hold(out / ".making", 0).release()


@pytest.mark.parametrize("record", ["whole", "emptied"])
def test_predictions_do_not_take_the_place_of_a_results_assignments(run, result_folder, picture_folder, record):
    before = (result_folder / "assignments.parquet").read_bytes()
    if record == "emptied":  # as a full disk leaves it
        (result_folder / "run.json").write_text("")
    code, _, stderr = run("predict", result_folder, picture_folder / "red", "--workers", 0, "--out", result_folder)
    assert (code, "holds a result, whose assignments would be overwritten" in stderr) == (1, True)
    assert (result_folder / "assignments.parquet").read_bytes() == before


def test_a_corpus_that_is_not_there_is_one_clear_line_before_an_encoder_is_loaded(
    run, monkeypatch, picture_folder, tmp_path
):
    monkeypatch.setattr("cae.models.embedder.load_encoder", lambda *_, **__: pytest.fail("downloaded for nothing"))
    code, _, stderr = run("cluster", picture_folder, "-k", K, "-o", tmp_path / "out", "--nouns", "nowhere.txt", "-q")
    assert (code, stderr.count("\n")) == (1, 1)
    assert "no noun corpus 'nowhere.txt' and no such file" in stderr


def test_an_unreachable_hub_is_one_clear_line(run, monkeypatch, picture_folder, tmp_path):
    def unreachable(*_, **__):
        raise EncoderError("weights cannot be downloaded; use --encoder lite or --encoder-weights FILE")

    monkeypatch.setattr("cae.models.embedder.load_encoder", unreachable)
    code, _, stderr = run("cluster", picture_folder, "-k", K, "--out", tmp_path / "out")
    assert code == 1
    *before, error = stderr.splitlines()
    assert before[:2] == ["loading PyTorch …", "encoder …"]
    assert [line.startswith("error:") for line in (*before, error)] == [False] * len(before) + [True]
    assert "--encoder lite" in error


@pytest.mark.parametrize(
    ("number", "word", "status"),
    [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)],
    ids=["Ctrl-C", "terminated"],
)
@pytest.mark.parametrize("where", ["encode_texts", "encode_images"])
def test_interruption_says_so_and_has_its_exit_code(
    run, monkeypatch, signal_handlers, fake_encoder, picture_folder, text_files, tmp_path, where, number, word, status
):
    before = signal.getsignal(number)

    def interrupted(*_):
        signal.raise_signal(number)

    monkeypatch.setattr(fake_encoder, where, interrupted)
    code, _, stderr = run(
        "cluster", picture_folder, "-k", K, "--out", tmp_path / "out", "--nouns", text_files["nouns"],
        "--captions", text_files["captions"], "--workers", 0,
    )  # fmt: skip
    assert code == status
    assert stderr.endswith(f"{word}; what is embedded so far is kept: run the command again to go on\n")
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    "command",
    [
        ["cluster", "{vectors}", "-k", "3", "--nouns", "{nouns}", "--out", "{out}"],
        ["predict", "{result}", "{vectors}", "--out", "{out}"],
        ["evaluate", "--dataset", "{vectors}", "--methods", "kmeans", "--out", "{out}"],
    ],
    ids=lambda command: command[0],
)
def test_interruption_promises_nothing_where_vectors_are_read(
    run, monkeypatch, fake_encoder, result_folder, text_files, tmp_path, command
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    np.save(tmp_path / "vectors.npy", np.eye(30, fake_encoder.dim, dtype=np.float32))
    np.save(tmp_path / "vectors.labels.npy", np.arange(30) % K)
    for work in ("cae.results.run.run_embeddings", "cae.evaluation.study.run_method"):
        monkeypatch.setattr(work, interrupted)
    places = {"vectors": tmp_path / "vectors.npy", "out": tmp_path / "out", "result": result_folder, **text_files}
    code, _, stderr = run(*(argument.format(**places) for argument in command))
    assert code == 130
    assert stderr.endswith("interrupted; no file is left half-written: run the command again\n")


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (
            ["edit", "{out}", "rename", "0", "x"],
            "the result is as it was, or changed as asked: `cae edit RESULT` shows",
        ),
        (["cut", "{out}", "-k", "2"], "the result is as it was, or changed as asked"),
        (["export", "{out}", "--to", "csv"], "what is exported so far is whole and stays: run the command again"),
        (["open", "{out}"], "every edit is kept: run the command again"),
        (["report", "{out}"], "no file is left half-written: run the command again"),
        (["search", "{out}", "red"], "no file is left half-written: run the command again"),
    ],
)
def test_what_interruption_leaves_is_told_of_each_command(run, monkeypatch, result_folder, arguments, left):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cae.results.saved.SavedResult.load", interrupted)
    code, _, stderr = run(*(argument.format(out=result_folder) for argument in arguments))
    assert code == 130
    assert stderr.removeprefix("loading PyTorch …\n").startswith(f"interrupted; {left}")
    assert "embedded" not in stderr


def test_every_command_that_is_told_of_exists():
    from cae.cli.commands import INTERRUPTED, app

    assert set(INTERRUPTED) <= set(typer.main.get_command(app).commands)
