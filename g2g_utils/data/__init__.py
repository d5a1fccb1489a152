"""Data sources: files and phantoms, all read into one record type, `record.Example`."""

from g2g_utils.data.geometry import Box
from g2g_utils.data.record import Example, Region, pairs

__all__ = ["Box", "Example", "Region", "pairs"]
