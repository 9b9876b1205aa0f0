"""The settings of the method as keywords that tools can see."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from cae.config import CAEConfig

T = TypeVar("T", bound=type[Any])


def spell_out_settings(cls: T) -> T:
    """Put every field of `CAEConfig` in place of `**settings` in a constructor's signature.

    LightningCLI and `help` read the signature; the constructor itself goes on taking keywords, from which
    `given_settings` leaves out what was not given.
    """
    init: Any = cls.__init__
    signature, types = inspect.signature(init), get_type_hints(CAEConfig)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    settings = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=types[field.name] | None)
        for field in fields(CAEConfig)
        if field.name not in signature.parameters
    ]
    init.__signature__ = signature.replace(parameters=[*own, *settings])
    return cls


def given_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not None, which is what LightningCLI passes for those that its YAML does not have."""
    return {name: value for name, value in settings.items() if value is not None}
