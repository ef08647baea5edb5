"""A step's text without case, spacing and punctuation, for `search.merge text`."""

import re
import unicodedata

_CLOSING_MARKS = re.compile(r"[.,;:?]+(?=\s|$)")


def folded(text: str) -> str:
    """`text` without what wording leaves open: case, runs of white space, marks that close a word, Unicode forms.

    Marks inside numbers and formulas stay ("3.5", "2:3", "5!", "f'(x)"), so that no two calculations fold into one.
    """
    unmarked = _CLOSING_MARKS.sub(" ", unicodedata.normalize("NFKC", text))
    return " ".join(unmarked.casefold().split())
