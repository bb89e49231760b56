"""Strings from files, made safe to show: in a terminal, in a build's log, in Markdown.

A results file may come from anybody, so its strings may hold what moves the cursor, gives a build server orders, or
draws a page of its own.
"""

import re
import unicodedata

MOST_SHOWN = 2000
"""Characters shown of one string."""
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of control and format signs, lone surrogates, and line and paragraph separators."""
MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~/$@=^-])")
"""What Markdown, or an extension of it, gives a meaning. A URL whose slashes are escaped is not made a link."""


def one_line(text: str) -> str:
    """Return a string as one line that a terminal and a build server take for plain text.

    Signs that are not seen become "?". Orders to a build server (`::error`, `##[error]`) are broken up.
    """
    seen = "".join("?" if unicodedata.category(sign) in UNSEEN else sign for sign in text)
    harmless = seen.replace("::", ": :").replace("##[", "## [")
    return harmless if len(harmless) <= MOST_SHOWN else harmless[: MOST_SHOWN - 1] + "…"


def markdown(text: str) -> str:
    """Return a string as one line of Markdown that shows it letter by letter, in a table too."""
    entities = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKUP.sub(r"\\\1", entities).replace("www.", "www&#46;")
