"""`import pytorch_lightning` in a process of its own: from then on every `CAE` says which Trainer runs it."""

import subprocess
import sys
from pathlib import Path


def test_under_pytorch_lightning():
    file = Path(__file__).with_name("other_lightning.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(file)], capture_output=True, text=True, cwd=file.parents[1]
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout


def test_nothing_is_said_to_those_who_do_not_import_it():
    code = "import warnings; warnings.simplefilter('error', UserWarning); from cae import CAE; CAE(3)"
    subprocess.run([sys.executable, "-c", code], check=True)
