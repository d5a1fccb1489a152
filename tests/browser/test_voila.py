"""The explorer in a real browser, served by Voilà under the smoke profile.

The tests share one page, as a user would, and each starts from the phrase it needs. Times are
printed only (the machine is shared); `benchmarks/explorer_times.py` measures.
"""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("G2G_SHARED", ROOT.parent / "shared"))
PHRASE = "small left pleural effusion"
CHOSEN = [f"✓ {word}" for word in PHRASE.split()]


def dicom(pixels) -> bytes:
    """A DICOM file of these pixels, MONOCHROME1; without any for None."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    found = FileDataset("film", {}, file_meta=meta, preamble=bytes(128))
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    if pixels is not None:
        found.Rows, found.Columns = pixels.shape
        found.BitsAllocated, found.BitsStored, found.HighBit = 16, 12, 11
        found.SamplesPerPixel, found.PixelRepresentation = 1, 0
        found.PhotometricInterpretation = "MONOCHROME1"
        found.PixelData = pixels.astype("<u2").tobytes()
    stream = io.BytesIO()
    found.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.fixture
def page(explorer, request):
    """The page, at the view tab with the plain phrase and nothing compared.

    With G2G_SCREENSHOTS naming a folder, what each test left is kept there to be looked at.
    """
    explorer.tab("View")
    if explorer.value("Compare with") != "nothing":
        explorer.choose("Compare with", "nothing")
    if explorer.value("Method") != "attention":
        explorer.choose("Method", "attention")
    if explorer.value("Phrase") != PHRASE:
        explorer.phrase(PHRASE)
    if explorer.words != CHOSEN:
        explorer.click("Content words")
    explorer.shows(*CHOSEN)
    yield explorer
    if folder := os.environ.get("G2G_SCREENSHOTS"):
        explorer.page.screenshot(path=f"{folder}/{request.node.name}.png", full_page=True)


def test_it_opens_with_notice_sides_and_words(page):
    text = page.page.locator("body").inner_text()
    assert "For research, not a medical device" in text
    assert "patient right is image left" in text
    alternative = page.alternative
    assert f"overlay of “{PHRASE}”" in alternative and "highest at image" in alternative


def test_a_word_toggles(page):
    before = page.picture
    took = page.click("✓ left")
    page.shows("✓ small", "left", *CHOSEN[2:], status="words: small pleural effusion;")
    assert page.picture != before
    page.click("left")
    page.shows(*CHOSEN)
    assert page.picture == before
    print(f"word: {took:.0f} ms")


def test_special_tokens_can_be_shown_and_chosen(page):
    page.check("start, end, padding")
    page.button("start").wait_for()
    page.click("start")
    page.shows(status="words: start small")
    page.click("✓ start")
    page.check("start, end, padding", False)
    page.shows(*CHOSEN)


def test_word_pieces_apart(page):
    whole = page.phrase("cardiomegalyosis on the left") and page.words
    assert any("·" in word for word in whole), "no word of several pieces"
    page.check("word pieces apart")
    page.page.wait_for_function(MORE_WORDS, arg=len(whole))
    page.check("word pieces apart", False)
    page.shows(*whole)


MORE_WORDS = "count => document.querySelectorAll('.g2g-on, .g2g-off').length > count"


def test_layer_range_by_keyboard_and_by_block(page):
    page.answered(page.button("mid").click)
    page.click("all layers")
    took = page.press("Layers", "ArrowRight")
    assert re.search(r"down 1\.0|mid", page.slider("Layers"))
    page.click("mid")
    page.shows(status="layers: 1 mid")
    assert not re.search("down|up", page.status)
    page.click("all layers")
    assert re.search(r"layers: \d+ down, 1 mid, \d+ up$", page.status)
    print(f"layers: {took:.0f} ms")


def test_layers_by_resolution(page):
    page.answered(page.button("all layers").click)
    every = page.status
    options = page.page.get_by_label("Resolutions").locator("option")
    label = options.last.inner_text()
    page.act(lambda: page.page.get_by_label("Resolutions").select_option(label))
    assert page.status != every
    page.click("all layers")
    assert page.status == every


def test_timesteps(page):
    before = page.status
    page.press("Timesteps", "ArrowRight")
    assert page.status != before
    page.press("Timesteps", "ArrowLeft")
    assert page.status == before


def test_curve_shows_its_confidence(page):
    assert "confidence c" not in page.numbers
    took = page.choose("Curve", "mixture")
    page.shows(numbers="confidence c =")
    page.shows(numbers="no skill")
    again = page.choose("Curve", "linear")
    page.choose("Curve", "none")
    print(f"curve with its text bias: {took:.0f} ms, another curve: {again:.0f} ms")


def test_information_with_its_words_and_what_the_film_says(page):
    before = page.picture
    assert "Presence" not in page.numbers
    took = page.choose("Method", "information")
    page.shows(numbers=f"Presence “{PHRASE}”:", status="information over all timesteps")
    assert page.picture != before and f"overlay of information of “{PHRASE}”" in page.alternative
    assert page.page.get_by_label("Curve", exact=True).is_disabled()
    again = page.click("✓ left")
    page.click("left")
    page.tab("Tokens")
    assert page.alternative.startswith("information of every word")
    page.tab("View")
    page.choose("Method", "attention × information")
    page.choose("Method", "attention")
    assert page.picture == before and "Presence" not in page.numbers
    print(f"information of a phrase: {took:.0f} ms, of a word: {again:.0f} ms")


def test_a_new_phrase(page):
    took = page.phrase("right apical pneumothorax")
    page.shows("✓ right", "✓ apical", "✓ pneumothorax")
    print(f"phrase: {took:.0f} ms")


def test_a_bad_phrase_leaves_the_last_good_view(page):
    field = page.type("Phrase", "   ")
    assert "the phrase is empty" in page.refused(lambda: field.press("Enter"))
    page.type("Phrase", PHRASE)
    page.answered(lambda: field.press("Enter"))  # the view is good already: only the line goes
    page.shows(status="words: small left pleural effusion;")


def test_a_phrase_that_is_too_long_says_what_was_cut_off(page):
    page.phrase(f"{PHRASE} and " * 30)
    page.shows(status="words cut off after")
    page.phrase("of the")
    page.shows("✓ of", "✓ the", status="function words only")


def test_swapping_sides_shows_both(page):
    page.click("Swap left/right")
    assert page.value("Phrase B") == "small right pleural effusion"
    assert page.value("Phrase") == PHRASE
    assert "A B no skill" in " ".join(page.numbers.split())


def test_comparing_two_models(page):
    page.choose("Compare with", "another model")
    alternative = page.alternative
    assert "domain-frozen-s0" in alternative and "generic-frozen-s0" in alternative


def test_views_and_opacity(page):
    before = page.picture
    page.click("mask")
    page.click("difference")
    page.click("map")
    assert page.picture == before
    page.press("Opacity", "ArrowRight")
    page.press("Opacity", "ArrowLeft")
    assert page.picture == before


def test_small_multiples(page):
    page.tab("Tokens")
    assert page.alternative.startswith("map of every token")
    page.click("✓ left")
    page.click("left")
    page.tab("Layers × timesteps")
    assert page.alternative.startswith("map of every layer and timestep")
    took = page.click("✓ left")
    print(f"grid: {took:.0f} ms")
    page.click("left")


def test_export_can_be_downloaded(page, tmp_path):
    page.answered(page.button("Export").click)
    for suffix, start in ((".png", b"\x89PNG"), (".npz", b"PK")):
        with page.page.expect_download() as download:
            page.page.get_by_role("link", name=suffix).click()
        download.value.save_as(tmp_path / "file")
        assert (tmp_path / "file").read_bytes().startswith(start)


def test_copy_as_code(page):
    page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.answered(page.button("Copy as code").click)
    code = page.page.get_by_label("Code of this view").input_value()
    assert f"model, image, '{PHRASE}'" in code
    compile(code, "copied", "exec")
    page.button("Copy to clipboard").click()
    page.button("Copied").wait_for()
    assert page.page.evaluate("navigator.clipboard.readText()") == code


def test_upload_of_a_real_radiograph(page):
    folder = SHARED / "realdata" / "open" / "images"
    if not folder.is_dir():
        pytest.skip(f"no real radiographs at {folder}")
    path = sorted(folder.iterdir())[0]
    page.act(lambda: page.upload(path))
    page.shows(numbers="no boxes known")
    assert path.name in page.alternative
    assert page.button(path.name).get_attribute("title") == f"Image {path.name}"
    page.click("✓ left")
    page.click("left")


def test_upload_of_a_dicom_file(page, tmp_path):
    path = tmp_path / "film.dcm"
    path.write_bytes(dicom(np.arange(2400, dtype=np.uint16).reshape(60, 40)))
    page.act(lambda: page.upload(path))
    assert "film.dcm" in page.alternative


BAD = {
    "holiday.png": (b"no picture at all", "not an image"),
    "empty.png": (b"", "the file is empty"),
    "big.png": (os.urandom(12 * 2**20), "not an image"),  # larger than the usual message
    "report.dcm": (dicom(None), "without pixel data"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_upload_leaves_the_last_good_view(page, tmp_path, name):
    content, problem = BAD[name]
    (tmp_path / name).write_bytes(content)
    line = page.refused(lambda: page.upload(tmp_path / name))
    assert line.startswith(f"⚠ {name}: ") and problem in line and "\n" not in line
    page.click("mask")
    page.click("map")
    page.shows(status="words: small left pleural effusion;")


def test_images_are_picked_by_thumbnail(page):
    shown = page.page.locator(".g2g button", has_text=re.compile("^8: "))
    for _ in range(4):  # uploads may have turned the page
        if shown.count() and shown.is_visible():
            break
        page.turn()
    page.act(shown.click)
    assert "image 8: " in page.alternative


def test_everything_works_with_the_keyboard(page):
    page.button("✓ effusion").focus()
    page.act(lambda: page.page.keyboard.press("Enter"))
    page.shows("✓ small", "✓ left", "✓ pleural", "effusion")
    page.button("effusion").focus()
    page.act(lambda: page.page.keyboard.press("Space"))
    reached = set()
    page.page.get_by_label("Phrase", exact=True).focus()
    for _ in range(60):
        page.page.keyboard.press("Tab")
        reached.add(page.page.evaluate(NAME_OF_FOCUS))
    expected = {
        "Swap left/right",
        "Boxes of",
        "Model",
        "Method",
        "Curve",
        "Copy as code",
        "Opacity",
    }
    assert expected <= reached, expected - reached


NAME_OF_FOCUS = """() => {
  const e = document.activeElement;
  const box = e.closest('.widget-inline-hbox');
  return (e.labels?.[0] ?? (e.tagName == 'BUTTON' ? e : box?.querySelector('label')) ?? e)
    .innerText.trim();
}"""


def test_every_control_has_a_name(page):
    page.page.get_by_role("button", name="Upload image").wait_for()
    nameless = page.page.evaluate(NAMELESS)
    assert nameless == []


NAMELESS = """() => [...document.querySelectorAll(
    '.g2g button, .g2g input, .g2g select, .g2g [tabindex="0"], .g2g [role=slider]')]
  .filter(e => e.offsetParent && getComputedStyle(e).visibility != 'hidden')
  .filter(e => !(e.innerText?.trim() || e.labels?.[0]?.innerText.trim()
    || e.getAttribute('aria-label') || e.title
    || e.closest('.widget-inline-hbox')?.querySelector('label')?.innerText.trim()))
  .map(e => e.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("width", [1024, 1280])
@pytest.mark.parametrize("tab", ["View", "Tokens", "Layers × timesteps"])
def test_nothing_is_cut_off(page, width, tab):
    page.page.set_viewport_size({"width": width, "height": 1100})
    try:
        page.tab(tab)
        assert page.page.evaluate(BEYOND) == []
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        page.page.set_viewport_size({"width": 1024, "height": 1100})


# What lies beyond the window, or is longer than its place (thumbnails have their names in titles).
BEYOND = """() => [...document.querySelectorAll('.g2g *')].filter(e => e.offsetParent
    && !e.closest('.g2g-gallery') && (e.getBoundingClientRect().right > window.innerWidth
      || e.matches('button, label, .widget-readout') && e.scrollWidth > e.clientWidth + 1))
  .map(e => `${e.className}: ${e.innerText}`)"""


def test_no_request_left_this_machine(page, outside):
    assert outside == []
