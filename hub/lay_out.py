"""Lay out the kernel package as Hugging Face's `kernels` library loads it: `python hub/lay_out.py FOLDER --owner NAME`.

    FOLDER/build/torch-cpu/      the package and metadata.json
    FOLDER/build/torch-cuda/     the same; torch is all that either needs, Triton comes with torch's builds for CUDA
    FOLDER/README.md, LICENSE    the repository's card

This is what kernel-builder makes of the project in this folder. There is nothing to compile, so Python will do.
Needs nothing but the standard library.
"""

import argparse
import hashlib
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

HUB = Path(__file__).parent


def lay_out(folder: Path, owner: str) -> list[Path]:
    """Write the package once for each backend of build.toml.

    Args:
        folder: where to; made if it is not there, and empty if it is.
        owner: user or organisation on the hub whose repository it will be; the card tells how to load it from there.

    Returns:
        The folders that hold a package.

    Raises:
        FileExistsError: there is something in the folder: another version, or a README.md that is not ours.
        ValueError: no name that the hub would give.
    """
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", owner):
        raise ValueError(f"owner: expected a user or an organisation of the hub, got {owner!r}")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: choose another folder")
    general = tomllib.loads((HUB / "build.toml").read_text(encoding="utf-8"))["general"]
    package = HUB / "torch-ext" / general["name"].replace("-", "_")
    version = digest(package)
    variants = []
    for backend in general["backends"]:
        variant = folder / "build" / f"torch-{backend}"
        for path in package.rglob("*.py"):
            copy = variant / path.relative_to(package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        described = json.dumps(metadata(general, package.name, backend, version), indent=2)
        (variant / "metadata.json").write_text(f"{described}\n", encoding="utf-8")
        variants.append(variant)
    card = (HUB / "CARD.md").read_text(encoding="utf-8").replace("OWNER/", f"{owner}/")
    (folder / "README.md").write_text(card, encoding="utf-8")
    shutil.copy(HUB.parent / "LICENSE", folder)
    return variants


def digest(package: Path) -> str:
    """Eight digits that change with the sources."""
    sources = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        sources.update(f"{path.relative_to(package).as_posix()} {len(content)} ".encode() + content)
    return sources.hexdigest()[:8]


def metadata(general: dict[str, Any], package: str, backend: str, version: str) -> dict[str, Any]:
    """What `kernels` reads before it imports; the package is imported under the name `id`, as are its operators."""
    return {
        "id": f"_{package}_{backend}_{version}",
        "name": general["name"],
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to; it must be empty, if it is there")
    parser.add_argument("--owner", required=True, help="user or organisation on the hub whose repository it will be")
    args = parser.parse_args()
    try:
        for variant in lay_out(args.folder, args.owner):
            print(variant)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
