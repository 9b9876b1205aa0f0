"""A program that speaks to the server of `cae open` as its page does, unless told otherwise."""

import http.client
import json


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
        parts = []
        connection.send = parts.append  # in one piece: a server that refuses the head closes, and a later body resets
        connection.endheaders(body)
        del connection.send
        connection.send(b"".join(parts))
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


def exported(**fields):
    """What the page asks for to export everything, but for some fields."""
    return {"to": "folders", "name": "all", "by": "copy", "nested": False, "without_duplicates": False, **fields}
