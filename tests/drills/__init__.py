"""Drills: what the project survives, tried by the thousand. `pytest -m drill tests/drills`; see tests/README.md."""
