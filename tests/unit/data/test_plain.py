"""Plain text: what looks equal becomes equal, what says nothing is known, nothing else changes."""

import time

import pytest

from g2g_utils.data.plain import is_empty, normalise, plain, says_nothing
from g2g_utils.text import PhraseError, check_phrase

LOOKS = "left pleural effusion"
SAME = [
    "<b>left</b> pleural effusion", "<p>left pleural effusion</p>", "left pleural<br>effusion",
    "left pleural<br/>effusion", "left<br />pleural effusion",
    "<span class=\"x\">left pleural</span> effusion",
    "<font color='red'>left</font> pleural effusion", "<div>left pleural effusion</div>",
    "<u>left</u> pleural effusion", "<ul><li>left pleural effusion</li></ul>",
    "<td>left pleural effusion</td>", "&lt;b&gt;left&lt;/b&gt; pleural effusion",
    "&amp;lt;b&amp;gt;left&amp;lt;/b&amp;gt; pleural effusion", "left&amp;nbsp;pleural effusion",
    "left&amp;amp;nbsp;pleural effusion", "left&nbsp;pleural effusion",
    "left&#160;pleural effusion", "left&#xA0;pleural effusion", "le\u115fft pleural effusion",
    "left\u034f pleural effusion", "left\U000e0100 pleural effusion",
    "le\u034fft pleural effusion", "left\u3164 pleural effusion", "left\uffa0 pleural effusion",
    "left\u180e pleural effusion", "left\u2063 pleural effusion", "left\u061c pleural effusion",
    "\u202eleft pleural effusion\u202c", "\u2067left pleural effusion\u2069",
    "left\ufe0f pleural effusion", "left\u17b5 pleural effusion", "left\u2060 pleural effusion",
    "left\ufff9 pleural effusion", "left\U000e0041 pleural effusion",
    "left\u2800pleural effusion", "left\u3000pleural effusion",
    "left\u2003pleural\u2009effusion", "left\u202fpleural effusion",
    "left\u1680pleural effusion", "left\x00pleural effusion", "left\x1fpleural effusion",
    "left\x7fpleural effusion", "left\x85pleural effusion",
    "l\u0435ft pl\u0435ural \u0435ffusion", "left pleural effusi\u043en",
    "\uff4c\uff45\uff46\uff54 pleural effusion",
    "\U0001d425\U0001d41e\U0001d41f\U0001d42d pleural effusion",
    "\U0001d4c1eft pleural effusion", "\u24db\u24d4\u24d5\u24e3 pleural effusion",
    "left pleural e\ufb00usion", "=\"left pleural effusion\"", "=\"left pleural effusion\"\n",
    "left\tpleural effusion", "left\npleural\r\neffusion", "left\u2028pleural effusion",
    "\ufeffleft pleural effusion", "\ufeff\ufeffleft pleural effusion",
    "left\xad pleural ef\xadfusion", "left \u200bpleural effusion",
    "lef\u200ct pleural effusion", "&#x6c;eft pleural effusion",
]  # fmt: skip
EXACT = [
    ("5 \xb5m nodule", "5 \u03bcm nodule"), ("2 cm\xb2 nodule", "2 cm2 nodule"),
    ("\xbd of the lung", "1/2 of the lung"), ("e\u0301panchement", "\xe9panchement"),
    ("nodule <a> b", "nodule  b"), ("a &amp; b", "a & b"), ("&amp;amp;", "&"),
    ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\U0001f469\U0001f467"),
    ("C6\u2013C7", "C6-C7"), ("left\u2010sided", "left-sided"), ("\u201cmass\u201d", "\"mass\""),
    ("\ufb01brosis", "fibrosis"), ("\u2116 3 rib", "No 3 rib"), ("\u2163 rib", "IV rib"),
    ("\u1112\u1161\u11ab", "\ud55c"),
]  # fmt: skip
UNCHANGED = [
    "gr\xf6\xdfer", "\u043b\u0435\u0432\u044b\u0439 \u0432\u044b\u043f\u043e\u0442",
    "\u5de6\u4fa7\u80f8\u8154\u79ef\u6db2", "\u0627\u0646\u0635\u0628\u0627\u0628",
    "\u05ea\u05e4\u05dc\u05d9\u05d8", "nodule <5 mm", "nodule < 5 mm > 2", "nodule <b 3mm, >2 y",
    "R&D; effusion", "AT&T effusion", "\u03b2-blocker", "\u03bcm", "m\u03c7",
    "left \U0001f642 effusion", "i.v. line", "<3 mm and >1", "x<y>z", "\u0394\u0395\u039b",
    "pH 7", "12\u2032", "n\xf3dulo", "\xc5ngstr\xf6m", "\ud55c\uad6d\uc5b4 \ud3d0",
]  # fmt: skip
NOTHING = [
    "#NV", "#WERT!", "#BEZUG!", "#VALEUR!", "#N/D", "#FIELD!", "Err:502", "err:508", "\\N",
    "N / A", "n / a", "#NOM?", "#\xa1VALOR!", "#\xbfNOMBRE?", "#ZAHL!", "#DIV/0!",
    "#\xdcBERLAUF!", "#CONNECT!", "#BLOCKED!", "#BUSY!", "#UNKNOWN!", "#REF!", "#REF", "#VALUE!",
    "#NUL!", "#NUM!", "#NUMMER!", "#I/T", "#N/B", "#YOK", "#SAYI!", "#DE\u011eER!",
    "#\u041d/\u0414", "#\u0421\u0421\u042b\u041b\u041a\u0410!", "#GETTING_DATA", "#SPILL!",
    "#CALC!", "#SAKNAS!", "#PUUTTUU!", "#ARG!", "#ADR!", "123", "2.5", "12/03/2020", "1,5", "-5",
    "\uff11\uff12", "\u0663", "50%", "3 : 4", "1e5", "(1)", "+", "?", "...", "\u2014",
    "\U0001f642", "\U0001f642\U0001f642", "\u2800", "\u3164", "\u115f", "\u034f", "\ufeff",
    "&nbsp;", "&amp;nbsp;", "<br>", "<b></b>", "<p> </p>", "&lt;br&gt;", "nan", "NaN", "None",
    "NULL", "<NA>", "<na>", "N.A.", "n.a", "na", "NaT", "undefined", "not available",
    "Not Applicable", "'", "\"\"", "''", "=\"\"", "  ", "\t", "\x00", "(null)", "[null]",
    "{none}", "-", "--", "_", "//", "\xbd", "\xb2",
]  # fmt: skip
SOMETHING = [
    "no edema", "none of the lungs is clear", "L", "\u5de6", "#1 nodule", "#edema",
    "# left effusion", "nodule #2!", "err", "nil effusion", "CT", "na+ channel edema", "x", "a",
    "NG tube", "no", "3 cm nodule", "T8", "R/O edema", "N/A effusion", "#PNEUMONIA left!",
]  # fmt: skip


