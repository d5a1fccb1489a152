"""The text of a report that is trained on; all reports here are made up."""

import pytest

from g2g_utils.data.openi import unredact
from g2g_utils.data.reports import phrase, sections

HEAD = "                                 FINAL REPORT\n"
USUAL = (
    HEAD
    + """ EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough  // eval for pneumonia

 COMPARISON:  ___

 FINDINGS:

 PA and lateral views of the chest provided.  No
 effusion.

 {heading}

 1. Mild edema.
 2. Small   left effusion.

 NOTIFICATION:   Discussed with Dr. ___ at 10:30 on ___.
"""
)


@pytest.mark.parametrize(
    "heading",
    ["IMPRESSION:", "IMPRESSIONS:", "IMPRESSION :", "IMPRESSON:", "IMPRSSION:", "CONCLUSION:",
     "CONCLUSIONS:", "FINDINGS AND IMPRESSION:", "FINDINGS/IMPRESSION:", "SUMMARY:", "OPINION:",
     "PROVISIONAL FINDINGS IMPRESSION (PFI):"],
)  # fmt: skip
def test_impressions_under_odd_headings(heading):
    found = phrase(USUAL.format(heading=heading))
    assert found == ("1. Mild edema. 2. Small left effusion.", "impression")


@pytest.mark.parametrize(
    "line",
    ["IMPRESSION; Edema.", "IMPRESSION:Edema.", "Impression: Edema.", "Conclusion:\n Edema."],
)
def test_the_usual_headings_however_they_are_set(line):
    assert phrase(f"{HEAD} FINDINGS: Clear.\n\n {line}\n") == ("Edema.", "impression")


def test_a_sentence_that_names_a_finding_is_no_heading():
    report = f"{HEAD} IMPRESSION: Compared to the last\n findings: no change.\n"
    assert phrase(report).text == "Compared to the last findings: no change."


@pytest.mark.parametrize("text", ["XXX 4:30 PM", "___ 4:30 PM", "Old text."])
def test_a_provisional_impression_gives_way_to_any_other(text):
    report = f"{HEAD} IMPRESSION: Edema.\n\n PROVISIONAL FINDINGS IMPRESSION (PFI): {text}\n"
    assert phrase(report) == ("Edema.", "impression")
    alone = report.replace("IMPRESSION: Edema", "FINDINGS: Clear")
    assert phrase(alone).text == ("Old text." if text == "Old text." else "Clear.")


def test_a_clinical_summary_is_no_impression():
    assert phrase(f"{HEAD} CLINICAL SUMMARY: fever\n\n FINDINGS: Clear.\n").text == "Clear."


def test_what_stands_below_an_empty_heading_is_its_text():
    note = f"{HEAD} FINDINGS: Clear.\n IMPRESSION:\n\n NOTE: Edema is new.\n"
    assert phrase(note) == ("NOTE: Edema is new.", "impression")
    organs = f"{HEAD} FINDINGS:\n LUNGS: Clear.\n HEART: Normal.\n\n COMPARISON: None.\n"
    assert phrase(organs) == ("LUNGS: Clear. HEART: Normal.", "findings")
    assert phrase(f"{HEAD} IMPRESSION: Edema.\n NOTE: Dictated late.\n").text == "Edema."


@pytest.mark.parametrize("pointer", ["As above.", "See above", "PLEASE SEE FINDINGS SECTION.", ""])
def test_an_impression_that_points_elsewhere_gives_way_to_the_findings(pointer):
    report = f"{HEAD} FINDINGS:  Moderate cardiomegaly.\n\n IMPRESSION: {pointer}\n"
    assert phrase(report) == ("Moderate cardiomegaly.", "findings")


@pytest.mark.parametrize(
    "heading", ["FINDINGS", "FINDING", "FINDNGS", "PA AND LATERAL VIEWS OF THE CHEST", "AP CHEST"]
)
def test_findings_under_odd_headings(heading):
    report = f"{HEAD} HISTORY:  Cough.\n\n {heading}:  Left effusion.\n"
    assert phrase(report) == ("Left effusion.", "findings")


def test_of_two_impressions_the_last_that_is_not_empty_counts():
    wet = " WET READ: ___ ___ 5:06 PM\n  Small effusion.\n ____________________\n"
    report = wet + HEAD + " IMPRESSION:  First.\n\n ADDENDUM:  Changed.\n\n IMPRESSION:  Second.\n"
    assert phrase(report) == ("Second.", "impression")
    assert phrase(report + "\n IMPRESSION:\n") == ("Second.", "impression")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (" HISTORY: Line.\n\n COMPARISON: ___.\n\n As compared to ___, no change.  Stable heart.\n",
         "As compared to ___, no change. Stable heart."),
        (" REASON FOR EXAM:  Followup.\n\n AP radiograph.\n\n Tube 3 cm above carina.\n\n",
         "Tube 3 cm above carina."),
        ("\n\n Moderate left effusion.\n", "Moderate left effusion."),
    ],
)  # fmt: skip
def test_without_sections_the_last_paragraph_counts(body, text):
    assert phrase(HEAD + body) == (text, "last paragraph")


@pytest.mark.parametrize(
    "report",
    ["", " \n\n", HEAD, HEAD + " INDICATION:  Pain.\n", HEAD + " CHEST RADIOGRAPH\n",
     HEAD + " IMPRESSION:  ___\n", "1.\n"],
)  # fmt: skip
def test_reports_that_say_nothing(report):
    assert phrase(report) is None


def test_lines_end_as_they_like():
    report = USUAL.format(heading="IMPRESSION:")
    assert phrase(report.replace("\n", "\r\n")) == phrase(report)


def test_sections_keep_all_text_in_order():
    report = USUAL.format(heading="IMPRESSION:")
    kinds = [kind for kind, _ in sections(report)]
    assert kinds == ["other", "aside", "aside", "aside", "findings", "impression", "aside"]
    for _, text in sections(report):
        assert text in report


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Normal chest x-XXXX.", "Normal chest x-ray."),
        ("XXXX XXXX.", ""),
        ("Heart normal. XXXX XXXX XXXX. Left XXXX effusion.", "Heart normal. Left effusion."),
        ("No pneumothorax in the XXXX, or effusion.", "No pneumothorax in the, or effusion."),
        ("", ""),
    ],
)  # fmt: skip
def test_redactions_leave_readable_text(text, expected):
    assert unredact(text) == expected
