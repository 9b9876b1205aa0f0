"""The demo's images: photographs and drawings, a folder per subject, with origin and licence in SOURCES.csv."""

from pathlib import Path


def demo_images() -> Path:
    """The folder that holds `<subject>/<image>.webp`."""
    return Path(__file__).parent / "images"
