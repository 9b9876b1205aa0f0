"""What a written report holds, for the tests of it."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np

NASTY = "<script>alert(1)</script>\"'&amp;<img src=x onerror=alert(1)>"


def silent(_what):
    return lambda *_: None


def page_data(report):
    """DATA of a written report, its columns unpacked."""
    script = (report / "report_files/data.js").read_text(encoding="ascii")
    data = json.loads(re.fullmatch(r"const DATA = (.*);\n", script)[1])
    for name, column in data["columns"].items():
        if isinstance(column, dict):
            data["columns"][name] = np.frombuffer(base64.b64decode(column["base64"]), column["type"])
    return data


class Elements(HTMLParser):
    """Names of all elements, and of attributes that run scripts."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.handlers = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
