"""Image files to arrays, boxes through the same map, one clear line for bad files."""

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, SecondaryCaptureImageStorage

from g2g_utils.data.geometry import crop_resize, transform_box, transform_boxes
from g2g_utils.data.images import ImageError, image_size, read_image
from g2g_utils.data.record import Example

GREY = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30) % 200 + 20


def realdata() -> Path:
    """The folder of real test images, or a skip that says what is missing."""
    root = os.environ.get("G2G_SHARED", str(Path(__file__).parents[4] / "shared"))
    folder = Path(root) / "realdata"
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} is absent (set G2G_SHARED)")
    return folder


def dicom(path, stored, photometric="MONOCHROME2", **tags):
    """Write a minimal secondary-capture DICOM file."""
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.SOPClassUID, data.PatientName = SecondaryCaptureImageStorage, "Doe^Jane"
    data.PhotometricInterpretation = photometric
    data.Rows, data.Columns = stored.shape[:2]
    data.SamplesPerPixel = 3 if stored.ndim == 3 else 1
    if stored.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * stored.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, 0
    data.PixelData = tags.pop("pixels", stored.tobytes())
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "I;16"])
def test_png_modes_agree(tmp_path, mode):
    image = Image.fromarray(GREY)
    if mode == "I;16":
        image = Image.fromarray(GREY.astype(np.uint16) * 257)
    elif mode == "P":
        image.putpalette([v for v in range(256) for _ in range(3)])
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.dtype == np.float32 and read.shape == (20, 30)
    assert np.allclose(read, GREY / 255, atol=1 / 255)
    assert image_size(tmp_path / "a.png") == (20, 30)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_modes_agree(tmp_path, mode):
    smooth = np.tile(np.linspace(10, 240, 40).astype(np.uint8), (32, 1))
    Image.fromarray(smooth).convert("RGB").convert(mode).save(tmp_path / "a.jpg", quality=97)
    assert np.abs(read_image(tmp_path / "a.jpg") - smooth / 255).max() < 0.03


