"""
Reads JSON as it streams: where values end, with repairs of a few JSON5 and Python spellings.

The grammar is JSON's (RFC 8259). Six spellings outside it are accepted because each has one
possible meaning, and are written as JSON:

- a raw control character in a string becomes its escape;
- a string in single quotes gets double quotes (and backslash-quote becomes the quote);
- a comma before a closing bracket is dropped;
- `True`, `False` and `None` become `true`, `false` and `null`;
- a key without quotes gets quotes;
- comments (`//` to the end of the line, `/* */`) are dropped.

Everything else passes unchanged: white space, the order of keys, the spelling of numbers and of
escapes. Two things pass although JSON does not allow them, and are counted in `error_count`: an
unknown escape, and a raw control character after a backslash, whose own escape would change the
meaning of the backslash. In both cases the end of the string is still certain, so a quote or a tag
in it is still data. At anything else that JSON does not allow, the reader stops before it with
`Status.BROKEN`.

Only two things are held back: the beginning of a word or of an escape, and a comma with the white
space after it.

The states of `StreamingJson`, besides those of a comment (see `json_states`):

    state             reads                                    next state
    before_value      white space (dropped), a value           by the value's first character:
                                                                 in_string, in_scalar,
                                                                 first_key ("{"), first_item ("[")
    value             the same, after a colon; the white       as for before_value
                        space passes
    first_key         "}" or a key                             after_value; in_string or bare_key
    next_key          the same, after a comma                  as for first_key
    bare_key          a key without quotes                     colon
    colon             ":"                                      value
    first_item        "]" or a value                           after_value; as for before_value
    next_item         the same, after a comma                  as for first_item
    in_string         up to the closing quote                  after_value; colon after a key
    in_escape         one escape                               in_string
    in_scalar         a number or a word                       after_value
    after_value       "," or the closing bracket               next_key or next_item; after_value,
                                                                 complete at the last one
"""

from __future__ import annotations

import re
from collections.abc import Callable
from json.encoder import encode_basestring

from blockops.toolcalls.grammar.json_states import (
    SPACE,
    WORD,
    CommentBudget,
    JsonStateMachine,
    Status,
)
from blockops.toolcalls.verbatim import Verbatim, json_text_pattern

MAX_DEPTH = 512
"""Nested brackets. `json.loads`, which clients use, fails at about twice that depth."""

MAX_HELD_SPACE = 1_024
"""
Characters of white space held after a comma, until it is certain whether a value follows. White
space after them is dropped.
"""

BARE_KEY = re.compile(r"[^\W\d][\w$]*|\$[\w$]*")
_TOKEN_START = re.compile(r"[\w\"'{\[$+.-]")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LITERALS = {
    "true": "true",
    "false": "false",
    "null": "null",
    "True": "true",
    "False": "false",
    "None": "null",
}
_STRING_TEXT = {
    # The part of a string that passes unchanged: characters and the two-character escapes.
    '"': re.compile(r'[^"\\\x00-\x1f]*+(?:\\["\\/bfnrt][^"\\\x00-\x1f]*+)*+'),
    "'": re.compile(r"[^'\"\\\x00-\x1f]*+(?:\\[\"\\/bfnrt][^'\"\\\x00-\x1f]*+)*+"),
}
# In a chunk's JSON, the backslash of the text's own escape is escaped by another backslash.
_ESCAPE_IN_CHUNK = r'\\\\(?:\\["\\]|[/bfnrt])'
_VERBATIM = {
    '"': Verbatim(_STRING_TEXT['"'], json_text_pattern(_ESCAPE_IN_CHUNK)),
    "'": Verbatim(_STRING_TEXT["'"], json_text_pattern(_ESCAPE_IN_CHUNK, excluded="'")),
}
_ESCAPE = re.compile(r"\\(?:[\"\\/bfnrt]|u[0-9a-fA-F]{4})")
_PARTIAL_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_MAX_ESCAPE = len(r"\uXXXX")


