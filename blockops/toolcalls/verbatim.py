"""
Patterns for text that the parser would pass through unchanged, as text and as escaped JSON.

Most of an answer is the inside of ordinary text or of one string of a call's arguments. The parser
and its readers publish a pattern for such text; a chunk whose bytes match need not be decoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from json.encoder import encode_basestring

#: Characters that are not printable ASCII, or that JSON strings escape.
_ESCAPED_OR_NOT_ASCII = r'"\\\x00-\x1f\x7f-\xff'


@dataclass(frozen=True, slots=True)
class Verbatim:
    """
    Text that passes through without a change of the parser's state.

    :param pattern: matches such text if it is not empty; it looks at nothing around the text
    :param json_pattern: matches JSON spellings of such text, without their quotes: not all
        spellings, and only the shortest ones where the text goes into another event
    :param is_json_string: True if the text is the inside of a JSON string of the arguments, so that
        it is passed on as escaped JSON
    """

    pattern: re.Pattern[str]
    json_pattern: re.Pattern[bytes]
    is_json_string: bool = False

    def output_text(self, text: str) -> str:
        """Return the text that the parser would emit for `text`."""
        return encode_basestring(text)[1:-1] if self.is_json_string else text

    def output_json(self, json: bytes) -> bytes:
        """
        Return the JSON of the text that the parser would emit for `json`.

        :param json: the JSON of a text, without its quotes, which `json_pattern` matches
        """
        if not self.is_json_string:
            return json
        return json.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def json_text_pattern(escapes: str, excluded: str = "", end: str = "") -> re.Pattern[bytes]:
    """
    Return a pattern for the JSON spelling of ASCII text.

    :param escapes: a pattern for the escape sequences that it may contain
    :param excluded: characters that it must not contain, as written in a pattern's set
    :param end: a pattern for its end
    """
    plain = f"[^{_ESCAPED_OR_NOT_ASCII}{excluded}]"
    return re.compile(f"(?=.){plain}*(?:(?:{escapes}){plain}*)*{end}".encode())