def test_one_bit_transparency_and_twelve_bits(tmp_path):
    bits = (GREY > 100).astype(np.uint8) * 255
    Image.fromarray(bits).convert("1").save(tmp_path / "bits.png")
    assert np.array_equal(read_image(tmp_path / "bits.png"), bits / 255)
    clear = np.dstack([GREY, GREY, GREY, np.zeros_like(GREY)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").max() == 0
    twelve = np.linspace(0, 4095, 600).astype(np.uint16).reshape(20, 30)
    Image.fromarray(twelve).save(tmp_path / "twelve.png")
    assert read_image(tmp_path / "twelve.png").max() == 1


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright
    Image.fromarray(GREY).save(tmp_path / "turned.png", exif=exif)
    assert np.allclose(read_image(tmp_path / "turned.png"), np.rot90(GREY, -1) / 255)
    assert image_size(tmp_path / "turned.png") == (30, 20)


def test_constant_images_are_fine(tmp_path):
    Image.fromarray(np.full((16, 16), 77, np.uint8)).save(tmp_path / "a.png")
    assert np.allclose(read_image(tmp_path / "a.png"), 77 / 255)
    flat = dicom(tmp_path / "a.dcm", np.full((16, 16), 77, np.uint8))
    assert np.isfinite(read_image(flat)).all()


@pytest.mark.parametrize(
    ("make", "problem", "fix"),
    [
        (lambda p: p.write_text("hello"), "not an image", "PNG, JPEG or DICOM"),
        (lambda p: p.write_bytes(b""), "empty", "again"),
        (lambda p: p.mkdir(), "is a directory", "name one image file"),
        (lambda p: None, "no such file", "spelling"),
        (lambda p: Image.new("L", (1, 1)).save(p), "only 1×1 pixels", "at least 8"),
        (lambda p: Image.new("L", (500, 7)).save(p), "only 500×7 pixels", "at least 8"),
    ],
)
def test_bad_files_get_one_clear_line(tmp_path, make, problem, fix):
    path = tmp_path / "bad.png"
    make(path)
    for function in (read_image, image_size):
        with pytest.raises(ImageError) as caught:
            function(path)
        text = str(caught.value)
        assert str(path) in text and problem in text and fix in text and "\n" not in text


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_files(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ImageError, match="truncated or damaged image"):
        read_image(path)


def test_dicom_range_window_and_inversion(tmp_path):
    stored = np.linspace(100, 3000, 600).astype(np.uint16).reshape(20, 30)
    plain = read_image(dicom(tmp_path / "a.dcm", stored))
    assert plain.min() == 0 and plain.max() == 1 and plain[0, 0] == 0
    inverted = read_image(dicom(tmp_path / "b.dcm", stored, "MONOCHROME1"))
    assert np.allclose(inverted, 1 - plain, atol=1e-6)
    window = {"WindowCenter": 1500, "WindowWidth": 1000}
    shown = read_image(dicom(tmp_path / "c.dcm", stored, **window))
    assert np.allclose(shown, np.clip((stored - 1000.0) / 1000, 0, 1), atol=2e-3)
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 2900}
    rescaled["WindowWidth"] = 2000
    same = read_image(dicom(tmp_path / "d.dcm", stored, **rescaled))
    assert np.allclose(same, shown, atol=2e-3)
    falling = {"RescaleSlope": -1, "RescaleIntercept": 4095, "WindowCenter": 2595}
    upside = read_image(dicom(tmp_path / "e.dcm", stored, WindowWidth=1000, **falling))
    assert np.allclose(upside, 1 - shown, atol=5e-3)
    assert image_size(tmp_path / "a.dcm") == (20, 30)


def test_a_window_beside_the_values_is_left_out(tmp_path, caplog):
    stored = np.linspace(100, 3000, 600).astype(np.uint16).reshape(20, 30)
    beside = dicom(tmp_path / "a.dcm", stored, WindowCenter=60000, WindowWidth=100)
    plain = dicom(tmp_path / "b.dcm", stored)
    assert np.array_equal(read_image(beside), read_image(plain))
    assert "leaves nothing to see" in caplog.text


def test_negative_integers_and_further_frames(tmp_path, caplog):
    values = np.linspace(-2000, 2000, 600).astype(np.int32).reshape(20, 30)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.allclose(read_image(tmp_path / "a.tif"), (values + 2000) / 4000, atol=1e-4)
    first = Image.fromarray(GREY)
    first.save(tmp_path / "b.png", save_all=True, append_images=[Image.fromarray(255 - GREY)])
    assert np.allclose(read_image(tmp_path / "b.png"), GREY / 255, atol=0.01)
    assert "has 2 frames: the first is used" in caplog.text


def test_dicom_padding_does_not_set_the_range(tmp_path):
    stored = np.linspace(1000, 2000, 600).astype(np.uint16).reshape(20, 30)
    stored[:3] = 0
    padded = read_image(dicom(tmp_path / "a.dcm", stored, PixelPaddingValue=0))
    assert padded[3, 0] < 0.01 and padded[:3].max() == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("scale", [1, 500])
def test_a_float_tiff_with_a_hole_is_refused(tmp_path, value, scale):
    pixels = np.linspace(0, scale, 600, dtype=np.float32).reshape(20, 30)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").max() == 1
    pixels[3, 4] = value
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="NaN or infinite values"):
        read_image(tmp_path / "a.tif")


EMPTY = [
    {"WindowCenter": 1500, "WindowWidth": 0},
    {"WindowCenter": [1500, 1], "WindowWidth": [0, 1]},
    {"RescaleSlope": "", "RescaleIntercept": ""},
    {"RescaleSlope": 0, "RescaleIntercept": 5},
]


