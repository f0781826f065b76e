"""The literals that the scanner looks for, and the patterns that find where one may begin."""

from __future__ import annotations

import re
from functools import lru_cache

from blockops.toolcalls.dialect import Dialect
from blockops.toolcalls.verbatim import Verbatim, json_text_pattern

THINK_OPEN = "<think>"

Openers = dict[str, tuple[Dialect, ...]]
"""The text of each opener -> the dialects that declare it, in the order in which they are tried."""


class OpenerTable:
    """
    The literals to look for: the openers of `dialects`, and `<think>`.

    :param dialects: the dialects, in the order in which they are tried
    :ivar anywhere: openers that may stand anywhere -> their dialects, the longest opener first
    :ivar line_start: the same for openers that need the start of a line
    :ivar in_line: matches the characters of a line that need a closer look
    :ivar in_fence: the same in a fence where calls count
    :ivar verbatim: text inside a line that holds no such character and no space at its end
    :ivar is_plain: matches such text with any blanks at its end
    """

    def __init__(self, dialects: tuple[Dialect, ...]) -> None:
        anywhere: Openers = {THINK_OPEN: ()}
        line_start: Openers = {}
        for dialect in dialects:
            for opener in dialect.openers:
                openers = line_start if opener.line_start else anywhere
                openers[opener.text] = (*openers.get(opener.text, ()), dialect)
        first_characters = "".join(sorted({re.escape(text[0]) for text in anywhere}))
        self.verbatim = Verbatim(
            re.compile(rf"[^{first_characters}`\n]*[^{first_characters}`\s]"),
            json_text_pattern(
                rf'\\(?![{first_characters}])["\\/]', excluded=f"`{first_characters}", end="(?<! )"
            ),
        )
        self.is_plain = re.compile(
            rf"[^{first_characters}`\n]*[^{first_characters}`\s][ \t]*"
        ).fullmatch
        self.in_line = re.compile(rf"[{first_characters}`\n]")
        self.in_fence = re.compile(rf"[{first_characters}\n]")
        # The longest first: an opener may begin with a shorter one.
        self.anywhere = dict(sorted(anywhere.items(), key=lambda item: -len(item[0])))
        self.line_start = dict(sorted(line_start.items(), key=lambda item: -len(item[0])))


opener_table = lru_cache(maxsize=16)(OpenerTable)
"""Returns the table for a tuple of dialects. All requests have the same one or two tuples."""
