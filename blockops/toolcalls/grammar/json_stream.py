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

Everything else passes unchanged. Two things pass although JSON does not allow them, and are counted
in `error_count`: an unknown escape, and a raw control character after a backslash, whose own escape
would change the meaning of the backslash. In both cases the end of the string is still certain, so
a quote or a tag in it is still data. Before anything else that JSON does not allow, the reader
stops, and its status is "broken".

The states of `StreamingJson` are methods `(text, pos) -> pos`: each reads as much of `text` from
`pos` as belongs to it, sets the next state and returns the position that it reached.

    state           reads                              next state
    between_tokens  white space, then the token that   after_slash at the "/" of a comment;
                      is expected                        in_string, in_word, between_tokens
    after_slash     the comment's second character     in_comment; broken at any other
    in_comment      the comment, with `Comments`       between_tokens
    in_string       up to the closing quote            between_tokens
    in_escape       one escape                         in_string
    in_word         a number, a literal, or a key      between_tokens
                      without quotes

between_tokens reads the token after them with the method in `_expected`, of the same signature:

    expected        token                              expected next
    value           the beginning of a value           after_value; key after "{", item after "["
    item            the same, or "]"                   the same; after_value
    key             the beginning of a key, or "}"     colon; after_value
    colon           ":"                                value
    after_value     "," or the closing bracket         key or item; after_value

At the last bracket, or at the end of a value without brackets, the value is complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Literal

from blockops.toolcalls.partial_match import partial_suffix_start

MAX_DEPTH = 512
"""Nested brackets. `json.loads`, which clients use, fails at about twice that depth."""

MAX_WORD = 4_096
"""Characters of one number, one literal, or one key without quotes."""

MAX_COMMENTS = 16_384
"""Characters of all comments of one value, unless the caller sets less."""

MAX_HELD_SPACE = 1_024
"""Characters of white space held after a comma until a value follows; any more are dropped."""

SPACE = re.compile(r"[ \t\r\n]*")
"""JSON's white space (RFC 8259, section 2), and the white space between tags."""

_WORD = re.compile(r"[\w$+.-]*")
_WORD_START = re.compile(r"[\w$+.-]")
_TOKEN_AFTER_COMMA = re.compile(r"[\w\"'{\[$+.-]")
_BARE_KEY = re.compile(r"[^\W\d][\w$]*|\$[\w$]*")
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
_ESCAPE = re.compile(r"\\(?:[\"\\/bfnrt]|u[0-9a-fA-F]{4})")
_PARTIAL_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_MAX_ESCAPE = len(r"\uXXXX")


_State = Callable[[str, int], int]
Status = Literal["open", "complete", "broken"]
"""More text may belong to the value, it has ended, or the next character cannot belong to it."""


class Comments:
    """
    Reads the comments in the values that share it.

    A comment is broken where it contains the tag that ends the call, and where all comments
    together exceed their bound. Text may be read again after each opener in it, and a comment may
    hide many openers: without the bound, that would cost quadratic time.

    :param closing_tag: the tag that ends the call; "" if comments may contain any text
    :ivar remaining: the characters of comments that are left
    :ivar partial_closing_tag: the beginning of the tag with which the comments' text ends so far
    """

    def __init__(self, limit: int = MAX_COMMENTS, closing_tag: str = "") -> None:
        self.status: Status = "complete"
        self.is_line_comment = False
        self.remaining = limit
        self.partial_closing_tag = ""
        self._closing_tag = closing_tag
        self._ends_with_star = False

    def start(self, second_char: str) -> None:
        self.status = "open"
        self.is_line_comment = second_char == "/"
        self._ends_with_star = False

    def feed(self, text: str, pos: int) -> int:
        if self._ends_with_star and text[pos] == "/":
            end = pos + 1
        elif self.is_line_comment:
            end = text.find("\n", pos)
        else:
            end = text.find("*/", pos)
            end = end + 2 if end >= 0 else -1
        if end >= 0:
            self.status = "complete"
        else:
            end = len(text)
            self._ends_with_star = not self.is_line_comment and text.endswith("*")
        limit = min(end, pos + self.remaining)
        tag_start = self._find_closing_tag(text, pos, limit)
        if tag_start >= 0:
            self.status = "broken"
            return tag_start
        self.remaining -= limit - pos
        if limit < end:
            self.status = "broken"
        return limit

    def _find_closing_tag(self, text: str, pos: int, end: int) -> int:
        """Return the tag's position or -1; if the tag began in an earlier piece, return `pos`."""
        if not self._closing_tag:
            return -1
        partial_length = len(self.partial_closing_tag)
        comment = self.partial_closing_tag + text[pos:end]
        start = comment.find(self._closing_tag)
        if start >= 0:
            self.partial_closing_tag = comment[start:partial_length]
            return pos + max(start - partial_length, 0)
        partial_start = partial_suffix_start(comment, self._closing_tag)
        self.partial_closing_tag = comment[partial_start:] if end == len(text) else ""
        return -1


