"""Makes strings from files safe to show in a terminal, in a build's log and in Markdown.

A results file may come from anybody, so its strings may hold control characters, commands for a build server, or
markup.
"""

import re
import unicodedata

MOST_SHOWN = 2000
"""Characters shown of one string."""
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of control and format signs, lone surrogates, and line and paragraph separators."""
MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~/$@=^-])")
"""Characters with a meaning in Markdown or its extensions. A URL with escaped slashes does not become a link."""


def one_line(text: str) -> str:
    """Return a string as one line of plain text for a terminal and a build server.

    Invisible characters become "?". Commands for a build server (`::error`, `##[error]`) are broken up.
    """
    seen = "".join("?" if unicodedata.category(sign) in UNSEEN else sign for sign in text)
    harmless = re.sub(":(?=:)", ": ", seen).replace("##[", "## [")
    return harmless if len(harmless) <= MOST_SHOWN else harmless[: MOST_SHOWN - 1] + "…"


def markdown(text: str) -> str:
    """Return a string as one line of Markdown that shows it unchanged, also in a table."""
    entities = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKUP.sub(r"\\\1", entities).replace("www.", "www&#46;")
