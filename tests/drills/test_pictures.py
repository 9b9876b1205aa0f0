"""Damaged pictures by the ten thousand: read one by one, and as folders through a whole clustering."""

import collections
import logging

import pytest
import torch
from conftest import FakeEncoder
from mutations import mutated, verdicts
from PIL import Image

from cae.models.cae import CAE
from cae.results.run import run_folder
from drills.record import record

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]

CASES = 43_000
FOLDERS, PER_FOLDER = 20, 60


def test_damaged_pictures_are_read_or_refused():
    found = verdicts(0, CASES)
    counts = collections.Counter(said.split(":")[0] for said in found.values())
    lost = {number: (mutated(number)[0], said) for number, said in found.items() if said.startswith("lost")}
    record(
        "pictures",
        tried=len(found),
        lost=len(lost),
        note=f"damaged files in {len({mutated(i)[0] for i in range(200)})} kinds of Pillow's formats, Pillow "
        f"{Image.__version__}: {counts['picture']:,} read, {counts['refused']:,} refused with a reason",
    )
    assert lost == {}
    assert len(found) == CASES


def test_folders_of_damaged_pictures_are_clustered(tmp_path, picture_folder, text_files):
    logging.getLogger("cae").setLevel(logging.ERROR)  # a collapse of the fusion, which such folders bring about
    lost, skipped = {}, 0
    for folder in range(FOLDERS):
        root = tmp_path / f"damaged-{folder}"
        root.mkdir()
        for path in picture_folder.rglob("*.png"):
            (root / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
        for number in range(folder * PER_FOLDER, (folder + 1) * PER_FOLDER):
            (root / f"{number}.jpg").write_bytes(mutated(10**6 + number)[1])
        module = CAE(3, encoder=FakeEncoder(), return_embeddings=True, **text_files)
        result = run_folder(
            module, root, device=torch.device("cpu"), batch_size=16, workers=0, reporter=lambda _: lambda *_: None
        )
        seen = {path.name for path in result.paths} | {path.name for path in result.skipped}
        if seen != {path.name for path in root.iterdir()} or not result.embeddings.isfinite().all():
            lost[folder] = len(seen)
        skipped += len(result.skipped)
    tried = FOLDERS * PER_FOLDER
    record(
        "picture-folders",
        tried=tried,
        lost=PER_FOLDER * len(lost),
        note=f"damaged files among whole ones, clustered in {FOLDERS} folders: each assigned or named as skipped "
        f"({skipped:,})",
    )
    assert lost == {}