class StreamingJson:
    """
    Reads one JSON value, from its first character to its last. White space before it is dropped.

    :param forbidden_key: a word that is not accepted as a key without quotes
    :ivar pending: text that was read but may have to be written differently: a comma with the white
        space after it, the beginning of a word or of an escape. It was not written, and never is if
        the value is broken
    :ivar error_count: the number of constructs that passed although JSON does not allow them
    :ivar closing_bracket: the last bracket of an object or array; "" for other values and while the
        value is open. `feed` does not append it: the caller does, once it is certain that the call
        is complete
    """

    def __init__(self, comments: Comments | None = None, forbidden_key: str = "") -> None:
        self.status: Status = "open"
        self.pending = ""
        self.error_count = 0
        self.closing_bracket = ""
        self._state = self._between_tokens
        self._expected: _State = self._value
        self._comments = comments or Comments()
        self._forbidden_key = forbidden_key
        self._missing_brackets: list[str] = []
        self._quote = '"'
        self._out: list[str] = []
        # The position in the current text up to which it was written to `_out` or dropped.
        self._unwritten_from = 0

    def feed(self, text: str, start: int, out: list[str]) -> int:
        """
        Read `text` from `start`, append the value's JSON to `out`, return the position reached.

        That is the end of `text` while the value is open, else the first character after it.
        """
        self._unwritten_from = pos = start
        self._out = out
        size = len(text)
        while pos < size and self.status == "open":
            pos = self._state(text, pos)
        if pos > self._unwritten_from:
            out.append(text[self._unwritten_from : pos])
        return pos

    def completion(self) -> str | None:
        """Return the text missing before `closing_bracket`, or None if more than brackets is."""
        # The end of the text completes a comment that ends with the line.
        is_in_line_comment = self._state == self._in_comment and self._comments.is_line_comment
        is_between_tokens = is_in_line_comment or self._state == self._between_tokens
        if self._state == self._in_word and self._expected == self._after_value:
            completion = _scalar_to_json(self.pending)
        elif is_between_tokens and self._expected not in (self._colon, self._value):
            completion = self.pending[1:]
        else:
            completion = None
        return None if completion is None else completion + "".join(self._missing_brackets[:0:-1])

    def _flush(self, text: str, pos: int) -> None:
        if pos > self._unwritten_from:
            self._out.append(text[self._unwritten_from : pos])
        self._unwritten_from = pos

    def _replace(self, text: str, pos: int, end: int, replacement: str) -> int:
        self._flush(text, pos)
        self._out.append(replacement)
        self._unwritten_from = end
        return end

    def _break(self, pos: int) -> int:
        self.status = "broken"
        return pos

    def _between_tokens(self, text: str, pos: int) -> int:
        end = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if self.pending:
            # After a comma: both are held until the next token shows if the comma is dropped.
            self.pending += text[pos : min(end, pos + MAX_HELD_SPACE + 1 - len(self.pending))]
            self._unwritten_from = end
        elif not self._missing_brackets:
            self._unwritten_from = end
        if end == len(text):
            return end
        if text[end] == "/":
            self._flush(text, end)
            self._unwritten_from = end + 1
            self._state = self._after_slash
            return end + 1
        if self.pending and _TOKEN_AFTER_COMMA.match(text, end):
            self._out.append(self.pending)
            self.pending = ""
        return self._expected(text, end)

    def _after_slash(self, text: str, pos: int) -> int:
        if text[pos] not in "/*":
            self.pending += "/"
            return self._break(pos)
        self._comments.start(text[pos])
        self._unwritten_from = pos + 1
        self._state = self._in_comment
        return pos + 1

    def _in_comment(self, text: str, pos: int) -> int:
        pos = self._unwritten_from = self._comments.feed(text, pos)
        if self._comments.status != "open":
            self._state = self._between_tokens
        return self._break(pos) if self._comments.status == "broken" else pos

    def _value(self, text: str, pos: int) -> int:
        char = text[pos]
        if char in "{[" and len(self._missing_brackets) < MAX_DEPTH:
            self._missing_brackets.append("}" if char == "{" else "]")
            self._expected = self._key if char == "{" else self._item
            return pos + 1
        return self._start_token(text, pos, _WORD_START, self._after_value)

    def _item(self, text: str, pos: int) -> int:
        return self._close_bracket(text, pos) if text[pos] == "]" else self._value(text, pos)

    def _key(self, text: str, pos: int) -> int:
        if text[pos] == "}":
            return self._close_bracket(text, pos)
        return self._start_token(text, pos, _BARE_KEY, self._colon)

    def _colon(self, text: str, pos: int) -> int:
        if text[pos] != ":":
            return self._break(pos)
        self._expected = self._value
        return pos + 1

    def _after_value(self, text: str, pos: int) -> int:
        bracket = self._missing_brackets[-1]
        if text[pos] == bracket:
            return self._close_bracket(text, pos)
        if text[pos] != ",":
            return self._break(pos)
        self._flush(text, pos)
        self.pending = ","
        self._unwritten_from = pos + 1
        self._expected = self._key if bracket == "}" else self._item
        return pos + 1

    def _close_bracket(self, text: str, pos: int) -> int:
        bracket = self._missing_brackets.pop()
        if self.pending:
            # The comma before the bracket is dropped, the white space after it is not.
            self._out.append(self.pending[1:])
            self.pending = ""
        if not self._missing_brackets:
            self._flush(text, pos)
            self._unwritten_from = pos + 1
            self.closing_bracket = bracket
        return self._end_value(text, pos + 1)

    def _start_token(self, text: str, pos: int, word: re.Pattern[str], expected: _State) -> int:
        is_string = text[pos] in "\"'"
        if not is_string and not word.match(text, pos):
            return self._break(pos)
        self._expected = expected
        if is_string:
            self._state = self._in_string
            self._quote = text[pos]
            return pos + 1 if self._quote == '"' else self._replace(text, pos, pos + 1, '"')
        self._flush(text, pos)
        self._state = self._in_word
        return pos

    def _end_token(self, text: str, end: int) -> int:
        if self._expected == self._after_value:
            return self._end_value(text, end)
        self._state = self._between_tokens
        return end

    def _end_value(self, text: str, end: int) -> int:
        self._state = self._between_tokens
        self._expected = self._after_value
        if not self._missing_brackets:
            self.status = "complete"
        return end

    def _in_word(self, text: str, pos: int) -> int:
        limit = pos + MAX_WORD - len(self.pending)
        end = min(_WORD.match(text, pos).end(), limit)  # type: ignore[union-attr]
        self._unwritten_from = end
        self.pending += text[pos:end]
        if end == len(text):
            return end
        word = self.pending
        if self._expected == self._after_value:
            written = _scalar_to_json(word)
        else:
            is_key = _BARE_KEY.fullmatch(word) and word != self._forbidden_key
            written = f'"{word}"' if is_key else None
        if written is None:
            return self._break(end)
        self._out.append(written)
        self.pending = ""
        return self._end_token(text, end)

    def _in_string(self, text: str, pos: int) -> int:
        pos = _STRING_TEXT[self._quote].match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        char = text[pos]
        if char == self._quote:
            end = pos + 1 if char == '"' else self._replace(text, pos, pos + 1, '"')
            return self._end_token(text, end)
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
    return scalar if _NUMBER.fullmatch(scalar) else _LITERALS.get(scalar)
