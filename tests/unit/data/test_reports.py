"""The text of a report that is trained on; all reports here are made up."""

import os
import re
import time
from pathlib import Path

import pytest

from g2g_utils.data.openi import unredact
from g2g_utils.data.reports import clean, phrase, sections, without_heading
from g2g_utils.data.tables import read


@pytest.fixture
def shared():
    """The folder of real files, or a skip."""
    folder = Path(os.environ.get("G2G_SHARED", str(Path(__file__).parents[4] / "shared")))
    if not folder.is_dir():
        pytest.skip(f"no real reports: {folder} is absent (set G2G_SHARED)")
    return folder


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
    assert found[:2] == ("1. Mild edema. 2. Small left effusion.", "impression")


@pytest.mark.parametrize(
    "line",
    ["IMPRESSION; Edema.", "IMPRESSION:Edema.", "Impression: Edema.", "Conclusion:\n Edema."],
)
def test_the_usual_headings_however_they_are_set(line):
    assert phrase(f"{HEAD} FINDINGS: Clear.\n\n {line}\n")[:2] == ("Edema.", "impression")


def test_a_sentence_that_names_a_finding_is_no_heading():
    report = f"{HEAD} IMPRESSION: Compared to the last\n findings: no change.\n"
    assert phrase(report).text == "Compared to the last findings: no change."


@pytest.mark.parametrize("text", ["XXX 4:30 PM", "___ 4:30 PM", "Old text."])
def test_a_provisional_impression_gives_way_to_any_other(text):
    report = f"{HEAD} IMPRESSION: Edema.\n\n PROVISIONAL FINDINGS IMPRESSION (PFI): {text}\n"
    assert phrase(report)[:2] == ("Edema.", "impression")
    alone = report.replace("IMPRESSION: Edema", "FINDINGS: Clear")
    assert phrase(alone).text == ("Old text." if text == "Old text." else "Clear.")


def test_a_clinical_summary_is_no_impression():
    assert phrase(f"{HEAD} CLINICAL SUMMARY: fever\n\n FINDINGS: Clear.\n").text == "Clear."


def test_what_stands_below_an_empty_heading_is_its_text():
    note = f"{HEAD} FINDINGS: Clear.\n IMPRESSION:\n\n NOTE: Edema is new.\n"
    assert phrase(note)[:2] == ("NOTE: Edema is new.", "impression")
    organs = f"{HEAD} FINDINGS:\n LUNGS: Clear.\n HEART: Normal.\n\n COMPARISON: None.\n"
    assert phrase(organs)[:2] == ("LUNGS: Clear. HEART: Normal.", "findings")
    assert phrase(f"{HEAD} IMPRESSION: Edema.\n NOTE: Dictated late.\n").text == "Edema."


@pytest.mark.parametrize("pointer", ["As above.", "See above", "PLEASE SEE FINDINGS SECTION.", ""])
def test_an_impression_that_points_elsewhere_gives_way_to_the_findings(pointer):
    report = f"{HEAD} FINDINGS:  Moderate cardiomegaly.\n\n IMPRESSION: {pointer}\n"
    assert phrase(report)[:2] == ("Moderate cardiomegaly.", "findings")


@pytest.mark.parametrize(
    "heading", ["FINDINGS", "FINDING", "FINDNGS", "PA AND LATERAL VIEWS OF THE CHEST", "AP CHEST"]
)
def test_findings_under_odd_headings(heading):
    report = f"{HEAD} HISTORY:  Cough.\n\n {heading}:  Left effusion.\n"
    assert phrase(report)[:2] == ("Left effusion.", "findings")


def test_of_two_impressions_the_last_that_is_not_empty_counts():
    wet = " WET READ: ___ ___ 5:06 PM\n  Small effusion.\n ____________________\n"
    report = wet + HEAD + " IMPRESSION:  First.\n\n ADDENDUM:  Changed.\n\n IMPRESSION:  Second.\n"
    assert phrase(report)[:2] == ("Second.", "impression")
    assert phrase(report + "\n IMPRESSION:\n")[:2] == ("Second.", "impression")


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
    assert phrase(HEAD + body)[:2] == (text, "last paragraph")


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
    kinds = [kind for kind, *_ in sections(report)]
    assert kinds == ["other", "aside", "aside", "aside", "findings", "impression", "aside"]
    for _, text, _ in sections(report):
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


