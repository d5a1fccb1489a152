"""A mask as a DICOM segmentation of its film, by highdicom (optional: `pip install highdicom`).

A segmentation belongs to its patient: it copies the film's patient and study, so it is as
confidential as the film.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2g_utils import runs

LABEL = 64  # letters of a DICOM long string


def check_installed() -> None:
    """Refuse where highdicom is not installed."""
    if importlib.util.find_spec("highdicom") is None:
        raise ValueError("--dicom needs highdicom: pip install 'highdicom>=0.27,<1'")


def write(path: Path, film: Path, mask: NDArray[np.bool_], phrase: str) -> None:
    """Write a film's mask [height, width] as one segment, named by the phrase.

    Raises:
        ValueError: the film is no DICOM file with one frame of the mask's size, its header lacks
            what a segmentation needs, or the mask is empty.
    """
    import highdicom
    import pydicom

    try:
        source = pydicom.dcmread(film)
    except pydicom.errors.InvalidDicomError:
        raise ValueError(f"{film} is no DICOM file: no segmentation") from None
    if (source.get("Rows"), source.get("Columns")) != mask.shape or source.get(
        "NumberOfFrames", 1
    ) > 1:
        raise ValueError(f"{film} has several frames or another size: no segmentation")
    if not mask.any():
        raise ValueError(f"{film}: the mask of {phrase!r} is empty: no segmentation")
    try:
        made = highdicom.seg.Segmentation(
            source_images=[source],
            pixel_array=mask[None].astype(np.uint8),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(phrase)],
            series_instance_uid=highdicom.UID(),
            series_number=1,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="research",
            manufacturer_model_name="generate-to-ground",
            software_versions="0",
            device_serial_number="0",
        )
    except AttributeError as error:  # an absent header field
        raise ValueError(f"{film}: {error}: no segmentation") from None
    with runs.atomic(path) as temporary:
        made.save_as(temporary)


def _segment(phrase: str) -> Any:
    """Description of the segment: an abnormality found by an algorithm."""
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label=phrase[:LABEL],
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="generate-to-ground", version="0", family=codes.DCM.ArtificialIntelligence
        ),
    )
