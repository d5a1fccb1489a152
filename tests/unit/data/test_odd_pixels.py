"""Odd but possible files: each is read as its standard says, or refused in one line."""

import struct
import zlib

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image, ImageCms
from pydicom import uid

from g2g_utils.data import pixels
from g2g_utils.data.images import ImageError, image_size, read_image
from tests.pictures import chunk, dicom, film, item, lut, png

F8, F12, F16 = (film(7, bits) for bits in (8, 12, 16))
W8, W12, W16 = F8 / 255, F12 / 4095, F16 / 65535
U8, U12, U16 = F8.astype(np.uint8), F12.astype(np.uint16), F16.astype(np.uint16)
TURNS = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.T, 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a),
}  # fmt: skip


def refused(path, match):
    """Both ways in say one line with the file; the size may be right where only pixels are not."""
    with pytest.raises(ImageError, match=match) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def shows(path, expected, atol=1e-3):
    found = read_image(path)
    assert image_size(path) == found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=atol)


def check(path, expected, atol=1e-3):
    """What a case says: an array is what is read, a text is what the refusal says."""
    return refused(path, expected) if isinstance(expected, str) else shows(path, expected, atol)


def colours(values):
    """RGB whose channels differ, and its luminance."""
    rgb = np.dstack([values, values[::-1], values[:, ::-1]])
    return rgb, rgb @ np.array([0.299, 0.587, 0.114])


# ---------------------------------------------------------------- TIFF


def tiff(path, values, turned=1, **options):
    tags = [(274, "H", 1, turned, True)] if turned != 1 else []
    tifffile.imwrite(path, values, extratags=tags + options.pop("extratags", []), **options)
    return path


@pytest.mark.parametrize("turned", TURNS)
@pytest.mark.parametrize("kind", ["rgb", "rgba", "cmyk", "palette", "lzw", "lzw rgb", "wide lzw"])
def test_a_turned_tiff_is_turned_back(tmp_path, turned, kind):
    path, rgb, expected = tmp_path / "a.tif", np.dstack([U8] * 3), W8
    if kind == "rgb":
        tiff(path, rgb, turned, photometric="rgb")
    elif kind == "rgba":
        full = np.dstack([rgb, np.full_like(U8, 255)])
        tiff(path, full, turned, photometric="rgb", extrasamples=["unassalpha"])
    elif kind == "cmyk":
        inks = np.dstack([np.zeros_like(rgb), 255 - U8])
        tiff(path, inks, turned, photometric="separated")
    elif kind == "palette":
        table = np.tile(np.arange(256, dtype=np.uint16)[::-1] * 257, (3, 1))
        tiff(path, 255 - U8, turned, photometric="palette", colormap=table)
    else:
        pixels_ = {"lzw": U8, "lzw rgb": rgb, "wide lzw": U16}[kind]
        expected = W16 if kind == "wide lzw" else W8
        Image.fromarray(pixels_).save(path, compression="tiff_lzw", tiffinfo={274: turned})
    shows(path, TURNS[turned](expected))