IMPRESSION_AS_WRITTEN = [
    "IMPRESSION: {}", "IMPRESSION:\n{}", "IMPRESSION\n{}", "IMPRESSION\n\n{}", "IMPRESSION\n: {}",
    "IMPRESSION - {}", "IMPRESSION- {}", "IMPRESSION -- {}", "IMPRESSION – {}", "IMPRESSION — {}",
    "IMPRESSION. {}", "IMPRESSION.\n{}", "IMPRESSION；{}", "IMPRESSION：{}", "IMPRESSION : {}",
    "IMPRESSION\u00a0: {}", "\u00a0IMPRESSION: {}", "\x0cIMPRESSION: {}", "\ufeffIMPRESSION: {}",
    "\u200bIMPRESSION: {}", "IMPRES\u00adSION: {}", "**IMPRESSION**\n{}", "**IMPRESSION:** {}",
    "**Impression**: {}", "__IMPRESSION__: {}", "## Impression\n{}", "# IMPRESSION:\n{}",
    "<b>IMPRESSION</b>\n{}", "<b>IMPRESSION:</b> {}", "<strong>Impression:</strong><br/>{}",
    "<h2>Impression</h2>{}", "<p>IMPRESSION: {}</p>", "IMPRESSION:&nbsp;{}",
    "[IMPRESSION]\n{}", "[IMPRESSION] {}", "[IMPRESSION]: {}", "(IMPRESSION) {}",
    "<IMPRESSION>\n{}",
    "*** IMPRESSION ***\n{}", "=== IMPRESSION ===\n{}", "--- IMPRESSION ---\n{}", "-IMPRESSION: {}",
    "Impression\n{}", "Impression: {}", "Impression - {}", "impression: {}", "impression\n{}",
    "Impression:\n\n{}", "IMPRESSION :- {}", "IMPRESSION:- {}",
    "IMPRESSION=> {}", "IMPRESSION | {}",
    "3. IMPRESSION: {}", "III. IMPRESSION\n{}", "IMP: {}", "IMP. {}", "IMPR: {}", "Imp: {}",
    "FINAL IMPRESSION: {}", "Final impression: {}", "IMPRESSION AND PLAN: {}",
    "IMPRESSION/RECOMMENDATION: {}", "Impression and recommendations:\n{}", "PFI: {}",
    "Conclusion\n{}", "CONCLUSION - {}", "OPINION: {}", "OPINION\n{}", "Summary: {}",
    "IMPRESSION  {}", "IMPRESSION {}", "IMPRESSON:\n{}", "INPRESSION: {}",
    "IMPRESSION (final): {}", "IMPRESSION (Final):\n{}", "Impression (preliminary): {}",
    "IMPRESSION (1): {}", "Impression -\n{}", "Impression-\n{}", "IMPRESSION #1: {}",
    "IMPRESSION #: {}", "IMPRESSION 1: {}", "IMPRESSION No. 1: {}", "Imp.: {}", "IMP.: {}",
    "Imp. : {}", "IMPR.: {}", "IMPRESSION... {}", "IMPRESSION...\n{}", "Impression\u2026\n{}",
    "Impression... {}", "[IMPRESSION]{}", "[Impression]{}", "(IMPRESSION){}", "_Impression:_ {}",
    "_IMPRESSION_\n{}", "*Impression:* {}", "*IMPRESSION*\n{}", "***IMPRESSION:*** {}",
    "__Impression:__ {}", "`IMPRESSION`: {}", "~~IMPRESSION~~: {}", "Radiologist impression: {}",
    "RADIOLOGIST IMPRESSION\n{}", "Radiologist's impression: {}", "Radiologist Impression\n{}",
    "Physician impression: {}", "Radiological impression: {}", "RADIOLOGIC IMPRESSION: {}",
    "Diagnostic impression: {}", "DIAGNOSTIC IMPRESSION\n{}", "Overall impression\n{}",
    "Chest impression: {}", "CHEST IMPRESSION: {}", "My impression: {}",
    "General impression: {}", "Summary impression: {}", "IMPRESSION SUMMARY: {}",
    "Summary of findings: {}", "IMPRESION: {}", "IMPRESSSION: {}", "IMPRESION\n{}",
    "IMPRESSSION\n{}", "Impresion: {}", "Impresssion: {}", "impresion: {}", "Imprssion:\n{}",
    "Impresion\n{}", "IMPRESSOIN: {}", "IMPERSSION: {}", "Imression: {}", "IMPRESSlON: {}",
    "lMPRESSION: {}", "CONCULSION: {}", "Conclusoin: {}", "Concluson\n{}",
    "IMPRESSION \uff1a {}", "IMPRESSION\u2236 {}", "IMPRESSION:\t{}", "\tIMPRESSION:\t{}",
    "IMPRESSION :: {}", "IMPRESSION:: {}", "IMPRESSION:. {}", "IMPRESSION. : {}",
    "> IMPRESSION: {}", ">> IMPRESSION\n{}", "\u2022 IMPRESSION: {}", "\u2022 Impression\n{}",
    "\xb7 Impression: {}", "\u25e6 IMPRESSION: {}", "\u25a0 IMPRESSION: {}",
    "\u27a2 IMPRESSION: {}", "\xbb IMPRESSION: {}", "\u2013 IMPRESSION: {}",
    "\u2014 Impression: {}", "a) IMPRESSION: {}", "C. IMPRESSION: {}", "(3) IMPRESSION: {}",
    "3) Impression\n{}", "3 - IMPRESSION: {}", "\xa7 IMPRESSION: {}", "I M P R E S S I O N: {}",
    "I M P R E S S I O N\n{}", "\u201cIMPRESSION\u201d: {}", "'IMPRESSION': {}",
    "\"impression\": {}", "IMPRESSION / PLAN: {}", "IMPRESSION & PLAN: {}",
    "IMPRESSION + PLAN\n{}", "Impression and Plan\n{}", "IMPRESSION\r\n{}", "IMPRESSION\r{}",
    "IMPRESSION\u2028{}", "IMPRESSION\x0b{}", "IMPRESSION\u3000{}",
    "\uff29\uff2d\uff30\uff32\uff25\uff33\uff33\uff29\uff2f\uff2e\uff1a{}",
    "IMPRESSI\u041eN: {}", "<u>IMPRESSION</u>: {}",
    "<span style=\"font-weight:bold\">Impression:</span> {}", "<B>IMPRESSION:</B><BR>{}",
    "<td>IMPRESSION</td><td>{}</td>", "<h3 class='x'>Impression</h3>\n<p>{}</p>",
    "&lt;b&gt;IMPRESSION:&lt;/b&gt; {}", "<label>Impression:</label> {}",
    "<IMPRESSION>{}</IMPRESSION>", "<impression>{}</impression>", "IMPRESSION:&#160;{}",
    "IMPRESSION&colon; {}", "IMPRESSION:&amp;nbsp;{}", "IMPRESSION CXR: {}",
    "IMPRESSION OF CHEST: {}", "IMPRESSION (CHEST): {}", "IMPRESSION [CHEST X-RAY]: {}",
    "IMPRESSION, CHEST: {}", "CXR IMPRESSION: {}", "IMPRESSION BY DR. SMITH: {}",
    "IMPRESSION\n========\n{}", "IMPRESSION\n----------\n{}", "IMPRESSION:\n\n\n\n{}",
    "IMPRESSION:\n \n{}", "--IMPRESSION--\n{}", "==IMPRESSION==\n{}", "##IMPRESSION\n{}",
    "###Impression:{}", "IMPRESSION = {}", "IMPRESSION -> {}", "IMPRESSION \u2192 {}",
    "IMPRESSION;{}", "IMPRESSION,\n{}", "IMPRESSION/\n{}", "IMPRESSIONS\n{}",
    "INTERPRETATION\n{}", "INTERPRETATION - {}", "Interpretation: {}", "OPINION - {}",
    "Radiological opinion: {}",
]  # fmt: skip
FINDINGS_AS_WRITTEN = [
    "FINDINGS: {}", "FINDINGS\n{}", "FINDINGS - {}", "FINDINGS. {}", "Findings\n{}", "Findings: {}",
    "findings: {}", "**FINDINGS**\n{}", "<b>Findings:</b> {}", "[FINDINGS] {}", "FINDINGS\n: {}",
    "FINDINGS：{}", "1. FINDINGS: {}", "OBSERVATIONS: {}", "Observations - {}",
]  # fmt: skip
TEXT = "Moderate left effusion."


