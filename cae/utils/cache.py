"""Where files that can always be made again are kept."""

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """The folder for cached files: `$CAE_CACHE` if set, else the platform's cache folder for `cae`. May not exist."""
    override = os.environ.get("CAE_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("cae"))
