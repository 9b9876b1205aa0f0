"""Results on disk: written by `cae cluster`, read back, edited, updated, compared and exported.

Names are loaded at first use: reading a result needs no Lightning, which takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cae.utils.lazy import lazy

if TYPE_CHECKING:
    from cae.results.duplicates import find_duplicates
    from cae.results.folder import FolderResult
    from cae.results.layout import ResultError
    from cae.results.run import run_source
    from cae.results.saved import SavedResult
    from cae.results.search import Searcher
    from cae.results.writing import OutputError, write_result

_HOMES = {
    "FolderResult": "cae.results.folder",
    "OutputError": "cae.results.writing",
    "ResultError": "cae.results.layout",
    "SavedResult": "cae.results.saved",
    "Searcher": "cae.results.search",
    "find_duplicates": "cae.results.duplicates",
    "run_source": "cae.results.run",
    "write_result": "cae.results.writing",
}

__all__ = [
    "FolderResult",
    "OutputError",
    "ResultError",
    "SavedResult",
    "Searcher",
    "find_duplicates",
    "run_source",
    "write_result",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