@pytest.mark.parametrize("heading", IMPRESSION_AS_WRITTEN)
def test_impressions_as_people_write_them(heading):
    report = f"{HEAD} INDICATION: Cough.\n\n FINDINGS: Low volumes.\n\n{heading.format(TEXT)}\n"
    assert phrase(report)[:2] == (TEXT, "impression")
    assert phrase(report + "\nRecommendation: CT.\n\nELECTRONICALLY SIGNED BY: X\n").text == TEXT
    alone = phrase(heading.format(TEXT))
    assert alone is not None and alone[:2] == (TEXT, "impression")


@pytest.mark.parametrize("heading", FINDINGS_AS_WRITTEN)
@pytest.mark.parametrize("after", ["", "\n\nIMPRESSION: As above.", "\nRecommendation - CT."])
def test_findings_as_people_write_them(heading, after):
    report = f"{HEAD} Indication: Cough.\n\n{heading.format(TEXT)}{after}\n"
    assert phrase(report)[:2] == (TEXT, "findings")


@pytest.mark.parametrize(
    ("report", "found"),
    [
        ("FINDINGS: Clear. IMPRESSION: Edema.", ("Edema.", "impression")),
        ("Findings: Clear. Impression: Edema.", ("Edema.", "impression")),
        ("FINDINGS - Clear. IMPRESSION - Edema.", ("Edema.", "impression")),
        ("FINDINGS. Clear. IMPRESSION. Edema.", ("Edema.", "impression")),
        ("HISTORY: Cough FINDINGS: Clear lungs IMPRESSION: Edema.", ("Edema.", "impression")),
        ("INDICATION: Cough. COMPARISON: None. FINDINGS: Clear.", ("Clear.", "findings")),
        ("IMPRESSION: Edema. RECOMMENDATION: CT.", ("Edema.", "impression")),
        ("IMPRESSION: Edema.  NOTIFICATION: Dr. X.", ("Edema.", "impression")),
        ("FINDINGS AND IMPRESSION: Edema.", ("Edema.", "impression")),
        ("No acute disease is seen.", ("No acute disease is seen.", "last paragraph")),
        ("FINDINGS: LUNGS ARE CLEAR. IMPRESSION: NORMAL CHEST.", ("NORMAL CHEST.", "impression")),
    ],
)  # fmt: skip
def test_reports_on_one_line(report, found):
    assert phrase(report)[:2] == found


