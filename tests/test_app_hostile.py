"""Requests that nobody should answer: from elsewhere, without the token, for other files, of other shapes."""

from pathlib import Path
from urllib.parse import quote

from app_client import exported

NASTY = "<script>alert(1)</script>\"'&amp;"


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
        path for path, (status, _, content) in answers.items() if status not in (404, 405, 422) or len(content) > 99
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
