"""
Text that nothing is decided on: what matches it, and how the JSON of a chunk spells it.

Most of what a model says belongs to one thing: to the text, or to one string of a call's arguments.
There a reader says what text it would only hand on; and a chunk with such a text is told by a
pattern in its bytes, and need not be read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from json.encoder import encode_basestring

#: What is not printable ASCII, or does not stand for itself in a JSON string.
_NOT_ITSELF = r'"\\\x00-\x1f\x7f-\xff'


@dataclass(frozen=True, slots=True)
class Verbatim:
    """
    Text that would be handed on, and change nothing.

    :param text: matches it, if it is not empty, and looks at nothing around it
    :param spelled: matches spellings of it in JSON, without their quotes: not all that there are,
        and where the text goes anywhere else than on, only the shortest ones
    :param quoted: whether it is handed on as JSON spells it, because it stands in a string
    """

    text: re.Pattern[str]
    spelled: re.Pattern[bytes]
    quoted: bool = False

    def handed_on(self, text: str) -> str:
        """Return what such `text` comes to."""
        return encode_basestring(text)[1:-1] if self.quoted else text

    def respelled(self, json: bytes) -> bytes:
        """Return the JSON of what a text comes to, from the JSON that `spelled` matches."""
        return json.replace(b"\\", b"\\\\").replace(b'"', b'\\"') if self.quoted else json


def spelling(escapes: str, without: str = "", end: str = "") -> re.Pattern[bytes]:
    """
    Return what matches the JSON of text, as far as it is ASCII.

    :param escapes: a pattern for the escapes that it may have
    :param without: characters that it may not have, as they stand in a set of a pattern
    :param end: a pattern for what stands at its end
    """
    itself = f"[^{_NOT_ITSELF}{without}]"
    return re.compile(f"(?=.){itself}*(?:(?:{escapes}){itself}*)*{end}".encode())