@pytest.mark.parametrize(
    "text",
    ["No acute\n findings.", "NO ACUTE\n FINDINGS.", "Unchanged from the previous\n impression",
     "Correlate with history. No findings of note.", "The findings: none. Stable.",
     "Compared to the last\n examination. Stable.", "Clear. Findings are stable."],
)  # fmt: skip
def test_words_of_a_sentence_are_no_headings(text):
    assert phrase(f"{HEAD} IMPRESSION: {text}\n").text == " ".join(text.split())


@pytest.mark.parametrize(
    ("report", "how"),
    [("IMPRESSION: Edema.", "heading"), ("IMPRESSION\nEdema.", "heading without a colon"),
     ("FINDINGS: Clear. IMPRESSION: Edema.", "heading inside a line"),
     ("Mild edema is seen.", "no heading")],
)  # fmt: skip
def test_how_a_text_was_found_is_told(report, how):
    assert phrase(report).how == how


def test_real_openi_reports_give_their_impressions(shared):
    """As one text and on one line: what the published table has under each heading comes back."""
    table = shared / "realdata/formats/openi/indiana_reports.rows1-100.csv"
    tried = 0
    for row in read(table, ("findings", "impression")):
        impression = " ".join(row["impression"].split())
        if not re.search("[a-z]{3}", impression) or ":" in impression:
            continue
        for joint in ("\n\n", "\n", " "):
            parts = (f"INDICATION: {row['indication']}", f"FINDINGS: {row['findings']}")
            found = phrase(joint.join([*parts, f"IMPRESSION: {impression}"]))
            if found.section == "impression":
                assert found.text == clean(impression)
                tried += 1
    assert tried > 200


