"""The server of `cae open` as programs meet it: what it answers, and what it refuses."""

import http.client
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import FakeEncoder, run_cae

from cae.app import OpenResult, serving
from cae.results.edits_file import load_history
from cae.results.saved import SavedResult

NASTY = "<script>alert(1)</script>\"'&amp;"


class Client:
    """Speaks to a server as the page does, unless told otherwise."""

    def __init__(self, address, opened):
        self.opened = opened
        self.port = int(address.split(":")[2].partition("/")[0])
        self.token = address.partition("token=")[2]
        self.own = f"http://127.0.0.1:{self.port}"
        self.headers = {"Origin": self.own, "Cookie": f"cae-{self.port}={self.token}"}

    def ask(self, method, path, body=None, **headers):
        """Returns (status, headers, body); header names in underscores, None leaves one out."""
        headers = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if body is not None and "Content-Type" not in headers:
            headers["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host="Host" in headers)
        body = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if body is not None:
            headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.headers, content

    def get(self, path, **headers):
        return self.ask("GET", path, **headers)

    def post(self, path, body):
        status, _, content = self.ask("POST", path, body)
        return status, json.loads(content)

    def state(self):
        return json.loads(self.get("/api/state")[2])

    def edit(self, edit, **fields):
        return self.post("/api/edits", {"edit": edit, "revision": self.state()["revision"], **fields})


@pytest.fixture
def client(result_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("cae.encoders.load_encoder", lambda *_, **__: FakeEncoder())
    opened = OpenResult(result_folder, tmp_path / "exports")
    with serving(opened, progress=False) as address:
        yield Client(address, opened)


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

    monkeypatch.setattr("cae.encoders.load_encoder", fail)
    status, answer = client.post("/api/search", {"text": "red car on snow"})
    assert (status, "no hub can be reached" in answer["error"]) == (422, True)
    assert client.post("/api/search", {"like": 4})[0] == 200


def test_duplicates_are_found_listed_and_left_out_of_an_export(client, tmp_path):
    status, found = client.post("/api/duplicates", {})
    assert (status, found["pictures"], found["missing"]) == (200, 30, 0)
    _, answer = client.post("/api/duplicates/list", {})
    assert answer["file"] == str(tmp_path / "exports/duplicates.csv")
    assert (tmp_path / "exports/duplicates.csv").is_file()
    worse = sum(len(group["copies"]) - 1 for group in found["groups"])
    status, done = client.post("/api/exports", exported(name="without", to="hf", without_duplicates=True))
    assert (status, done["written"]) == (200, 30 - worse + 1)


def exported(**fields):
    return {"to": "folders", "name": "all", "by": "copy", "nested": False, "without_duplicates": False, **fields}


def test_all_or_a_selection_is_exported_below_the_folder_for_it(client, tmp_path):
    status, done = client.post("/api/exports", exported())
    assert (status, done["written"], done["folder"]) == (200, 30, str(tmp_path / "exports/all"))
    status, done = client.post("/api/exports", exported(name="../../up", pictures=[1, 2, 3], by="symlink"))
    assert (status, done["written"]) == (200, 3)
    made = {path.name for path in (tmp_path / "exports").iterdir()}
    assert made == {"all", done["folder"].rpartition("/")[2]}
    assert client.post("/api/exports", exported(pictures=[]))[0] == 422


# ---- hostile requests ----


def other(client):
    return f"http://127.0.0.1:{client.port + 1}"


REFUSED = {
    "wrong host": lambda c: {"Host": "example.org"},
    "a name that was made to lead here": lambda c: {"Host": f"example.org:{c.port}"},
    "right host, wrong port": lambda c: {"Host": f"127.0.0.1:{c.port + 1}"},
    "no host": lambda c: {"Host": None},
    "wrong origin": lambda c: {"Origin": "http://example.org"},
    "no page's origin": lambda c: {"Origin": "null"},
    "another port's origin": lambda c: {"Origin": other(c)},
    "the other name's origin": lambda c: {"Origin": f"http://localhost:{c.port}"},
    "asked by another port of this host": lambda c: {"Sec_Fetch_Site": "same-site"},
    "asked by another site": lambda c: {"Sec_Fetch_Site": "cross-site"},
    "no token": lambda c: {"Cookie": None},
    "wrong token": lambda c: {"Cookie": f"cae-{c.port}=nonsense"},
    "a token that is not ASCII": lambda c: {"Cookie": f"cae-{c.port}=\xff\xfe"},
    "another port's token": lambda c: {"Cookie": f"cae-{c.port + 1}={c.token}"},
    "token in the address alone": lambda c: {"Cookie": None, "X_Token": c.token},
}


def test_who_may_not_ask_gets_nothing(client, result_folder):
    body = {"edit": "rename", "revision": client.state()["revision"], "group": 0, "name": "boats"}
    paths = ["/api/state", "/pictures/3", "/report_files/data.js", "/report_files/state.js"]
    paths.append(f"/api/state?token={client.token}")
    answers = {
        (name, path): client.get(path, **headers(client))
        if path != "/api/edits"
        else client.ask("POST", path, body, **headers(client))
        for name, headers in REFUSED.items()
        for path in [*paths, "/api/edits"]
    }
    assert {
        key for key, (status, _, content) in answers.items() if status not in (400, 403) or len(content) > 99
    } == set()
    assert not (result_folder / "edits.json").exists()


def test_a_change_without_an_origin_is_refused(client):
    assert client.ask("POST", "/api/edits", {}, Origin=None)[0] == 403
    assert client.get("/api/state", Origin=None)[0] == 200  # as browsers ask, for their own page


def test_other_methods_change_nothing(client):
    methods = ("PUT", "DELETE", "PATCH", "OPTIONS", "GET")
    assert [client.ask(method, "/api/edits")[0] for method in methods] == [405] * 5


PATHS = [
    "/../../run.json",
    "/report_files/../../run.json",
    "/report_files/%2e%2e/%2e%2e/run.json",
    "/report_files/..%2f..%2frun.json",
    "/report_files//etc/passwd",
    "/report_files/%2fetc%2fpasswd",
    "/report_files/thumbnails",
    "/report_files/",
    "/report_files/%00",
    "/report_files/" + "a" * 5000,
    "/pictures/../run.json",
    "/pictures/%2e%2e%2frun.json",
    "/pictures/-1",
    "/pictures/30",
    "/pictures/1e1",
    "/pictures/" + "9" * 9000,
    "/pictures/" + quote("٣"),
    "/pictures/0%00",
    "/edits.json",
    "/api",
    "/api/",
]


def test_no_path_leads_out(client):
    answers = {path: client.get(path) for path in PATHS}
    assert {
        path for path, (status, _, content) in answers.items() if status not in (404, 405) or len(content) > 99
    } == set()


def test_a_link_in_the_pages_folder_leads_nowhere(client, result_folder, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (result_folder / "report/report_files/link.txt").symlink_to(tmp_path / "secret.txt")
    assert client.get("/report_files/link.txt")[0] == 404


BODIES = {
    "nothing": (b"", 400),
    "half": (b'{"edit": ', 400),
    "no object": (b"[]", 400),
    "a number": (b"1", 400),
    "no UTF-8": (b'{"edit": "\xff"}', 400),
    "very deep": (b"[" * 200_000, 400),
    "many digits": (b'{"edit": ' + b"9" * 10_000 + b"}", 400),
    "huge": (b" " * 9_000_000, 413),
}


def test_what_is_no_request_is_refused(client, result_folder):
    found = {name: client.ask("POST", "/api/edits", body)[0] for name, (body, _) in BODIES.items()}
    assert found == {name: status for name, (_, status) in BODIES.items()}
    assert not (result_folder / "edits.json").exists()


def test_a_form_of_another_page_is_no_request(client):
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data", ""):
        assert client.ask("POST", "/api/edits", b"{}", Content_Type=kind)[0] == 415


FIELDS = [
    ("edits", {"edit": "explode"}, 400),
    ("edits", {"edit": ["rename"]}, 400),
    ("edits", {"edit": "rename", "group": 0}, 400),
    ("edits", {"edit": "rename", "group": "0", "name": "x"}, 400),
    ("edits", {"edit": "rename", "group": True, "name": "x"}, 400),
    ("edits", {"edit": "rename", "group": 1.5, "name": "x"}, 400),
    ("edits", {"edit": "rename", "group": -1, "name": "x"}, 400),
    ("edits", {"edit": "rename", "group": 10**30, "name": "x"}, 400),
    ("edits", {"edit": "rename", "group": float("nan"), "name": "x"}, 400),
    ("edits", {"edit": "rename", "group": 99, "name": "x"}, 422),
    ("edits", {"edit": "rename", "group": 0, "name": {"a": 1}}, 400),
    ("edits", {"edit": "rename", "group": 0, "name": "x" * 1001}, 400),
    ("edits", {"edit": "rename", "group": 0, "name": "\ud800"}, 400),
    ("edits", {"edit": "rename", "group": 0, "name": "two\nlines"}, 400),
    ("edits", {"edit": "rename", "group": 0, "name": "  "}, 422),
    ("edits", {"edit": "merge", "groups": [0]}, 422),
    ("edits", {"edit": "merge", "groups": [0, None]}, 400),
    ("edits", {"edit": "merge", "groups": "01"}, 400),
    ("edits", {"edit": "merge", "groups": [0, 77]}, 422),
    ("edits", {"edit": "move", "pictures": [30], "group": 0}, 422),
    ("edits", {"edit": "move", "pictures": [[0]], "group": 0}, 400),
    ("edits", {"edit": "move", "pictures": {}, "group": 0}, 400),
    ("edits", {"edit": "pin"}, 400),
    ("edits", {"edit": "pin", "pictures": []}, 422),
    ("edits", {"edit": "split", "group": 0, "into": 1}, 400),
    ("edits", {"edit": "split", "group": 0, "into": 10**9}, 400),
    ("edits", {"edit": "split", "group": 0, "into": 50}, 422),
    ("split", {"group": 0}, 400),
    ("split", {"group": 55, "into": 2}, 422),
    ("search", {}, 400),
    ("search", {"text": 3}, 400),
    ("search", {"text": " "}, 422),
    ("search", {"like": 30}, 422),
    ("exports", {}, 400),
    ("exports", exported(to="../folders"), 400),
    ("exports", exported(by="move"), 400),
    ("exports", exported(nested="yes"), 400),
    ("exports", exported(name=None), 400),
    ("exports", exported(pictures=[10**9]), 422),
]  # fmt: skip


def test_fields_that_are_not_what_they_should_be_are_told(client, result_folder):
    wrong = []
    for path, body, status in FIELDS:
        body = {"revision": client.state()["revision"], **body}
        answer = client.post(f"/api/{path}", body)
        if answer[0] != status or set(answer[1]) != {"error"}:
            wrong.append((path, body, answer))
    assert wrong == []
    assert not (result_folder / "edits.json").exists()


def test_names_are_data_wherever_they_go(client):
    _, state = client.edit("rename", group=0, name=NASTY)
    assert NASTY in [group["name"] for group in state["groups"]]
    status, headers, _ = client.get("/api/state")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert client.get("/report_files/state.js")[1]["Content-Type"].startswith("text/javascript")
    status, done = client.post("/api/exports", exported(name=NASTY))
    assert status == 200
    assert not set('<>"/') & set(done["folder"].rpartition("/")[2])


def test_it_listens_on_the_loopback_alone(client):
    tables = [table for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if table.exists()]
    lines = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    listening = [place for _, place, _, state, *_ in lines if state == "0A" and place.endswith(f":{client.port:04X}")]
    assert listening == [f"0100007F:{client.port:04X}"]


def test_the_page_on_disk_shows_the_edits_once_the_server_has_ended(client, result_folder):
    client.edit("rename", group=0, name="boats")
    page = result_folder / "report/index.html"
    assert "boats" not in page.read_text()
    client.opened.page(with_edits=True)  # as `serve` does at its end
    assert "boats" in page.read_text()


# ---- the command ----


def test_the_command_says_where_and_ends_with_ctrl_c(result_folder):
    command = [sys.executable, "-m", "cae", "open", result_folder, "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = process.stdout.readline().strip()
    client = Client(address, None)
    assert client.edit("rename", group=0, name="boats")[0] == 200
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, "")
    assert "Ctrl-C ends it" in stderr
    assert "Traceback" not in stderr
    assert "boats" in (result_folder / "report/index.html").read_text()


def test_the_command_opens_the_browser(result_folder, monkeypatch, capfd):
    opened = []

    def browse(address):
        opened.append(address)
        raise KeyboardInterrupt  # as Ctrl-C

    monkeypatch.setattr("webbrowser.open", browse)
    code, stdout, _ = run_cae(monkeypatch, capfd, "open", result_folder, "--quiet")
    assert (code, opened) == (0, [stdout.strip()])


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
