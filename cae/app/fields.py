"""What a request says, checked: one JSON object of limited size, with fields of known types."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection
from typing import Any

from starlette.requests import Request

MAX_BYTES = 8_000_000
"""Most bytes of a request: enough for the rows of some 800,000 pictures."""
MAX_TEXT = 1000
"""Most characters of a name or a query."""
_MAX_WHOLE = 2**53
"""JavaScript holds whole numbers below this exactly."""


class BadRequestError(ValueError):
    """A request is not what the page would send.

    Attributes:
        status: of the answer.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Fields:
    """The object that a request holds. Each method raises `BadRequestError` unless the field is what it should be."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    @classmethod
    async def read(cls, request: Request) -> Fields:
        """Read the object from the body of a request, up to `MAX_BYTES`.

        Raises:
            BadRequestError: it is too long, or no JSON object.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise BadRequestError("send application/json", 415)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BYTES:
                raise BadRequestError(f"more than {MAX_BYTES:,} bytes", 413)
        try:
            values = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadRequestError(f"this is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise BadRequestError("send a JSON object")
        return cls(values)

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def text(self, name: str) -> str:
        """A text of at most `MAX_TEXT` characters, without control characters and lone surrogates."""
        value = self._of_type(name, str)
        if len(value) > MAX_TEXT:
            raise BadRequestError(f"{name} has more than {MAX_TEXT} characters")
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
            raise BadRequestError(f"{name} holds characters that cannot be shown")
        return str(value)

    def whole(self, name: str) -> int:
        """A whole number from 0 on."""
        return self._whole(name, self.values.get(name))

    def wholes(self, name: str) -> list[int]:
        """A list of such numbers."""
        return [self._whole(name, value) for value in self._of_type(name, list)]

    def flag(self, name: str) -> bool:
        """True or false."""
        return bool(self._of_type(name, bool))

    def one_of(self, name: str, choices: Collection[str]) -> Any:
        """One of some texts."""
        value = self._of_type(name, str)
        if value not in choices:
            raise BadRequestError(f"{name} must be one of {', '.join(choices)}")
        return value

    def _of_type(self, name: str, kind: type) -> Any:
        value = self.values.get(name)
        if type(value) is not kind:
            raise BadRequestError(f"{name} is {'missing' if value is None else 'of another type'}")
        return value

    def _whole(self, name: str, value: Any) -> int:
        if type(value) is not int or not 0 <= value < _MAX_WHOLE:
            raise BadRequestError(f"{name} must be a whole number from 0 on")
        return value
