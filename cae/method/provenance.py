"""What a fitted state was made from, and whether an encoder is the one that it was made with."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from cae.encoders import Encoder
from cae.encoders.deferred import NO_ENCODER, is_loaded
from cae.method.fitted import FittedCAE, ModelError
from cae.text import TextBank


def check_encoder(fitted: FittedCAE, encoder: Encoder) -> None:
    """Refuse to compare vectors of two encoders.

    Raises:
        ModelError: the state was fitted with an encoder of another fingerprint.
    """
    if "encoder" not in fitted.provenance:
        return
    spec, fingerprint = encoder_of(fitted)
    if spec == NO_ENCODER:  # fitted on embeddings of an unknown encoder
        return
    if fingerprint != encoder.fingerprint:
        raise ModelError(
            f"the model was fitted with encoder {spec} ({fingerprint}), but this one is "
            f"{encoder.spec} ({encoder.fingerprint}); load the same encoder and weights, or fit again"
        )


def encoder_of(fitted: FittedCAE) -> tuple[str, str]:
    """Spec and fingerprint of the encoder of a fitted state."""
    record = fitted.provenance.get("encoder")
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("spec", "fingerprint")):
        raise ModelError("the fitted CAE does not say which encoder it was fitted with; fit it again")
    return record["spec"], record["fingerprint"]


def provenance(encoder: Encoder, banks: Mapping[str, TextBank]) -> dict[str, Any]:
    """What a result was made from: encoder, corpora with counts and hashes, versions."""
    packages = ("cae-clustering", "torch", "lightning", "faiss-cpu", "open_clip_torch", "numpy")
    known = is_loaded(encoder)
    spec, fingerprint = (encoder.spec, encoder.fingerprint) if known else (NO_ENCODER, NO_ENCODER)
    return {
        "encoder": {"spec": spec, "fingerprint": fingerprint, "dim": encoder.dim},
        "corpora": {modality: bank.provenance() for modality, bank in banks.items()},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }
