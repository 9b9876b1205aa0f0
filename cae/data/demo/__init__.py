"""The demo's images: public-domain illustrations in a folder for each category, with their origin in SOURCES.csv."""

from pathlib import Path


def demo_images() -> Path:
    """The folder that holds `<category>/<picture>.webp`."""
    return Path(__file__).parent / "images"
