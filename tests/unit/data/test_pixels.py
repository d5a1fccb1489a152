"""One decoder: the same film in every container, depth, colour and compression is the same film."""

import itertools
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid

from g2g_utils.data.images import ImageError, image_size, read_image
from tests.pictures import SYNTAXES, dicom, film, lut, png

CASES = Path(__file__).parent / "cases"
REFERENCE = np.asarray(Image.open(CASES / "reference.png"), np.float64) / 255
GRID = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DEPTHS = (8, 10, 12, 14, 16)


def agrees(path, bits, seed, inverted=False):
    expected = film(seed, bits) / (2**bits - 1)
    found = read_image(path)
    assert image_size(path) == found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, 1 - expected if inverted else expected, atol=2 / 2**bits)


# ---------------------------------------------------------------- the reported files

WINDOWED = np.clip((np.round(REFERENCE * 255 * 4095 / 255) - 736) / 2064, 0, 1)
SCALED = (REFERENCE - REFERENCE.min()) / np.ptp(REFERENCE)  # no window: from min to max
READ = {
    "voi_lut_12in16.dcm": REFERENCE, "voi_10in16.dcm": REFERENCE,
    "voi_lut_736.dcm": WINDOWED,
    "no_meta_implicit.dcm": SCALED, "no_meta_explicit.dcm": SCALED,
    "intercept_only.dcm": REFERENCE, "slope_only.dcm": REFERENCE,
    "png16_L_12bit.png": REFERENCE, "png16_LA_12bit.png": REFERENCE,
    "png16_RGB_12bit.png": REFERENCE, "png16_RGBA_12bit.png": REFERENCE,
    "png16_LA_alpha4095.png": REFERENCE, "rgb16.tif": REFERENCE,
    "miw16.tif": REFERENCE, "miw8.tif": REFERENCE, "reference.png": REFERENCE,
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_reported_files_are_read_right(name):
    depth = 1023 if name.startswith("voi_10") else 2047 if "736" in name else 4095
    np.testing.assert_allclose(read_image(CASES / name), READ[name], atol=1 / depth)


def test_the_advised_decoders_leave_numpy_as_it_is():
    if pydicom.pixels.get_decoder(uid.JPEGLosslessSV1).is_available:
        pytest.skip("a decoder of lossless JPEG is installed here")
    with pytest.raises(ImageError) as caught:
        read_image(CASES / "jll.dcm")
    assert f'pip install "numpy=={np.__version__}" "pylibjpeg[all]' in str(caught.value)


# ---------------------------------------------------------------- PNG


@GRID
@given(
    st.integers(0, 99), st.sampled_from(DEPTHS), st.sampled_from([0, 2, 4, 6]), st.booleans(),
    st.sampled_from([255, 4095, 65535]),
)  # fmt: skip
def test_png_of_16_bits(tmp_path, seed, bits, colour, interlaced, opaque):
    values = np.repeat(film(seed, bits)[..., None], 3 if colour in (2, 6) else 1, axis=-1)
    if colour >= 4:
        values = np.dstack([values, np.full(values.shape[:2], opaque)])
    agrees(png(tmp_path / "a.png", values, colour, interlaced), bits, seed)


def test_transparency_of_16_bits_is_black(tmp_path):
    values = np.dstack([film(1, 16)] * 3 + [np.full((12, 17), 65535)])
    values[2:5, :, 3] = 0
    found = read_image(png(tmp_path / "a.png", values, 6))
    assert found[2:5].max() == 0 and found[6:].max() > 0.9


# ---------------------------------------------------------------- TIFF


@GRID
@given(
    st.integers(0, 99), st.sampled_from(DEPTHS),
    st.sampled_from(["minisblack", "miniswhite", "rgb", "rgba"]),
    st.sampled_from(["contig", "separate"]), st.booleans(), st.sampled_from([None, "zlib"]),
    st.sampled_from("<>"),
)  # fmt: skip
def test_tiff(tmp_path, seed, bits, kind, planar, signed, compression, order):
    values = film(seed, bits).astype(np.uint8 if bits == 8 else np.uint16)
    if signed and kind.startswith("minis"):
        values = (values.astype(np.int32) - 2 ** (bits - 1)).astype(np.int16)
    options = {"photometric": kind[:10].removesuffix("a")}
    if kind.startswith("rgb"):
        opaque = [np.full_like(values, np.iinfo(values.dtype).max)] * (kind == "rgba")
        values = np.stack([values] * 3 + opaque, axis=0 if planar == "separate" else -1)
        options |= {"planarconfig": planar}
        options |= {"extrasamples": ["unassalpha"]} if kind == "rgba" else {}
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, compression=compression, byteorder=order, **options)
    agrees(path, bits, seed, inverted=kind == "miniswhite")


