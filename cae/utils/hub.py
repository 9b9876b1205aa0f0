"""A quick check whether the Hugging Face hub answers: its own client would retry for half a minute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

HUB_TIMEOUT_S = 5


def reach_hub() -> None:
    """Ask the hub's address once.

    Raises:
        Exception: it does not answer within `HUB_TIMEOUT_S` seconds; the kind depends on the client's HTTP library.
    """
    get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)


@contextmanager
def from_the_cache_if_unreachable() -> Iterator[None]:
    """Let the hub's client use its local cache alone, inside, where the hub does not answer."""
    before = constants.HF_HUB_OFFLINE
    try:
        if not before:
            reach_hub()
    except Exception:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
