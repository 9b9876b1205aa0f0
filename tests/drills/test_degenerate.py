"""Degenerate data under every preset: embeddings, folders of pictures, and files of texts."""

import collections
import itertools
import traceback
from pathlib import Path

import pytest
from test_degenerate import CASES, FOLDERS, PRESETS, folder_outcome, outcome

from drills.record import record

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]


def test_embeddings(caplog):
    cases, counts, lost = list(itertools.product(CASES, PRESETS, ("own", "auto"))), collections.Counter(), {}
    for case in cases:
        try:
            counts[outcome(*case, caplog)] += 1
        except Exception:
            lost[case] = traceback.format_exc()[-900:]
    record(
        "degenerate-embeddings",
        tried=len(cases),
        lost=len(lost),
        note=f"{len(CASES)} kinds, each preset, K given and auto: {counts['clustered']} clustered, "
        f"{counts['told']} told of empty clusters, {counts['refused']} refused",
    )
    assert lost == {}


def test_folders(run, tmp_path, text_files, caplog):
    files = {"many": Path(text_files["nouns"]).read_text(), "one": "a thing\n", "none": "\n"}
    paths = {}
    for name, content in files.items():
        paths[name] = tmp_path / f"{name}.txt"
        paths[name].write_text(content)
    cases = list(itertools.product(FOLDERS, ("2", "6", "auto"), PRESETS, files, files))
    counts, lost = collections.Counter(), {}
    for kind, k, preset, nouns, captions in cases:
        options = ("-k", k, "--preset", preset, "--nouns", paths[nouns], "--captions", paths[captions])
        try:
            code, said = folder_outcome(run, tmp_path, caplog, kind, *options)
            assert said
            counts[code] += 1
        except Exception:
            lost[kind, k, preset, nouns, captions] = traceback.format_exc()[-900:]
    record(
        "degenerate-folders",
        tried=len(cases),
        lost=len(lost),
        note=f"`cae cluster` with report, each preset, many, one or no nouns and captions: {counts[0]} results, "
        f"{counts[1]} errors with a message",
    )
    assert lost == {}