@pytest.mark.parametrize(("turned", "way"), [(3, (2, 0)), (6, (-1, 0)), (8, (1, 0)), (1, (0, 0))])
@pytest.mark.parametrize("order", "<>")
def test_orientation_of_16_bit_tiffs(tmp_path, turned, way, order):
    tags = [(274, "H", 1, turned, True)]
    values = film(3, 16).astype(np.uint16)
    for kind, pixels in (("miniswhite", 65535 - values), ("rgb", np.dstack([values] * 3))):
        path = tmp_path / f"{kind}.tif"
        tifffile.imwrite(path, pixels, photometric=kind, byteorder=order, extratags=tags)
        expected = np.rot90(values / 65535, way[0])
        np.testing.assert_allclose(read_image(path), expected, atol=1e-4)
        assert image_size(path) == expected.shape


# ---------------------------------------------------------------- DICOM


@settings(GRID, max_examples=120)
@given(
    st.integers(0, 99), st.sampled_from(DEPTHS),
    st.sampled_from(["MONOCHROME1", "MONOCHROME2", "RGB"]), st.integers(0, 1), st.booleans(),
    st.sampled_from(sorted(SYNTAXES)), st.booleans(), st.booleans(),
)  # fmt: skip
def test_dicom(tmp_path, seed, bits, photometric, planar, signed, syntax, windowed, wide):
    values = film(seed, bits).astype(np.uint16 if bits > 8 or wide else np.uint8)
    syntax = "explicit" if wide and syntax == "rle" else syntax  # pydicom cannot write it
    tags = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits} if windowed else {}
    if photometric == "RGB":
        tags = {"PlanarConfiguration": planar}
        values = np.stack([values] * 3, axis=0 if planar else -1)
        syntax = "explicit" if syntax == "rle" and planar else syntax
    elif signed:
        values = (values.astype(np.int32) - 2 ** (bits - 1)).astype(f"i{values.itemsize}")
        if windowed:
            tags["WindowCenter"] = 0
    path = dicom(tmp_path / "a.dcm", values, bits, photometric, syntax, **tags)
    agrees(path, bits, seed, inverted=photometric == "MONOCHROME1")


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big"])
def test_dicom_without_file_meta(tmp_path, syntax):
    values = film(2, 12).astype(np.uint16)
    path = dicom(tmp_path / "a.dcm", values, 12, syntax=syntax)
    data = pydicom.dcmread(path)
    del data.file_meta.TransferSyntaxUID
    data.save_as(path, enforce_file_format=False)
    agrees(path, 12, 2)


def test_fragments_without_a_transfer_syntax_are_named(tmp_path):
    path = dicom(tmp_path / "a.dcm", film(2, 12).astype(np.uint16), 12, syntax="rle")
    data = pydicom.dcmread(path)
    del data.file_meta.TransferSyntaxUID
    data.save_as(path, enforce_file_format=False, implicit_vr=False, little_endian=True)
    with pytest.raises(ImageError, match="no Transfer Syntax UID says how"):
        read_image(path)


@pytest.mark.parametrize("declared", [12, 14, 16])
@pytest.mark.parametrize("holds", [8, 10, 12])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["VOILUTSequence", "ModalityLUTSequence"])
def test_luts_narrower_than_declared(tmp_path, declared, holds, packed, name):
    stored = film(5, 12).astype(np.uint16)
    entries = np.arange(4096) * (2**holds - 1) // 4095
    path = dicom(tmp_path / "a.dcm", stored, 12, **{name: lut(0, entries, declared, packed)})
    np.testing.assert_allclose(read_image(path), stored / 4095, atol=1.1 / (2**holds - 1))


@pytest.mark.parametrize("first", [-2048, 63488])
def test_the_first_input_of_a_lut_is_signed_as_the_pixels_are(tmp_path, first):
    stored = (film(5, 12) - 2048).astype(np.int16)
    path = dicom(tmp_path / "a.dcm", stored, 12, VOILUTSequence=lut(first, range(4096), 16))
    np.testing.assert_allclose(read_image(path), (stored + 2048.0) / 4095, atol=1e-3)


def test_a_lut_of_bytes(tmp_path):
    stored = film(5, 8).astype(np.uint8)
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 8])
    item.add_new("LUTData", "OW", bytes(range(256)))
    path = dicom(tmp_path / "a.dcm", stored, 8, VOILUTSequence=pydicom.Sequence([item]))
    np.testing.assert_allclose(read_image(path), stored / 255, atol=1e-6)