@pytest.mark.parametrize("typed", SAME)
def test_what_looks_equal_is_equal(typed):
    assert " ".join(plain(typed).split()) == LOOKS


@pytest.mark.parametrize(("typed", "expected"), [*EXACT, *((t, t) for t in UNCHANGED)])
def test_what_looks_different_stays_different(typed, expected):
    assert plain(typed) == expected


@pytest.mark.parametrize("typed", NOTHING)
def test_what_says_nothing_is_refused(typed):
    assert says_nothing(typed)
    with pytest.raises(PhraseError) as caught:
        check_phrase(typed)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("typed", SOMETHING)
def test_what_says_something_is_not_empty(typed):
    assert not says_nothing(typed) and not is_empty(typed)


@pytest.mark.parametrize("typed", [*SAME, *(t for t, _ in EXACT), *UNCHANGED, *NOTHING, *SOMETHING])
def test_plain_text_is_final_and_knows_where_it_was_typed(typed):
    found = normalise(typed)
    assert plain(found.text) == found.text and len(found.text) == len(found.spans)
    assert all(0 <= start < end <= len(typed) for start, end in found.spans)


@pytest.mark.parametrize("part", ["#", "&amp;", "&lt;b ", "<b x=", "- ", "#a/", "n/", "\u034f"])
@pytest.mark.parametrize("tail", ["", "x", "!"])
def test_no_phrase_takes_long(part, tail):
    start = time.perf_counter()
    says_nothing(part * 9000 + tail)
    assert time.perf_counter() - start < 5