@pytest.mark.parametrize("tags", EMPTY)
def test_an_empty_window_or_rescaling_is_none(tmp_path, tags):
    stored = np.linspace(100, 3000, 600).astype(np.uint16).reshape(20, 30)
    plain = read_image(dicom(tmp_path / "a.dcm", stored))
    assert np.allclose(read_image(dicom(tmp_path / "b.dcm", stored, **tags)), plain, atol=1e-6)


def test_dicom_without_suffix_and_in_colour(tmp_path):
    colour = np.dstack([GREY, GREY, GREY])
    read = read_image(dicom(tmp_path / "plain", colour, "RGB"))
    assert np.allclose(read, GREY / 255, atol=1 / 255)


def test_a_dicom_with_a_palette_is_read_through_it(tmp_path):
    stored = np.arange(64, dtype=np.uint8).reshape(8, 8)
    without = dicom(tmp_path / "none.dcm", stored, "PALETTE COLOR")
    with pytest.raises(ImageError, match=r"none\.dcm: unusable LUT or window in the DICOM header"):
        read_image(without)
    names = ("Red", "Green", "Blue")
    tables = {f"{n}PaletteColorLookupTableDescriptor": [256, 0, 16] for n in names}
    rising = (np.arange(256, dtype=np.uint16) * 257).tobytes()
    tables |= {f"{n}PaletteColorLookupTableData": rising for n in names}
    read = read_image(dicom(tmp_path / "a.dcm", stored, "PALETTE COLOR", **tables))
    np.testing.assert_allclose(read, stored / 255, atol=1e-3)


def test_bad_dicom_files_get_one_clear_line(tmp_path):
    stored = np.zeros((20, 30), np.uint16)
    no_pixels = dicom(tmp_path / "none.dcm", stored)
    data = pydicom.dcmread(no_pixels)
    del data.PixelData
    data.save_as(no_pixels)
    short = dicom(tmp_path / "short.dcm", stored, pixels=b"\0" * 100)
    (tmp_path / "text.dcm").write_text("hello " * 100)
    for name, problem in (
        (no_pixels, "without pixel data"),
        (short, "damaged or incomplete DICOM pixel data"),
        (tmp_path / "text.dcm", "DICOM"),
    ):
        with pytest.raises(ImageError, match=problem) as caught:
            read_image(name)
        assert "\n" not in str(caught.value) and str(name) in str(caught.value)


def test_a_missing_decoder_is_named(tmp_path):
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders import JPEGLSLosslessDecoder

    if JPEGLSLosslessDecoder.is_available:
        pytest.skip("a JPEG-LS decoder is installed here")
    pixels = encapsulate([b"\xff\xd8\xff\xd9"])
    stored = np.zeros((20, 30), np.uint8)
    path = dicom(tmp_path / "a.dcm", stored, pixels=pixels, syntax=JPEGLSLossless)
    with pytest.raises(ImageError, match=r"no decoder .*JPEG-LS.* pip install .*pylibjpeg"):
        read_image(path)


def test_a_film_in_a_dicom_has_no_decoder_at_all(tmp_path):
    from pydicom.encaps import encapsulate
    from pydicom.uid import MPEG2MPML

    stored = np.zeros((20, 30), np.uint8)
    path = dicom(tmp_path / "a.dcm", stored, pixels=encapsulate([b"\0" * 8]), syntax=MPEG2MPML)
    with pytest.raises(ImageError, match=r"no decoder .*MPEG2 .*; export it uncompressed$"):
        read_image(path)