class StreamingJson(JsonStateMachine):
    """
    Reads one JSON value, from its first character to its last. White space before it is dropped.

    :param comments: the budget for its comments
    :param forbidden_key: a word that is not accepted as a key without quotes
    :ivar error_count: the number of constructs that passed although JSON does not allow them
    :ivar closing_bracket: the bracket that ended the value, which is not written
    """

    __slots__ = (
        "_forbidden_key",
        "_missing_brackets",
        "_quote",
        "_state_after_string",
        "closing_bracket",
        "error_count",
    )

    def __init__(self, comments: CommentBudget | None = None, forbidden_key: str = "") -> None:
        super().__init__(self._before_value, comments)
        self._forbidden_key = forbidden_key
        self.error_count = 0
        self.closing_bracket = ""
        self._state_after_string = self._state
        self._missing_brackets: list[str] = []
        self._quote = '"'

    def feed(self, text: str, start: int, out: list[str]) -> int:
        """Read the next piece of the text; see `ValueReader.feed`."""
        self._unwritten_from = pos = start
        self._out = out
        size = len(text)
        while pos < size and self.status is Status.OPEN:
            pos = self._state(text, pos)
        if pos > self._unwritten_from:
            out.append(
                text[self._unwritten_from : pos] if self._unwritten_from or pos < size else text
            )
        return pos

    @property
    def verbatim(self) -> Verbatim | None:
        """The text of a string without characters that have to be replaced."""
        return _VERBATIM[self._quote] if self._state == self._in_string else None

    def completion(self) -> str | None:
        """Return the text missing before the last bracket; see `ValueReader.completion`."""
        state = self._interrupted_state if self._state == self._in_line_comment else self._state
        if state == self._in_scalar:
            completion = _scalar_to_json(self.pending)
        elif state in (self._first_key, self._first_item, self._after_value):
            completion = ""
        elif state in (self._next_key, self._next_item):
            completion = self.pending[1:]
        else:
            completion = None
        return None if completion is None else completion + "".join(self._missing_brackets[:0:-1])

    def _before_value(self, text: str, pos: int) -> int:
        pos = self._unwritten_from = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        return self._start_value(text, pos) if pos < len(text) else pos

    def _value(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        return self._start_value(text, pos) if pos < len(text) else pos

    def _start_value(self, text: str, pos: int) -> int:
        """Enter the state for the value that begins at `pos`."""
        char = text[pos]
        if char in "\"'":
            return self._start_string(text, pos, self._after_value)
        if char in "{[" and len(self._missing_brackets) < MAX_DEPTH:
            self._missing_brackets.append("}" if char == "{" else "]")
            self._state = self._first_key if char == "{" else self._first_item
            return pos + 1
        if WORD.match(text, pos).end() > pos:  # type: ignore[union-attr]
            self._state = self._in_scalar
            return pos
        return self._start_comment_or_break(text, pos)

    def _after_value(self, text: str, pos: int) -> int:
        if not self._missing_brackets:
            self.status = Status.COMPLETE
            return pos
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        char = text[pos]
        if char == ",":
            self._flush(text, pos)
            self.pending = ","
            self._unwritten_from = pos + 1
            self._state = self._next_key if self._missing_brackets[-1] == "}" else self._next_item
            return pos + 1
        if char == self._missing_brackets[-1]:
            return self._close_bracket(text, pos)
        return self._start_comment_or_break(text, pos)

    def _close_bracket(self, text: str, pos: int) -> int:
        bracket = self._missing_brackets.pop()
        self._state = self._after_value
        if not self._missing_brackets:
            self._flush(text, pos)
            self._unwritten_from = pos + 1
            self.closing_bracket = bracket
            self.status = Status.COMPLETE
        return pos + 1

    # Arrays and objects.

    def _first_item(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] == "]":
            return self._close_bracket(text, pos)
        return self._start_value(text, pos)

    def _first_key(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] == "}":
            return self._close_bracket(text, pos)
        return self._start_key(text, pos)

    def _next_item(self, text: str, pos: int) -> int:
        pos = self._resolve_comma(text, pos)
        if pos == len(text) or self._state == self._after_value:
            return pos
        return self._start_value(text, pos)

    def _next_key(self, text: str, pos: int) -> int:
        pos = self._resolve_comma(text, pos)
        if pos == len(text) or self._state == self._after_value:
            return pos
        return self._start_key(text, pos)

    def _resolve_comma(self, text: str, pos: int) -> int:
        """Hold the comma back until a value follows; drop it before a closing bracket."""
        end = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        self.pending += text[pos : min(end, pos + MAX_HELD_SPACE + 1 - len(self.pending))]
        self._unwritten_from = end
        if end == len(text) or text[end] == "/":
            return end
        if text[end] == self._missing_brackets[-1]:
            self._out.append(self.pending[1:])
            self.pending = ""
            return self._close_bracket(text, end)
        if _TOKEN_START.match(text, end):
            self._out.append(self.pending)
            self.pending = ""
        return end

    def _start_key(self, text: str, pos: int) -> int:
        if text[pos] in "\"'":
            return self._start_string(text, pos, self._colon)
        if BARE_KEY.match(text, pos):
            self._state = self._bare_key
            return pos
        return self._start_comment_or_break(text, pos)

    def _bare_key(self, text: str, pos: int) -> int:
        end = self._read_word(text, pos)
        if end == len(text):
            return end
        if not BARE_KEY.fullmatch(self.pending) or self.pending == self._forbidden_key:
            return self._break(end)
        self._out.append(f'"{self.pending}"')
        self.pending = ""
        self._state = self._colon
        return end

    def _colon(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] != ":":
            return self._start_comment_or_break(text, pos)
        self._state = self._value
        return pos + 1

    # Numbers and words.

    def _in_scalar(self, text: str, pos: int) -> int:
        end = self._read_word(text, pos)
        if end == len(text):
            return end
        scalar = _scalar_to_json(self.pending)
        if scalar is None:
            return self._break(end)
        self._out.append(scalar)
        self.pending = ""
        self._state = self._after_value
        return end

    # Strings.

    def _start_string(self, text: str, pos: int, state_after: Callable[[str, int], int]) -> int:
        self._state_after_string = state_after
        self._state = self._in_string
        self._quote = text[pos]
        return pos + 1 if self._quote == '"' else self._replace(text, pos, pos + 1, '"')

    def _in_string(self, text: str, pos: int) -> int:
        pos = _STRING_TEXT[self._quote].match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        char = text[pos]
        if char == self._quote:
            self._state = self._state_after_string
            if not self._missing_brackets:
                self.status = Status.COMPLETE
            return pos + 1 if char == '"' else self._replace(text, pos, pos + 1, '"')
        if char == "\\":
            self._flush(text, pos)
            self._state = self._in_escape
            return pos
        return self._replace(text, pos, pos + 1, encode_basestring(char)[1:-1])

    def _in_escape(self, text: str, pos: int) -> int:
        pending_length = len(self.pending)
        escape = self.pending + text[pos : pos + _MAX_ESCAPE - pending_length]
        if match := _ESCAPE.match(escape):
            replacement = match.group()
            end = pos + match.end() - pending_length
        elif _PARTIAL_ESCAPE.fullmatch(escape):
            self.pending = escape
            self._unwritten_from = len(text)
            return self._unwritten_from
        elif escape[1] == "'":
            replacement = "'"
            end = pos + 2 - pending_length
        else:
            self.error_count += 1
            replacement = escape[: 2 if escape[1] < " " else max(pending_length, 1)]
            end = pos + len(replacement) - pending_length
        self.pending = ""
        self._state = self._in_string
        return self._replace(text, pos, end, replacement)


def _scalar_to_json(scalar: str) -> str | None:
    """Return a number or a literal as JSON, or None if `scalar` is neither."""
    return scalar if _NUMBER.fullmatch(scalar) else _LITERALS.get(scalar)