@pytest.mark.parametrize("heading", ["IMPRESSION: ", "**Impression**\n", "Findings - ", ""])
def test_a_cell_that_repeats_its_heading(heading):
    assert without_heading(heading + "LUNGS: Clear.") == "LUNGS: Clear."


@pytest.mark.parametrize("part", [" ", "A ", "\t \n", "(", "- ", "x: ", "IMPRESSION ", "**", "<b "])
def test_no_report_takes_long(part):
    start = time.perf_counter()
    phrase(part * 9000)
    assert time.perf_counter() - start < 5


TAILS = [
    "Date dictated: 01/01/2020", "Report dictated on 01/01/2020 by John Doe", "/S/ John Doe",
    "Doe, John MD", "Final report signed by John Doe on 1/1/20", "Signed,\nJohn Doe",
    "Radiologist - Dr John Doe", "RADIOLOGIST  JOHN DOE", "Author: John Doe", "Verified: John Doe",
    "Electronically verified by DOE, JOHN", "__________________\nJohn Doe, M.D.", "JOHN DOE MD",
    "Electronically signed by: John Smith, MD",
    "Electronically signed by John Smith, MD on 01/02/2020",
    "ELECTRONICALLY SIGNED BY: JOHN SMITH", "Electronically Signed: John Smith",
    "Dictated by: Dr. Smith", "Dictated by Dr. Smith", "DICTATED BY: SMITH",
    "Dictated and authenticated by: John Smith", "Radiologist: Dr. John Smith",
    "RADIOLOGIST: JOHN SMITH, MD", "Reporting radiologist: Dr. A. Jones",
    "Attending radiologist: A. Jones", "Signed by: Dr. Smith", "Signed: Smith",
    "Report signed by: Smith", "Reported by: Dr. Smith", "Reported by Dr Smith",
    "Transcribed by: ABC 01/02/2020", "Transcriptionist: Mary Jones", "Read by: Smith",
    "Interpreted by: John Smith, MD", "Approved by: John Smith", "Verified by: John Smith",
    "Reviewed and signed by: J Smith", "Finalized by: J Smith", "Authenticated by: J Smith",
    "Workstation performed: ABC123", "This report was electronically signed by John Smith, MD",
    "This document has been electronically signed by John Smith, MD.",
    "Report electronically signed by John Smith",
    "I have personally reviewed the images and agree. John Smith, MD", "John Smith, MD",
    "Dr. John Smith", "John Smith, M.D., Ph.D.", "END OF REPORT", "*** END OF REPORT ***",
    "END OF IMPRESSION", "END OF IMPRESSION:", "Resident: Jane Doe", "Attending: Jane Doe",
    "Dictating physician: Jane Doe", "Referring physician: Jane Doe",
    "Consultant radiologist: Dr Jane Doe FRCR", "Dr Jane Doe\nConsultant Radiologist",
    "Signed electronically by Jane Doe", "E-signed by Jane Doe", "Digitally signed by Jane Doe",
    "D: 01/02/2020 T: 01/03/2020 J Smith", "cc: Dr. Jane Doe", "CC: Dr. Jane Doe",
    "Thank you for referring this patient.\nDr Jane Doe",
]  # fmt: skip


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("joint", ["\n\n", "\n"])
def test_nothing_of_a_signature_is_text(tail, joint):
    assert phrase(f"FINDINGS: Clear.\n\nIMPRESSION: {TEXT}{joint}{tail}\n").text == TEXT
    assert phrase(f"FINDINGS: {TEXT}{joint}{tail}").text == TEXT


