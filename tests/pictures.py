"""Odd image files from their bytes up: PNG, TIFF, DICOM, JPEG and their smallest parts."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import FileMetaDataset

SYNTAXES = {
    "implicit": uid.ImplicitVRLittleEndian, "explicit": uid.ExplicitVRLittleEndian,
    "big": uid.ExplicitVRBigEndian, "deflated": uid.DeflatedExplicitVRLittleEndian,
    "rle": uid.RLELossless,
}  # fmt: skip
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
PASSES += [(0, 1, 1, 2)]  # Adam7


def film(seed: int, bits: int) -> np.ndarray:
    """A made-up film of 12 by 17 pixels that holds 0 and the depth's maximum."""
    values = np.random.default_rng(seed).integers(0, 2**bits, (12, 17))
    values[0, 0], values[-1, -1] = 0, 2**bits - 1
    return values


# ---------------------------------------------------------------- PNG


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    path: Path, values: np.ndarray, colour: int, interlaced: bool = False, bits: int = 16,
    before: bytes = b"",
) -> Path:  # fmt: skip
    """Write samples [H, W, C] of 1 to 16 bits; row filters differ from row to row.

    ``before`` are chunks in front of the pixels.
    """
    height, width = values.shape[:2]
    rows = b""
    for x, y, dx, dy in PASSES if interlaced else [(0, 0, 1, 1)]:
        part = values[y::dy, x::dx]
        if part.size:
            rows += _filtered(part, bits)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + before + end)
    return path


def _filtered(part: np.ndarray, bits: int) -> bytes:
    rows, above = b"", np.zeros(1, np.uint8)
    for number, row in enumerate(part):
        line = np.frombuffer(_packed(row.ravel(), bits), np.uint8)
        step = max(1, bits * part.shape[-1] // 8)
        left = np.concatenate([np.zeros(step, np.uint8), line[:-step]])[: len(line)]
        above = above if len(above) == len(line) else np.zeros_like(line)
        rows += bytes([number % 3]) + (line, line - left, line - above)[number % 3].tobytes()
        above = line
    return rows


def _packed(samples: np.ndarray, bits: int) -> bytes:
    if bits >= 8:
        return samples.astype(">u2" if bits == 16 else np.uint8).tobytes()
    planes = (samples[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.astype(np.uint8).ravel()).tobytes()


# ---------------------------------------------------------------- DICOM


def dicom(
    path: Path, stored: np.ndarray, bits: int, photometric: str = "MONOCHROME2",
    syntax: str = "explicit", **tags: Any,
) -> Path:  # fmt: skip
    """Write pixels of so many bits; ``tags`` are elements of the header, None removes one."""
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    little = SYNTAXES[syntax] != uid.ExplicitVRBigEndian
    data.file_meta.TransferSyntaxUID = SYNTAXES["explicit" if syntax == "rle" else syntax]
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = uid.SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.PhotometricInterpretation = photometric
    planar = tags.get("PlanarConfiguration", 0)
    data.Rows, data.Columns = stored.shape[1:] if planar else stored.shape[:2]
    data.SamplesPerPixel = 3 if stored.ndim == 3 else 1
    data.BitsAllocated, data.BitsStored, data.HighBit = 8 * stored.itemsize, bits, bits - 1
    data.PixelRepresentation = int(stored.dtype.kind == "i")
    data.PixelData = stored.astype(stored.dtype.newbyteorder("<" if little else ">")).tobytes()
    data["PixelData"].VR = "OW" if stored.itemsize == 2 else "OB"
    if stored.nbytes % 2:
        data.PixelData += b"\0"
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    if syntax == "rle":
        data.compress(uid.RLELossless, generate_instance_uid=False)
    data.save_as(path, enforce_file_format=True)
    return path


def item(**tags: Any) -> pydicom.Sequence:
    """A sequence of one item."""
    data = pydicom.Dataset()
    for name, value in tags.items():
        setattr(data, name, value)
    return pydicom.Sequence([data])


def lut(first: int, entries: Any, bits: int, packed: bool = True) -> pydicom.Sequence:
    """A LUT item; its descriptor's first number is written as a signed or unsigned word."""
    data = pydicom.Dataset()
    data.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    words = np.asarray(entries).astype("<u2").tobytes() if packed else [int(e) for e in entries]
    data.add_new("LUTData", "OW" if packed else "US", words)
    return pydicom.Sequence([data])