def test_the_fourth_sample_of_a_tiff_is_what_its_tag_says(tmp_path):
    for values, high, bits in ((U8, 255, 8), (U16, 65535, 16)):
        for kind, alpha in (("unspecified", 0), ("unspecified", high // 3), ("unassalpha", high)):
            full = np.dstack([values] * 3 + [np.full_like(values, alpha)])
            path = tiff(tmp_path / "a.tif", full, photometric="rgb", extrasamples=[kind])
            shows(path, values / high, 2 / 2**bits)


@pytest.mark.parametrize("high", [255, 65535])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_the_alpha_of_a_tiff(tmp_path, high, planar):
    values = (U8 if high == 255 else U16).copy()
    alpha = np.full_like(values, high)
    alpha[:6], values[:6, :] = 0, high  # bright below no opacity
    values[6:] //= 64  # else a film of 10 bits in words of 16
    expected = values / (1023 if high > 255 else 255) * (alpha > 0)
    axis = 0 if planar == "separate" else -1
    for kind, count in (("minisblack", 1), ("rgb", 3)):
        full = np.stack([values] * count + [alpha], axis)
        options = {"photometric": kind, "planarconfig": planar, "extrasamples": ["unassalpha"]}
        shows(tiff(tmp_path / "a.tif", full, **options), expected, 3e-3)
        over = np.stack([values * (alpha > 0)] * count + [alpha], axis)
        options["extrasamples"] = ["assocalpha"]
        shows(tiff(tmp_path / "b.tif", over, **options), expected, 3e-3)


def test_white_is_zero_below_transparency_is_black(tmp_path):
    full = np.stack([255 - U8, np.where(np.arange(17) < 5, 0, 255) + 0 * U8], -1).astype(np.uint8)
    path = tiff(tmp_path / "a.tif", full, photometric="miniswhite", extrasamples=["unassalpha"])
    shows(path, W8 * (np.arange(17) >= 5))


@pytest.mark.parametrize("peak", [255, 4095, 65535])
def test_a_palette_of_any_depth(tmp_path, peak):
    table = (np.arange(256) * peak // 255).astype(np.uint16)
    for way in (1, -1):
        colour = np.stack([table[::way]] * 3)
        path = tiff(tmp_path / "a.tif", U8, photometric="palette", colormap=colour)
        shows(path, colour[0][F8] / peak, 2e-3)


@pytest.mark.parametrize("low", [0, 2**31 - 500, 2**31 + 9, 2**32 - 70000])
@pytest.mark.parametrize("order", "<>")
def test_unsigned_words_of_32_bits(tmp_path, low, order):
    values = (F16 + low).astype(np.uint32)
    shows(tiff(tmp_path / "a.tif", values, byteorder=order), values / values.max(), 1e-4)


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_signed_and_floating_tiffs_are_scaled_from_min_to_max(tmp_path, kind, order, photometric):
    values = (F8 - 128).astype(kind)
    path = tiff(tmp_path / "a.tif", values, byteorder=order, photometric=photometric)
    shows(path, 1 - W8 if photometric == "miniswhite" else W8, 3e-3)


def test_floats_between_0_and_1_stay_and_colour_is_luminance(tmp_path):
    half = (W16 / 2).astype(np.float32)
    shows(tiff(tmp_path / "a.tif", half), half, 1e-6)
    rgb, grey = colours(half)
    shows(tiff(tmp_path / "b.tif", rgb, photometric="rgb"), grey, 1e-6)
    shows(tiff(tmp_path / "c.tif", half, compression="zlib", predictor=False), half, 1e-6)
    hole = half.copy()
    hole[3, 3] = np.nan
    refused(tiff(tmp_path / "d.tif", hole), "NaN")
    refused(tiff(tmp_path / "e.tif", half.astype(np.complex64)), "unknown kind")


@pytest.mark.parametrize("tag", [254, 255])
def test_a_thumbnail_or_mask_before_the_film_is_passed_over(tmp_path, tag, caplog):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        small = {"subfiletype": 1} if tag == 254 else {"extratags": [(255, "H", 1, 2, True)]}
        file.write(np.full((8, 9), 99, np.uint8), metadata=None, **small)
        file.write(U16, metadata=None)
    shows(path, W16)
    assert "frames" not in caplog.text
    with tifffile.TiffWriter(path) as file:
        file.write(
            np.full((12, 17), 1, np.uint8), metadata=None, extratags=[(254, "I", 1, 4, True)]
        )
        file.write(U8, metadata=None)
        file.write(U8[::-1], metadata=None)
    shows(path, W8)
    assert "has 2 frames: the first is used" in caplog.text


def test_the_film_below_a_thumbnail(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(U8[:8, :9], metadata=None, subfiletype=1, subifds=1)
        file.write(U16, metadata=None)
    shows(path, W16)


@pytest.mark.parametrize("options", [
    {"compression": "zlib", "predictor": True}, {"tile": (16, 16)}, {"bigtiff": True},
    {"tile": (16, 16), "compression": "zlib"}, {"rowsperstrip": 5},
    {"compression": "lzma"},
])  # fmt: skip
@pytest.mark.parametrize("order", "<>")
def test_layouts_of_tiffs(tmp_path, options, order):
    rgb, grey = colours(F12)
    for values, expected in ((U12, W12), (rgb.astype(np.uint16), grey / 4095)):
        kind = "rgb" if values.ndim == 3 else "minisblack"
        path = tiff(tmp_path / "a.tif", values, photometric=kind, byteorder=order, **options)
        shows(path, expected)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate"])
def test_compressions_of_pillow(tmp_path, compression):
    path, (rgb, grey) = tmp_path / "a.tif", colours(F8)
    for mode, expected in (("L", W8), ("RGB", grey / 255), ("1", (F8 > 99) * 1.0), ("P", W8)):
        image = Image.fromarray(rgb.astype(np.uint8) if mode == "RGB" else U8)
        if mode == "1":
            image = Image.fromarray(F8 > 99)
        elif mode == "P":
            image.putpalette(bytes(v for v in range(256) for _ in range(3)))
        image.save(path, compression=compression)
        shows(path, expected, 1e-6)
    Image.fromarray(U16).save(path, compression=compression)
    shows(path, W16)
    Image.fromarray((W16 - 0.2).astype(np.float32)).save(path, compression=compression)
    shows(path, W16)


def test_bilevel_and_jpeg_tiffs(tmp_path):
    bits = F8 > 99
    for packed in ("group3", "group4"):
        Image.fromarray(bits).save(tmp_path / "a.tif", compression=packed)
        shows(tmp_path / "a.tif", bits * 1.0)
    smooth = np.add.outer(np.arange(32), np.arange(40)).astype(np.uint8) * 3
    for image in (Image.fromarray(smooth), Image.fromarray(np.dstack([smooth] * 3))):
        image.save(tmp_path / "b.tif", compression="jpeg", quality=100)
        shows(tmp_path / "b.tif", smooth / 255, 0.02)
    for kind in ("minisblack", "miniswhite"):
        path = tiff(tmp_path / "c.tif", bits, photometric=kind)
        shows(path, bits * 1.0 if kind == "minisblack" else 1.0 - bits)


def test_tiffs_of_kinds_that_nobody_shows(tmp_path):
    path = tiff(tmp_path / "a.tif", np.dstack([U8] * 3), photometric="cielab")
    refused(path, "unknown kind")
    content = tiff(tmp_path / "b.tif", U8).read_bytes()
    tag = struct.pack("<HHI", 262, 3, 1)
    assert content.count(tag) == 1
    (tmp_path / "b.tif").write_bytes(content.replace(tag, struct.pack("<HHI", 263, 3, 1)))
    refused(tmp_path / "b.tif", "whether white is zero")
    cut = tiff(tmp_path / "d.tif", np.tile(U16, (40, 40)), rowsperstrip=8)
    cut.write_bytes(cut.read_bytes()[:-9000])
    refused(cut, "TIFF")


# ---------------------------------------------------------------- PNG


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("interlaced", [False, True])
def test_the_transparent_grey_of_a_png_counts_in_its_depth(tmp_path, bits, interlaced):
    values, clear = film(3, bits), 2**bits - 1
    before = chunk(b"tRNS", struct.pack(">H", clear))
    path = png(tmp_path / "a.png", values[..., None], 0, interlaced, bits, before)
    expected = values * (values != clear)
    white = pixels.ceiling(expected.max()) if bits > 8 else clear
    shows(path, expected / white)
    shows(png(tmp_path / "b.png", values[..., None], 0, interlaced, bits), values / clear)


@pytest.mark.parametrize("bits", [8, 16])
def test_hidden_samples_set_no_level(tmp_path, bits):
    values = film(5, 8) if bits == 8 else film(5, 10)
    hidden = np.arange(17) < 4
    bright = np.where(hidden, 2**bits - 1, values)[..., None]
    alpha = np.where(hidden, 0, 2**bits - 1)[..., None] + 0 * bright
    white = 255 if bits == 8 else 1023
    expected = values * ~hidden / white
    for colour, count in ((4, 1), (6, 3)):
        full = np.concatenate([bright] * count + [alpha], -1)
        shows(png(tmp_path / "a.png", full, colour, bits=bits), expected, 4e-3)
    clear = struct.pack(">HHH", *[2**bits - 1] * 3)
    for colour, chunk_ in ((0, clear[:2]), (2, clear)):
        full = np.concatenate([bright] * (3 if colour else 1), -1)
        path = png(tmp_path / "b.png", full, colour, bits=bits, before=chunk(b"tRNS", chunk_))
        shows(path, np.where(bright[..., 0] == 2**bits - 1, 0, values) / white, 4e-3)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_palette_of_a_png(tmp_path, bits):
    values = film(3, bits)[..., None]
    full = bytes(v for k in range(2**bits) for v in [k * 255 // (2**bits - 1)] * 3)
    path = png(tmp_path / "a.png", values, 3, bits=bits, before=chunk(b"PLTE", full))
    shows(path, values[..., 0] / (2**bits - 1), 4e-3)
    refused(png(tmp_path / "b.png", values, 3, bits=bits), "without all of its palette|damaged")
    short = chunk(b"PLTE", full[:-3])
    refused(png(tmp_path / "c.png", values, 3, bits=bits, before=short), "without all|damaged")
    clear = chunk(b"PLTE", full) + chunk(b"tRNS", bytes([255] * (2**bits - 1) + [0]))
    path = png(tmp_path / "d.png", values, 3, bits=bits, before=clear)
    grey = values[..., 0] * (values[..., 0] < 2**bits - 1)
    shows(path, grey / (2**bits - 1), 4e-3)


def test_gamma_and_profiles_of_a_png_are_not_applied(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    before = chunk(b"gAMA", struct.pack(">I", 100000))
    before += chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))
    shows(png(tmp_path / "a.png", F16[..., None], 0, before=before), W16)


@pytest.mark.parametrize("bits", [8, 16])
def test_damaged_pngs_are_refused(tmp_path, bits):
    values = (film(1, bits)[..., None] + np.zeros((1, 1, 3), int))[..., : 1 if bits == 8 else 3]
    valid = png(tmp_path / "a.png", values, 0 if bits == 8 else 2, bits=bits).read_bytes()
    at = valid.index(b"IDAT")
    (length,) = struct.unpack(">I", valid[at - 4 : at])
    body = valid[at + 4 : at + 4 + length]
    few = chunk(b"IDAT", zlib.compress(zlib.decompress(body)[: len(values) * 10]))
    flipped = body[:40] + bytes([body[40] ^ 255]) + body[41:]
    end = chunk(b"IEND", b"")
    cut = chunk(b"IDAT", body[: length // 2])
    start = valid[: at - 4]
    for number, content in enumerate((
        start + few + end, start + chunk(b"IDAT", flipped) + end, start + cut + end,
        valid[:-40], start + end, valid[: at + 4] + flipped + valid[at + 4 + length :],
    )):  # fmt: skip
        path = tmp_path / f"{number}.png"
        path.write_bytes(content)
        refused(path, "damaged")


def test_an_animated_png_shows_its_first_frame(tmp_path, caplog):
    first = Image.fromarray(U8)
    first.save(tmp_path / "a.png", save_all=True, append_images=[Image.fromarray(255 - U8)])
    shows(tmp_path / "a.png", W8)
    assert "has 2 frames" in caplog.text


# ---------------------------------------------------------------- JPEG, JPEG 2000 and others

SMOOTH = np.add.outer(np.arange(24) * 4, np.arange(40) * 3).astype(np.uint8)


@pytest.mark.parametrize("turned", TURNS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_turns_any_format(tmp_path, turned, suffix):
    exif = Image.Exif()
    exif[274] = turned
    image = Image.fromarray(np.dstack([SMOOTH] * 3))
    image.save(tmp_path / f"a.{suffix}", exif=exif, quality=100)
    shows(tmp_path / f"a.{suffix}", TURNS[turned](SMOOTH / 255), 0.03)


@pytest.mark.parametrize("transform", [0, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_inks_of_a_jpeg(tmp_path, transform, progressive):
    """Adobe writes inks inverted; as YCCK their first three are YCbCr of RGB (T.872)."""
    key = 255 - SMOOTH
    inks = np.dstack([np.zeros_like(SMOOTH)] * 3 + [key])
    stored = inks  # Pillow inverts on saving
    if transform == 2:
        stored = np.dstack([np.full_like(SMOOTH, 255)] + [np.full_like(SMOOTH, 127)] * 2 + [key])
    path = tmp_path / "a.jpg"
    Image.fromarray(stored, "CMYK").save(path, quality=100, progressive=progressive)
    content = path.read_bytes()
    at = content.index(b"Adobe") + 11
    assert content[at] == 0
    path.write_bytes(content[:at] + bytes([transform]) + content[at + 1 :])
    shows(path, SMOOTH / 255, 0.03)


def test_jpegs_of_12_bits_and_cut_ones(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    at = content.index(b"\xff\xc0") + 4
    path.write_bytes(content[:at] + b"\x0c" + content[at + 1 :])
    refused(path, "a JPEG of 12 bits.*PNG")
    path.write_bytes(content[: len(content) // 2])
    refused(path, "truncated")


def test_deep_jpeg_2000(tmp_path):
    path = tmp_path / "a.jp2"
    for values, expected in ((U16, W16), (U12, W12), (U8, W8)):
        Image.fromarray(values).save(path, irreversible=False)
        shows(path, expected)
    rgb, grey = colours(F8)
    Image.fromarray(rgb.astype(np.uint8)).save(path)
    shows(path, grey / 255)
    content = path.read_bytes()
    at = content.index(b"\xff\x4f\xff\x51") + 42
    deep = bytearray(content)
    deep[at], deep[at + 3], deep[at + 6] = 15, 15, 15
    path.write_bytes(bytes(deep))
    refused(path, "JPEG 2000 in colour of 16 bits.*PNG")


def test_other_formats(tmp_path):
    rgb, grey = colours(F8)
    image = Image.fromarray(rgb.astype(np.uint8))
    for suffix in ("bmp", "webp", "ppm"):
        image.save(tmp_path / f"a.{suffix}", lossless=True)
        shows(tmp_path / f"a.{suffix}", grey / 255)
    Image.fromarray(U8).save(tmp_path / "a.gif")
    shows(tmp_path / "a.gif", W8)
    Image.fromarray(U8).save(tmp_path / "a.bmp")
    shows(tmp_path / "a.bmp", W8)
    full = np.dstack([U8] * 3 + [np.where(np.arange(17) < 5, 0, 255) + 0 * F8]).astype(np.uint8)
    Image.fromarray(full).save(tmp_path / "b.webp", lossless=True, exact=True)
    shows(tmp_path / "b.webp", W8 * (np.arange(17) >= 5))
    for white, values in ((65535, F12), (4095, F12), (255, F8)):
        head = f"P5 17 12 {white}\n".encode()
        kind = ">u2" if white > 255 else np.uint8
        (tmp_path / "a.pgm").write_bytes(head + values.astype(kind).tobytes())
        shows(tmp_path / "a.pgm", values / values.max())
    deep = colours(F12)[0].astype(">u2").tobytes()
    (tmp_path / "b.ppm").write_bytes(b"P6 17 12 65535\n" + deep)
    refused(tmp_path / "b.ppm", "more than 8 bits a channel")


OTHERS = {
    "a.npy": (b"\x93NUMPY\x01\0", "NumPy array"), "a.nii": (b"\0" * 344 + b"n+1\0", "NIfTI"),
    "a.nii.gz": (b"\x1f\x8b\x08\0", "gzip"), "a.png": (b"<!DOCTYPE html>", "web page"),
    "b.png": (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    "a.pdf": (b"%PDF-1.7", "PDF"), "a.zip": (b"PK\3\4aaaa", "unpack"),
    "a.nrrd": (b"NRRD0004", "NRRD"), "a.heic": (b"\0\0\0\x18ftypheic", "HEIF"),
    "a.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_files_that_are_no_images_are_named(tmp_path, name):
    content, said = OTHERS[name]
    (tmp_path / name).write_bytes(content + b" " * 40)
    refused(tmp_path / name, said)
    with pytest.raises(ImageError, match=said):
        image_size(tmp_path / name)


def test_gigantic_images_are_refused_before_they_are_decoded(tmp_path):
    row = chunk(b"IHDR", struct.pack(">IIBBBBB", 200_000, 60_000, 8, 0, 0, 0, 0))
    body = row + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    content = tiff(tmp_path / "a.tif", U8).read_bytes()
    for tag, old, new in ((256, 17, 200_000), (257, 12, 60_000)):
        for kind, form in ((3, "<HHIHH"), (4, "<HHII")):
            found = struct.pack(form, *((tag, kind, 1, old, 0) if kind == 3 else (tag, 4, 1, old)))
            content = content.replace(found, struct.pack("<HHII", tag, 4, 1, new))
    (tmp_path / "a.tif").write_bytes(content)
    dicom(tmp_path / "a.dcm", U8, 8, Rows=60_000, Columns=60_000)
    for name in ("a.png", "a.tif", "a.dcm"):
        refused(tmp_path / name, "resize|pixels")
        with pytest.raises(ImageError, match="resize"):
            image_size(tmp_path / name)


@pytest.mark.parametrize("shape", [(8, 4000), (4000, 8)])
def test_extreme_shapes(tmp_path, shape):
    values = np.resize(U16, shape)
    expected = values / 65535
    Image.fromarray(values).save(tmp_path / "a.png")
    shows(tmp_path / "a.png", expected)
    shows(tiff(tmp_path / "a.tif", values), expected)
    shows(dicom(tmp_path / "a.dcm", values, 16), expected)


# ---------------------------------------------------------------- DICOM


def linear(values, center, width):
    """PS3.3 C.11.2.1.2.1 as it is written."""
    inside = ((values - (center - 0.5)) / (width - 1) + 0.5) if width > 1 else 0 * values
    low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    return np.where(values <= low, 0, np.where(values > high, 1, inside))


WINDOW = {"WindowCenter": 1000, "WindowWidth": 800}
SEEN = linear(F12, 1000.0, 800.0)
EXACT = np.clip((F12 - 1000) / 800 + 0.5, 0, 1)
SIGMOID = 1 / (1 + np.exp(-4 * (F12 - 1000.0) / 800))
GROUP = {"FrameVOILUTSequence": item(**WINDOW)}
RESCALE = {"PixelValueTransformationSequence": item(RescaleSlope=2, RescaleIntercept=-100)}
SHAPED = {"WindowCenter": 1900, "WindowWidth": 1600}
TWICE = linear(F12 * 2.0 - 100, 1900.0, 1600.0)

GREY_CASES = {
    "window": (WINDOW, SEEN),
    "several windows": ({"WindowCenter": [1000, 5], "WindowWidth": [800, 1]}, SEEN),
    "more centres than widths": ({"WindowCenter": [1000, 5], "WindowWidth": 800}, SEEN),
    "centre alone": ({"WindowCenter": 1000}, W12),
    "empty function": (WINDOW | {"VOILUTFunction": ""}, SEEN),
    "function in small letters": (WINDOW | {"VOILUTFunction": "linear"}, SEEN),
    "exact": (WINDOW | {"VOILUTFunction": "LINEAR_EXACT"}, EXACT),
    "sigmoid": (WINDOW | {"VOILUTFunction": "SIGMOID"}, SIGMOID),
    "unknown function": (WINDOW | {"VOILUTFunction": "CUBIC"}, "VOI LUT Function CUBIC"),
    "threshold": ({"WindowCenter": 1000, "WindowWidth": 1}, (F12 > 999.5) * 1.0),
    "NaN width": ({"WindowCenter": 1000, "WindowWidth": "NaN"}, "WindowWidth is nan"),
    "infinite centre": ({"WindowCenter": "inf", "WindowWidth": 5}, "WindowCenter is inf"),
    "NaN slope": ({"RescaleSlope": "NaN", "RescaleIntercept": 0}, "RescaleSlope is nan"),
    "NaN intercept": ({"RescaleIntercept": "NaN"}, "RescaleIntercept is nan"),
    "empty sequences": (
        WINDOW | {"VOILUTSequence": pydicom.Sequence(), "ModalityLUTSequence": None}, SEEN,
    ),
    "one spacing": (WINDOW | {"PixelSpacing": 0.1}, SEEN),
    "three spacings": (WINDOW | {"PixelSpacing": [0.1, 0.2, 0.3]}, SEEN),
    "NaN spacing": (WINDOW | {"PixelSpacing": ["NaN", 0.3]}, SEEN),
    "zero aspect": (WINDOW | {"PixelAspectRatio": [0, 0]}, SEEN),
    "shared group": ({"SharedFunctionalGroupsSequence": item(**GROUP)}, SEEN),
    "group of the frame": (
        {"PerFrameFunctionalGroupsSequence": item(**GROUP), "WindowCenter": 9, "WindowWidth": 9},
        SEEN,
    ),
    "frame before shared": (
        {
            "PerFrameFunctionalGroupsSequence": item(**GROUP),
            "SharedFunctionalGroupsSequence": item(FrameVOILUTSequence=item(**SHAPED)),
        },
        SEEN,
    ),
    "both kinds of groups": (
        {
            "PerFrameFunctionalGroupsSequence": item(**RESCALE),
            "SharedFunctionalGroupsSequence": item(FrameVOILUTSequence=item(**SHAPED)),
        },
        TWICE,
    ),
    "rescaled": (SHAPED | {"RescaleSlope": 2, "RescaleIntercept": -100}, TWICE),
    "negative slope": (
        {"RescaleSlope": -1, "RescaleIntercept": 4095, "WindowCenter": 3095, "WindowWidth": 800},
        linear(4095.0 - F12, 3095.0, 800.0),
    ),
    "VOI LUT before window": (WINDOW | {"VOILUTSequence": lut(0, 4095 - np.arange(4096), 12)},
        1 - W12,
    ),
    "VOI LUT of a frame": (
        {"PerFrameFunctionalGroupsSequence": item(
            FrameVOILUTSequence=item(VOILUTSequence=lut(0, 4095 - np.arange(4096), 12)))}, 1 - W12,
    ),
    "modality LUT and window": (
        WINDOW | {"ModalityLUTSequence": lut(0, np.arange(4096) // 2, 16)},
        linear(F12 // 2 * 1.0, 1000.0, 800.0),
    ),
    "LUT that begins inside": (
        {"VOILUTSequence": lut(1000, np.arange(2048) * 2, 12)},
        np.clip(F12 - 1000, 0, 2047) * 2 / 4095,
    ),
    "short LUT": ({"VOILUTSequence": item(LUTDescriptor=[4096, 0, 12], LUTData=b"\1\0" * 256)},
        "256 of 4096 entries",
    ),
    "small letters": ({"PhotometricInterpretation": "monochrome1 "}, 1 - W12),
    "no photometric interpretation": ({"PhotometricInterpretation": ""}, W12),
    "unknown photometric interpretation": ({"PhotometricInterpretation": "HSV"}, "HSV is not read"),
    "inverse shape": (
        WINDOW | {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        1 - SEEN,
    ),
    "no frames": (WINDOW | {"NumberOfFrames": None}, SEEN),
}  # fmt: skip


@pytest.mark.parametrize("name", GREY_CASES)
@pytest.mark.parametrize("syntax", ["explicit", "big", "deflated", "implicit"])
def test_the_header_of_grey_dicoms(tmp_path, name, syntax):
    tags, expected = GREY_CASES[name]
    tags = {key: value for key, value in tags.items() if value is not None}
    if syntax == "big":
        tags = {k: v for k, v in tags.items() if "Sequence" not in k}
        if tags != GREY_CASES[name][0]:
            pytest.skip("LUT words are little-endian here")
    check(dicom(tmp_path / "a.dcm", U12, 12, syntax=syntax, **tags), expected)
    if not isinstance(expected, str) and "PhotometricInterpretation" not in tags:
        path = dicom(tmp_path / "b.dcm", U12, 12, "MONOCHROME1", syntax, **tags)
        shows(path, 1 - expected)


def test_a_lut_of_65536_entries(tmp_path):
    found = dicom(tmp_path / "a.dcm", U16, 16, VOILUTSequence=lut(0, np.arange(65536)[::-1], 16))
    shows(found, 1 - W16)
    signed = (F16 - 32768).astype(np.int16)
    path = dicom(tmp_path / "b.dcm", signed, 16, VOILUTSequence=lut(-32768, np.arange(65536), 16))
    shows(path, W16)


def test_contradictory_shapes_are_said(tmp_path, caplog):
    shows(dicom(tmp_path / "a.dcm", U12, 12, PresentationLUTShape="INVERSE"), W12)
    assert "contradict each other" in caplog.text


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("ranged", [False, True])
def test_padding_sets_no_level_and_is_black(tmp_path, photometric, signed, ranged):
    """PS3.3 C.7.5.1.1.2: padding lies below the film, of MONOCHROME1 above."""
    inverted = photometric == "MONOCHROME1"
    shift = -5000 if signed else 3000
    stored = (film(5, 10) + shift).astype(np.int16 if signed else np.uint16)
    value = (12000 if inverted else -20000) if signed else (60000 if inverted else 0)
    stored[3:5] = value
    tags = {"PixelPaddingValue": value}
    if ranged:
        stored[4] = limit = value + (-50 if inverted else 50)
        tags |= {"PixelPaddingRangeLimit": limit}
    path = dicom(tmp_path / "a.dcm", stored, 16, photometric)
    data = pydicom.dcmread(path)
    for name, number in tags.items():
        data.add_new(name, "SS" if signed else "US", number)
    data.save_as(path)
    expected = film(5, 10) / 1023
    expected = 1 - expected if inverted else expected
    expected[3:5] = 0
    shows(path, expected)


def test_a_high_bit_that_the_values_do_not_reach(tmp_path, caplog):
    shows(dicom(tmp_path / "a.dcm", U12 << 4, 12, HighBit=15), W12)
    assert not caplog.text
    shows(dicom(tmp_path / "b.dcm", U12, 12, HighBit=15), W12, 1e-4)
    assert "do not reach its High Bit" in caplog.text
    signed = (F12 - 2048).astype(np.int16)
    shows(dicom(tmp_path / "c.dcm", signed, 12, HighBit=15), W12, 1e-4)
    shows(dicom(tmp_path / "d.dcm", signed << 4, 12, HighBit=15), W12, 1e-4)


@pytest.mark.parametrize("kind", ["Float", "DoubleFloat"])
def test_floating_point_pixels(tmp_path, kind):
    size = 4 if kind == "Float" else 8
    values = ((W16 - 0.3) * 50).astype(f"f{size}")
    for tags, expected in (
        ({}, W16),
        ({"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "LINEAR_EXACT"},
            np.clip((values - 5.0) / 9 + 0.5, 0, 1)),
    ):  # fmt: skip
        path = dicom(tmp_path / "a.dcm", U16, 16)
        data = pydicom.dcmread(path)
        for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(data, name)
        data.BitsAllocated = 8 * size
        setattr(data, f"{kind}PixelData", values.tobytes())
        for name, value in tags.items():
            setattr(data, name, value)
        data.save_as(path)
        shows(path, expected)


def ycc(rgb):
    """Full-range YCbCr of RGB (ITU-T T.871)."""
    red, green, blue = (rgb[..., k].astype(float) for k in range(3))
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = [light, 128 + (blue - light) / 1.772, 128 + (red - light) / 1.402]
    return np.clip(np.round(np.stack(planes, -1)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("syntax", ["explicit", "big", "rle", "deflated"])
@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("kind", ["RGB", "YBR_FULL", "RGB of 16 bits"])
def test_colour_dicoms(tmp_path, syntax, planar, kind):
    rgb, grey = colours(F8 // 2 + 40)
    expected, stored, bits = grey / 255, rgb.astype(np.uint8), 8
    if kind == "YBR_FULL":
        stored = ycc(rgb)
    elif kind == "RGB of 16 bits":
        rgb, grey = colours(F12)
        stored, bits, expected = rgb.astype(np.uint16), 16, grey / 4095
        if syntax == "rle":
            pytest.skip("pydicom writes none of 16 bits in colour")
    stored = np.moveaxis(stored, -1, 0) if planar and syntax != "rle" else stored
    planar = planar if syntax != "rle" else 0
    path = dicom(
        tmp_path / "a.dcm", stored, bits, kind.split()[0], syntax, PlanarConfiguration=planar
    )
    shows(path, expected, 0.02)


def test_subsampled_and_contradictory_colour(tmp_path):
    rgb = np.dstack([np.repeat(U8[:, :8], 2, 1)] * 3)  # grey, so that halves agree
    full = ycc(rgb)
    pairs = np.stack([full[:, ::2, 0], full[:, 1::2, 0], full[:, ::2, 1], full[:, ::2, 2]], -1)
    path = dicom(
        tmp_path / "a.dcm", full, 8, "YBR_FULL_422", PixelData=pairs.tobytes(),
        PlanarConfiguration=0,
    )  # fmt: skip
    shows(path, rgb[..., 0] / 255, 0.02)
    path = dicom(tmp_path / "b.dcm", np.dstack([U8] * 3), 8, PlanarConfiguration=0)
    refused(path, "DICOM")


@pytest.mark.parametrize("first", [0, 10])
@pytest.mark.parametrize("declared", [8, 16])
@pytest.mark.parametrize("dark", [False, True])
def test_palettes_of_dicoms(tmp_path, first, declared, dark):
    table = np.arange(256) // (4 if dark else 1) * (1 if declared == 8 else 257)
    kind = np.uint8 if declared == 8 else "<u2"
    names = ("Red", "Green", "Blue")
    tags = {f"{n}PaletteColorLookupTableDescriptor": [256, first, declared] for n in names}
    tags |= {f"{n}PaletteColorLookupTableData": table.astype(kind).tobytes() for n in names}
    white = 255 if declared == 8 else pixels.ceiling(table.max())
    expected = table[np.clip(F8 - first, 0, 255)] / white
    shows(dicom(tmp_path / "a.dcm", U8, 8, "PALETTE COLOR", **tags), expected)


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGBaseline8Bit])
def test_compressed_dicoms(tmp_path, syntax):
    import io

    from pydicom.encaps import encapsulate

    lossless = syntax == uid.JPEG2000Lossless
    for values, bits in ((U8, 8), (U12, 12), (U16, 16)) if lossless else ((SMOOTH, 8),):
        buffer = io.BytesIO()
        kind = "JPEG2000" if lossless else "JPEG"
        options = {"no_jp2": True} if lossless else {"quality": 100}
        source = values << 0
        Image.fromarray(source).save(buffer, kind, **options)
        path = dicom(tmp_path / "a.dcm", values, 16 if bits == 12 else bits)
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = syntax
        data.PixelData = encapsulate([buffer.getvalue()])
        data["PixelData"].is_undefined_length = True
        data.save_as(path, enforce_file_format=True)
        expected = (values - values.min()) / np.ptp(values)
        shows(path, expected, 1e-3 if lossless else 0.03)
        whole = path.read_bytes()
        path.write_bytes(whole[: -len(buffer.getvalue()) // 2])
        refused(path, "damaged|truncated|incomplete")


@pytest.mark.parametrize("syntax", ["explicit", "rle", "deflated"])
def test_cut_and_odd_dicoms(tmp_path, syntax):
    path = dicom(tmp_path / "a.dcm", np.tile(U12, (8, 8)), 16, syntax=syntax)
    content = path.read_bytes()
    path.write_bytes(content[: -len(content) // 4])
    refused(path, "damaged")
    bare = tmp_path / "b.dcm"
    dicom(bare, U12, 12)
    bare.write_bytes(bare.read_bytes()[132:])
    shows(bare, W12)


def test_words_of_12_bits_and_rows_of_nothing(tmp_path):
    packed = dicom(tmp_path / "a.dcm", U12, 12, BitsAllocated=12, PixelData=b"\0" * 306)
    refused(packed, "12")
    for tags in ({"Rows": 0}, {"Columns": 1}):
        path = dicom(tmp_path / "b.dcm", U12, 12, **tags)
        refused(path, "only")
    many = dicom(tmp_path / "c.dcm", U12, 12, NumberOfFrames=2, PixelData=U12.tobytes() * 2)
    shows(many, W12)
    none = dicom(tmp_path / "d.dcm", U12, 12, NumberOfFrames=0)
    check(none, W12)


def test_a_deflated_bomb_is_refused(tmp_path, monkeypatch):
    from g2g_utils.data import dicom as reader

    monkeypatch.setattr(reader, "LARGEST_INFLATED", 10_000)
    path = dicom(tmp_path / "a.dcm", np.zeros((200, 200), np.uint16), 16, syntax="deflated")
    refused(path, "inflates to more")
    shows(dicom(tmp_path / "b.dcm", U12, 12, syntax="deflated"), W12)