@pytest.mark.parametrize(
    ("report", "text"),
    [
        ("Edema\nElectronically signed by: John Doe, MD", "Edema"),
        ("Edema\nDictated by Dr. Doe", "Edema"),
        ("Edema. Electronically signed by John Doe", "Edema."),
        ("Edema.  Dictated by: Dr. Doe", "Edema."),
        ("Edema.\n\nElectronically signed by:\n\nJohn Doe, MD\n01/02/2020", "Edema."),
        ("Edema. (Electronically signed by John Doe)", "Edema."),
        ("Edema. [Dictated by: JD]", "Edema."),
        ("Edema electronically signed by: John Doe", "Edema"),
        ("Edema.\n\nSigned by: X\n\nADDENDUM: Seen.\n\nIMPRESSION: Less edema.", "Less edema."),
    ],
)  # fmt: skip
def test_signatures_however_they_stand(report, text):
    assert phrase(f"IMPRESSION: {report}").text == text


@pytest.mark.parametrize("name", ["by: John Doe, MD", "by:\n\nJohn Doe, MD, radiology"])
def test_a_signature_is_no_last_paragraph(name):
    found = phrase(f"Left effusion is seen.\n\nElectronically signed {name}\n")
    assert found[:2] == ("Left effusion is seen.", "last paragraph")


@pytest.mark.parametrize(
    "text",
    [
        "Right clavicle fracture: compression is seen.", "COMPRESSION: T8 is unchanged.",
        "OCCLUSION: none of the bronchi.", "CONTUSION: mild, in the left lung.",
        "No evidence of acute disease. Findings discussed with Dr. Smith.",
        "Impression on the esophagus by the aortic arch.", "Cardiac impression is normal.",
        "Report of prior study is not available.",
        "Nodule: 3 mm. Comparison with prior is needed.", "Ratio 1:2 of heart. History of COPD.",
        "Stable since 10/12: see impression of CT.",
        "Signed consent is absent; read by the team as clear.",
        "Attending to the left base, opacity.", "Edema: mild. Effusion: small.",
        "Left: effusion. Right: clear.", "Lines: ET tube 3 cm above carina.",
        "Radiologist notes opacity.", "Dr. Smith was told of the effusion.",
        "Opacity (see comparison: prior film) is stable.", "Resident in left lung: nodule.",
        "1. FINDINGS. consistent with edema.", "Edema. 2. FINDINGS. consistent with pneumonia.",
        "Edema. Technique: limited. Small effusion.", "Nodule <b 3mm, stable >2 years.",
        "Nodule <5 mm, >2 years stable.", "Effusion <i.e. small> is new.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("joint", [" ", "\n"])
def test_text_that_looks_like_a_heading_is_kept(text, joint):
    report = f"FINDINGS: Low.\n\nIMPRESSION:{joint}{text}\n"
    assert phrase(report)[:2] == (text, "impression")


@pytest.mark.parametrize(
    "pointer",
    [
        "Same as above.", "As above.", "As described above.", "See above for details.",
        "See report.", "See findings.", "See findings above.", "Refer to findings.",
        "Please refer to the findings section.", "As noted above.", "As stated above",
        "As mentioned above.", "As detailed in the findings.", "Findings as above.",
        "Findings as described above.", "See body of report.", "Please see the above report.",
        "Per findings.", "As per findings above.", "Same.", "See comment.",
        "See comments above.", "See full report above.", "See text.", "Refer to above.",
        "Above.", "Ditto.", "Please see above report for details.", "As in findings.", "nan",
        "None", "N/A", "#N/A", "NULL.", "pending",
    ],
)  # fmt: skip
def test_an_impression_that_says_nothing_gives_way(pointer):
    report = f"FINDINGS: Low lung volumes.\n\nIMPRESSION: {pointer}"
    assert phrase(report)[:2] == ("Low lung volumes.", "findings")


@pytest.mark.parametrize(
    ("report", "found"),
    [
        ("FINDINGS:Clear.IMPRESSION:Edema.", "Edema."),
        ("Findings:Clear.Impression:Edema.", "Edema."),
        ("FINDINGS:Clear;IMPRESSION:Edema.RECOMMENDATION:CT.", "Edema."),
        ("FINDINGS: Clear.<br>IMPRESSION: Edema.", "Edema."),
        ("FINDINGS: Clear.\\nIMPRESSION: Edema.", "Edema."),
        ('"IMPRESSION: Edema."', "Edema."),
    ],
)  # fmt: skip
def test_reports_without_spaces_or_as_exported(report, found):
    assert phrase(report)[:2] == (found, "impression")
