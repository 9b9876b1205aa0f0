"""The server of `cae open` as programs meet it, and the command."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import suppress

import pytest
from app_client import Client, exported
from conftest import run_cae
from starlette.responses import PlainTextResponse

from cae import Result
from cae.app import OpenResult, serving
from cae.app.guard import Guard
from cae.results.edits_file import load_history
from cae.results.export import tree
from cae.results.saved import SavedResult
from cae.utils.files import holding


def test_the_printed_address_lets_a_browser_in(client):
    status, headers, body = client.get(f"/?token={client.token}", Cookie=None, Origin=None)
    assert (status, headers["Refresh"]) == (200, "0; url=/")
    assert b"cae report" not in body
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert {each.lower() for each in attributes} >= {"httponly", "samesite=strict"}
    status, headers, body = client.get("/", Cookie=cookie, Origin=None)
    assert status == 200
    assert b"cae report" in body
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "server" not in headers


def test_the_page_knows_that_it_is_served_and_on_disk_that_it_is_not(client, result_folder):
    script = client.get("/report_files/state.js")[2].decode("ascii")
    assert json.loads(script.removeprefix("const STATE = ").removesuffix(";\n")) == client.state()
    assert (result_folder / "report/report_files/state.js").read_text() == "const STATE = null;\n"


def test_pictures_are_served_as_pictures(client, result_folder, picture_folder):
    paths = SavedResult.load(result_folder).assignments["path"].to_pylist()
    status, headers, body = client.get("/pictures/3")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert body == (picture_folder / paths[3]).read_bytes()
    (picture_folder / paths[3]).unlink()
    assert client.get("/pictures/3")[0] == 404


def test_edits_are_made_undone_and_made_again(client, result_folder):
    _, state = client.edit("rename", group=0, name="boats")
    assert "boats" in [group["name"] for group in state["groups"]]
    assert (state["undo"].endswith("to boats"), state["redo"]) == (True, None)
    _, state = client.edit("pin", group=0)
    assert next(group["pinned"] for group in state["groups"] if group["id"] == 0) == state["groups"][0]["size"]
    _, state = client.edit("move", pictures=[0, 1, 2], group=2)
    _, state = client.edit("merge", groups=[0, 2], name="both")
    assert len(state["groups"]) == 2
    _, preview = client.post("/api/split", {"group": 1, "into": 2})
    _, state = client.edit("split", group=1, into=2)
    assert sorted(part["size"] for part in preview["parts"]) == sorted(
        group["size"] for group in state["groups"] if group["name"] in [part["name"] for part in preview["parts"]]
    )
    for _ in range(5):
        status, state = client.edit("undo")
        assert status == 200
    assert state["undo"] is None
    status, answer = client.edit("undo")
    assert (status, "nothing to take back" in answer["error"]) == (422, True)
    _, state = client.edit("redo")
    assert state["undo"].endswith("to boats")
    assert len(load_history(result_folder).undone) == 4


def test_an_edit_on_an_old_revision_is_refused(client, result_folder):
    old = client.state()["revision"]
    client.edit("rename", group=0, name="boats")
    status, answer = client.post("/api/edits", {"edit": "rename", "revision": old, "group": 1, "name": "ships"})
    assert status == 409
    assert "changed since" in answer["error"]
    assert len(load_history(result_folder).edits) == 1


def test_a_change_does_not_wait_for_an_update_that_takes_hours(client, result_folder, monkeypatch):
    monkeypatch.setattr("cae.results.editor._PATIENCE", 0.1)
    with holding(result_folder / ".lock"):
        status, answer = client.edit("rename", group=0, name="boats")
        assert (status, "such as `cae update`, is at work in" in answer["error"]) == (422, True)
        assert "boats" not in [group["name"] for group in client.state()["groups"]]
    assert client.edit("rename", group=0, name="boats")[0] == 200


def test_a_look_does_not_wait_for_an_update_that_takes_hours(client, result_folder, monkeypatch):
    monkeypatch.setattr("cae.results.editor._PATIENCE", 0.1)
    Result(result_folder).rename(0, "boats")  # so that the page has to be read anew
    with holding(result_folder / ".lock"):
        status, _, answer = client.get("/api/state")
        assert (status, b"such as `cae update`, is at work in" in answer) == (422, True)
    assert "boats" in [group["name"] for group in client.state()["groups"]]


def test_pictures_are_found_by_text_and_by_likeness(client):
    status, found = client.post("/api/search", {"text": "red car on snow"})
    assert (status, len(found["pictures"])) == (200, 30)
    assert found["similarity"] == sorted(found["similarity"], reverse=True)
    status, found = client.post("/api/search", {"like": 4})
    assert (status, 4 in found["pictures"], len(found["pictures"])) == (200, False, 29)


def test_without_an_encoder_the_search_says_what_to_do(client, monkeypatch):
    from cae.encoders.base import EncoderError

    def fail(*_, **__):
        raise EncoderError("no hub can be reached")

    monkeypatch.setattr("cae.encoders.deferred.load_encoder", fail)
    status, answer = client.post("/api/search", {"text": "red car on snow"})
    assert (status, "no hub can be reached" in answer["error"]) == (422, True)
    assert client.post("/api/search", {"like": 4})[0] == 200


def test_a_folder_whose_name_is_no_utf_8_takes_exports(client, tmp_path):
    client.opened.exports = tmp_path / os.fsdecode(b"caf\xe9")
    assert client.post("/api/exports", exported())[1]["folder"] == f"{tmp_path}/caf\ufffd/all"
    client.opened.exports.joinpath("all/.cae-export.json").write_text("{")
    status, answer = client.post("/api/exports", exported())
    assert (status, "is damaged" in answer["error"]) == (422, True)
    assert client.state()["exports"] == f"{tmp_path}/caf\ufffd"


def test_duplicates_are_found_listed_and_left_out_of_an_export(client, tmp_path):
    status, found = client.post("/api/duplicates", {})
    assert (status, found["pictures"], found["missing"]) == (200, 30, 0)
    _, answer = client.post("/api/duplicates/list", {})
    assert answer["file"] == str(tmp_path / "exports/duplicates.csv")
    (tmp_path / "exports/duplicates.csv").write_text("mine, with notes")
    assert client.post("/api/duplicates/list", {})[1]["file"] == str(tmp_path / "exports/duplicates (2).csv")
    assert (tmp_path / "exports/duplicates.csv").read_text() == "mine, with notes"
    worse = sum(len(group["copies"]) - 1 for group in found["groups"])
    status, done = client.post("/api/exports", exported(name="without", to="hf", without_duplicates=True))
    assert (status, done["written"]) == (200, 30 - worse + 1)


def test_all_or_a_selection_is_exported_below_the_folder_for_it(client, tmp_path):
    status, done = client.post("/api/exports", exported())
    assert (status, done["written"], done["folder"]) == (200, 30, str(tmp_path / "exports/all"))
    status, done = client.post("/api/exports", exported(name="../../up", pictures=[1, 2, 3], by="symlink"))
    assert (status, done["written"]) == (200, 3)
    made = {path.name for path in (tmp_path / "exports").iterdir()}
    assert made == {"all", done["folder"].rpartition("/")[2]}
    assert client.post("/api/exports", exported(pictures=[]))[0] == 422


def test_exports_of_two_tabs_into_one_folder_come_one_after_the_other(opened, monkeypatch, tmp_path):
    """The first waits, once its files are there, until the second is through, if it may."""
    bring, first_has_begun, second_is_through = tree._bring, threading.Event(), threading.Event()

    def bring_first_slowly(content, place, *rest):
        bring(content, place, *rest)
        if threading.current_thread() is first:
            first_has_begun.set()
            second_is_through.wait(timeout=0.2)

    monkeypatch.setattr(tree, "_bring", bring_first_slowly)
    first = threading.Thread(target=opened.export, args=([0, 1], "folders", "chosen"))
    first.start()
    first_has_begun.wait()
    opened.export([2, 3], "folders", "chosen")
    second_is_through.set()
    first.join()
    assert opened.export([4], "folders", "chosen")[1].written == 1
    assert len(list((tmp_path / "exports/chosen").rglob("*.png"))) == 1


def test_where_an_export_cannot_go_the_page_says_what_can_be_done_there(client, picture_folder, tmp_path):
    client.post("/api/exports", exported(name="all", to="csv"))
    (tmp_path / "exports/old").mkdir()
    (tmp_path / "exports/old/clusters.csv").touch()
    asked = [exported(name="all", to="json"), exported(name="old", to="csv")]
    answers = [client.post("/api/exports", fields) for fields in asked]
    client.opened.exports = picture_folder
    answers.append(client.post("/api/exports", exported()))
    client.opened.exports = tmp_path / "exports/all/clusters.csv"
    answers.append(client.post("/api/exports", exported()))
    remedy = "; give another name, or another folder with `cae open --exports`"
    assert [(status, answer["error"].endswith(remedy)) for status, answer in answers] == [(422, True)] * 4
    assert not any("--out" in answer["error"] for _, answer in answers)


def test_a_selection_is_exported_inside_its_coarse_groups(tree_folder, tmp_path):
    opened = OpenResult(tree_folder, tmp_path / "exports")
    place, done = opened.export([0, 1, 2, 40], "folders", "some", nested=True)
    assert done.written == 4
    assert len(list(place.rglob("*.png"))) == 4
    assert opened.export([0, 1, 2, 40], "coco", "some coco")[1].written == 1


def test_the_page_on_disk_shows_the_edits_once_the_server_has_ended(client, result_folder):
    client.edit("rename", group=0, name="boats")
    page = result_folder / "report/index.html"
    assert "boats" not in page.read_text()
    client.opened.page(with_edits=True)  # as `serve` does at its end
    assert "boats" in page.read_text()


def test_edits_are_drawn_even_if_the_block_that_serves_fails(opened, result_folder):
    with pytest.raises(KeyboardInterrupt), serving(opened, progress=False) as address:
        Client(address, opened).edit("rename", group=0, name="boats")
        raise KeyboardInterrupt  # as in a notebook, to end a cell that waits
    assert "boats" in (result_folder / "report/index.html").read_text()


def test_a_port_can_be_had_again_right_after_the_server_has_ended(opened):
    with socket.socket() as browser:
        with serving(opened, progress=False) as address:
            port = Client(address, opened).port
            browser.connect(("127.0.0.1", port))
            browser.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert browser.recv(9999)
        while browser.recv(9999):  # until the server hangs up, which is the side that has to remember the connection
            pass
    with serving(opened, port=port, progress=False) as address:
        assert Client(address, opened).get("/api/state")[0] == 200


def test_on_the_port_of_http_browsers_leave_it_out_of_the_address():
    guard = Guard(PlainTextResponse("let in"), token="secret", port=80)

    def status(host):
        headers = [(b"host", host), (b"origin", b"http://" + host), (b"cookie", b"cae-80=secret")]
        scope = {"type": "http", "method": "POST", "path": "/api/edits", "query_string": b"", "headers": headers}
        sent = []

        async def send(message):
            sent.append(message)

        asyncio.run(guard({**scope, "server": ("127.0.0.1", 80), "scheme": "http"}, None, send))
        return sent[0]["status"]

    hosts = (b"127.0.0.1", b"127.0.0.1:80", b"localhost", b"example.org", b"127.0.0.1:8080")
    assert [status(host) for host in hosts] == [200, 200, 200, 403, 403]


# ---- the command ----


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminated"])
def test_the_command_says_where_and_ends_with_the_page_drawn(result_folder, number):
    command = [sys.executable, "-m", "cae", "open", result_folder, "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = process.stdout.readline().strip()
    client = Client(address, None)
    assert client.edit("rename", group=0, name="boats")[0] == 200
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, "")
    assert "Ctrl-C ends it" in stderr
    assert "Traceback" not in stderr
    assert "boats" in (result_folder / "report/index.html").read_text()


def test_the_command_opens_the_browser(result_folder, monkeypatch, capfd):
    opened = []

    def browse(address):
        with suppress(OSError), urllib.request.urlopen(address, timeout=9) as answer:  # as a browser in a terminal
            opened.append((address, answer.status))
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C

    monkeypatch.setattr("webbrowser.open", browse)
    code, stdout, _ = run_cae(monkeypatch, capfd, "open", result_folder, "--quiet")
    assert (code, opened) == (0, [(stdout.strip(), 200)])


def test_without_the_extra_the_command_says_what_to_install(result_folder, monkeypatch, capfd):
    for name in [name for name in sys.modules if name.startswith("cae.app")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, stderr = run_cae(monkeypatch, capfd, "open", result_folder)
    assert code == 1
    assert "pip install 'cae-clustering[app]'" in stderr


def test_the_command_refuses_what_it_cannot_open(result_folder, tmp_path, monkeypatch, capfd):
    code, _, stderr = run_cae(monkeypatch, capfd, "open", tmp_path / "nothing")
    assert (code, "no such folder" in stderr) == (1, True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        code, _, stderr = run_cae(monkeypatch, capfd, "open", result_folder, "--port", taken.getsockname()[1])
    assert (code, "give another with --port" in stderr) == (1, True)