@pytest.mark.parametrize("shape", [(40, 60), (61, 40), (33, 33), (200, 150)])
@pytest.mark.parametrize("size", [16, 64])
def test_boxes_follow_the_image(shape, size):
    """A bright rectangle in the image stays under its box."""
    height, width = shape
    image = np.zeros(shape, np.float32)
    x, y, w, h = width // 2 - 6, height // 2 - 4, 12, 10
    image[y : y + h, x : x + w] = 1
    moved = crop_resize(image, size)
    (box,) = transform_boxes([(x, y, w, h)], height, width, size)
    total = moved.sum()
    column = (moved.sum(0) * (np.arange(size) + 0.5)).sum() / total
    row = (moved.sum(1) * (np.arange(size) + 0.5)).sum() / total
    assert column == pytest.approx(box[0] + box[2] / 2, abs=0.05)
    assert row == pytest.approx(box[1] + box[3] / 2, abs=0.05)
    assert total == pytest.approx(box[2] * box[3], rel=0.05)
    assert moved.shape == (size, size) and moved.dtype == np.float32


def test_crop_resize_keeps_squares_range_and_means():
    rng = np.random.default_rng(0)
    image = rng.random((64, 64), np.float32)
    assert np.array_equal(crop_resize(image, 64), image)
    small = crop_resize(image, 8)
    assert small.mean() == pytest.approx(image.mean(), abs=0.02)
    assert small.std() < 0.1  # antialiased: sampling alone would keep 0.29
    with pytest.raises(ValueError, match="shape"):
        crop_resize(np.zeros((3, 8, 8)), 8)
    with pytest.raises(ValueError, match="positive size"):
        crop_resize(image, 0)


def test_boxes_are_clipped_and_those_outside_are_reported(caplog):
    clipped = transform_box((0, 10, 40, 20), 100, 200, 50)  # the crop starts at x = 50
    assert clipped is None
    boxes = transform_boxes([(0, 10, 40, 20), (40, 10, 40, 20)], 100, 200, 50)
    assert boxes == ((0.0, 5.0, 15.0, 10.0),)
    assert "outside the centre crop of a 200×100 image" in caplog.text
    with pytest.raises(ValueError, match="finite"):
        transform_box((0, 0, float("nan"), 1), 10, 10, 5)


def test_a_file_record_is_framed_with_its_boxes(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    box = (10.0, 5.0, 10.0, 10.0)
    record = Example(tmp_path / "a.png", "opacity", None, (box,), "a", "a", "test")
    assert record.load().shape == (20, 30) and record.load(40).shape == (40, 40)
    framed = record.framed(40)
    assert framed.boxes == ((10.0, 10.0, 20.0, 20.0),)
    assert framed.image.shape == (40, 40) and framed.framed(40).boxes == framed.boxes


def test_every_real_image_loads_and_crops():
    folder = realdata()
    files = sorted((folder / "open" / "images").iterdir())
    files += sorted((folder / "nih64" / "images").iterdir())[::20]
    assert len(files) > 40
    for file in files:
        image = read_image(file)
        assert image.shape == image_size(file), file
        for size in (64, 512):
            cropped = crop_resize(image, size)
            assert cropped.shape == (size, size) and 0 <= cropped.min() <= cropped.max() <= 1
            assert cropped.std() > 0.05, file


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_grey_tiff_of_8_bits_is_turned_back(tmp_path, orientation):
    grey = np.linspace(0, 255, 768).round().astype(np.uint8).reshape(24, 32)
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "turned.tif", grey, extratags=tag)
    expected = {
        1: grey,
        2: grey[:, ::-1],
        3: grey[::-1, ::-1],
        4: grey[::-1],
        5: grey.T,
        6: np.rot90(grey, -1),
        7: grey[::-1, ::-1].T,
        8: np.rot90(grey, 1),
    }[orientation]
    assert np.allclose(read_image(tmp_path / "turned.tif"), expected / 255, atol=1e-6)
    assert image_size(tmp_path / "turned.tif") == expected.shape


def test_signed_bytes_of_a_tiff_keep_their_order(tmp_path):
    signed = np.array([[-128, -1], [0, 127]], np.int8).repeat(8, 0).repeat(8, 1)
    tifffile.imwrite(tmp_path / "signed.tif", signed)
    found = read_image(tmp_path / "signed.tif")
    assert np.allclose(np.unique(found), np.array([0, 127, 128, 255]) / 255, atol=1e-3)