@pytest.mark.parametrize("there", list(itertools.product([None, "", 1], [None, "", -1024])))
def test_one_of_slope_and_intercept(tmp_path, there):
    slope, intercept = there
    tags = {"WindowCenter": 2048 + (intercept or 0), "WindowWidth": 4096}
    tags |= {} if slope is None else {"RescaleSlope": slope}
    tags |= {} if intercept is None else {"RescaleIntercept": intercept}
    stored = film(5, 12).astype(np.uint16)
    found = read_image(dicom(tmp_path / "a.dcm", stored, 12, **tags))
    np.testing.assert_allclose(found, stored / 4095, atol=1e-3)


def test_other_bits_of_a_pixels_word_are_not_part_of_it(tmp_path):
    stored = film(5, 12).astype(np.uint16)
    overlay = stored | np.uint16(0xA000)
    np.testing.assert_allclose(
        read_image(dicom(tmp_path / "a.dcm", overlay, 12)), stored / 4095, atol=1e-3
    )
    shifted = dicom(tmp_path / "b.dcm", stored << 4 | np.uint16(5), 12, HighBit=15)
    np.testing.assert_allclose(read_image(shifted), stored / 4095, atol=1e-3)
    signed = ((stored.astype(np.int32) - 2048) & 0xFFF).astype(np.int16)  # no sign extension
    np.testing.assert_allclose(
        read_image(dicom(tmp_path / "c.dcm", signed, 12)), stored / 4095, atol=1e-3
    )


@pytest.mark.parametrize("value", [-2000, 63536])
def test_padding_is_signed_as_the_pixels_are(tmp_path, value):
    stored = (film(5, 10) - 512).astype(np.int16)
    stored[3:5] = -2000
    path = dicom(tmp_path / "a.dcm", stored, 16)
    data = pydicom.dcmread(path)
    data.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
    data.save_as(path)
    found = read_image(path)
    np.testing.assert_allclose(found[5:], (stored[5:] + 512) / 1023, atol=1e-3)


def test_a_range_of_padding(tmp_path):
    stored = film(5, 10).astype(np.uint16) + 1000
    stored[3], stored[4] = 0, 40
    padding = {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 100}
    found = read_image(dicom(tmp_path / "a.dcm", stored, 12, **padding))
    np.testing.assert_allclose(found[5:], (stored[5:] - 1000) / 1023, atol=1e-3)


def test_a_palette_narrower_than_declared(tmp_path):
    names = ("Red", "Green", "Blue")
    tags = {f"{n}PaletteColorLookupTableDescriptor": [256, 0, 16] for n in names}
    rising = (np.arange(256, dtype=np.uint16) * 16).tobytes()
    tags |= {f"{n}PaletteColorLookupTableData": rising for n in names}
    stored = film(5, 8).astype(np.uint8)
    found = read_image(dicom(tmp_path / "a.dcm", stored, 8, "PALETTE COLOR", **tags))
    np.testing.assert_allclose(found, stored * 16.0 / 4095, atol=2e-3)


SPACINGS = (
    {"PixelSpacing": [0.2, 0.1]}, {"ImagerPixelSpacing": [0.1, 0.2]}, {"PixelAspectRatio": [2, 1]}
)  # fmt: skip


@pytest.mark.parametrize("tags", SPACINGS)
def test_pixels_that_are_not_square_are_said(tmp_path, tags, caplog):
    stored = film(5, 12).astype(np.uint16)
    read_image(dicom(tmp_path / "a.dcm", stored, 12, PixelSpacing=[0.1, 0.1]))
    assert not caplog.text
    found = read_image(dicom(tmp_path / "b.dcm", stored, 12, **tags))
    np.testing.assert_allclose(found, stored / 4095, atol=1e-3)
    assert caplog.text.count("b.dcm: its pixels are") == 1


def test_a_scan_of_two_densities_is_said(tmp_path, caplog):
    image = Image.fromarray(film(1, 8).astype(np.uint8))
    image.save(tmp_path / "a.png", dpi=(300, 300))
    image.save(tmp_path / "b.png", dpi=(200, 100))
    read_image(tmp_path / "a.png")
    assert not caplog.text
    read_image(tmp_path / "b.png")
    assert "b.png: its pixels are" in caplog.text


@pytest.mark.parametrize("path", sorted(CASES.glob("fuzz_*")), ids=lambda path: path.name)
def test_files_that_mutations_found_are_refused_in_one_line(path):
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
