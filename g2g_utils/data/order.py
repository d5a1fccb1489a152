"""The fixed order of patients and images, by which every choice among them is made."""

from __future__ import annotations

import hashlib


def position(name: str) -> float:
    """A fixed place in [0, 1) of a patient or image, the same in every run and on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
