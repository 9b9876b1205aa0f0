"""What training leaves behind: the texts that name the clusters, and the network that labels an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from torch import Tensor

from cae.state import FittedCAE

_NETWORK = "network."


@dataclass(frozen=True)
class FittedHeads(FittedCAE):
    """A fitted state whose labels come from a trained network on the image embedding, not from `centroids`.

    Attributes:
        centroids: none, (0, D).
        method: `tac-heads`, `cae-heads` or `mca`.
        network: `state_dict` of the network.
    """

    method: str = ""
    network: dict[str, Tensor] = field(default_factory=dict)

    def _tensors(self) -> dict[str, Tensor]:
        return {**super()._tensors(), **{_NETWORK + key: value for key, value in self.network.items()}}

    def _plain(self) -> dict[str, Any]:
        return {**super()._plain(), "method": self.method}

    @classmethod
    def _from_parts(cls, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Self:
        # The base class makes one of this class without a network, out of the parts that both have.
        base = super()._from_parts(tensors, plain)
        shared = {each.name: getattr(base, each.name) for each in fields(FittedCAE)}
        network = {key.removeprefix(_NETWORK): tensors[key] for key in tensors if key.startswith(_NETWORK)}
        return cls(**shared, method=plain["method"], network=network)
