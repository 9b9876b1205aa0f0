"""What a user installs: every module once under the name it is imported by, the demo's pictures, and a whole tree."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import assert_not_loaded

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    """Names of the files in a freshly built wheel."""
    pytest.importorskip("setuptools", minversion="77")
    # From a copy: building leaves files behind, which a later wheel would take in.
    out, tree = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source") / "tree"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in tracked.rstrip("\0").split("\0"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out]
    subprocess.run([*command, tree], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return [name for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name]


def test_every_module_is_in_the_wheel_once_and_under_cae(wheel):
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in (
            ("cae", ROOT / "cae"),
            ("cae/kernels", ROOT / "kernels"),
            ("cae/callbacks", ROOT / "callbacks"),
        )
        for path in folder.rglob("*.py")
    }
    modules = [name for name in wheel if name.endswith(".py")]
    assert len(modules) == len(set(modules))
    assert set(modules) == expected


def test_data_is_in_the_wheel(wheel):
    assert "cae/py.typed" in wheel
    assert "cae/data/demo/SOURCES.csv" in wheel
    assert {"cae/report/templates/report.html", "cae/report/static/report.js", "cae/report/static/report.css"} <= set(
        wheel
    )
    assert sum(name.startswith("cae/data/demo/images/") for name in wheel) >= 200


def test_the_links_lead_to_the_packages():
    for name in ("kernels", "callbacks"):
        assert (ROOT / "cae" / name).resolve() == ROOT / name
        assert not (ROOT / "cae" / name).readlink().is_absolute()


def test_kernels_import_without_the_rest():
    assert_not_loaded("import cae.kernels", "lightning", "faiss", "open_clip", "sklearn", "datasets", "nltk")
