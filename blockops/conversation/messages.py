"""
The messages of a request, read as far as the guard and the sessions need to.

A message stays the bytes that the client wrote; what is known of it is found by the digest of
these bytes, so that a turn costs only its new messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec

from blockops.api.lenient_json import UNREADABLE
from blockops.conversation.notices import without_notices

#: Messages of which the facts are kept, twice: six long sessions, some 1.5 MB. To read one anew
#: takes microseconds: more would hold memory for ever and win little.
MAX_KNOWN = 3_000

#: Characters of a call's id that are kept; of a longer one, a digest is.
LONGEST_ID = 64

#: What begins a session anew, if nothing else is set.
RESET_PATTERN = re.compile(r"/(?:new|reset)(?!\S)")

Role = Literal["system", "user", "assistant", "result", "other"]

#: What a message says of whose it is -> what that is here.
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "result",
    "function": "result",
}

#: Bytes of what stands for a message.
DIGEST_SIZE = 16

_DIGITS = b"0123456789"

Key = TypeVar("Key")
Value = TypeVar("Value")


# Most hold so little that nothing of it is old.
_NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Recent(Generic[Key, Value]):
    """
    A mapping that forgets what was not asked for in a long time.

    :param size: it holds that many entries, and at most twice as many
    """

    __slots__ = ("_old", "_size", "_young")

    def __init__(self, size: int) -> None:
        self._size = size
        self._young: dict[Key, Value] = {}
        self._old: Mapping[Key, Value] = _NOTHING

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())

    def get(self, key: Key) -> Value | None:
        """Return what is known for `key`; None if nothing is."""
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Remember `value`."""
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        self._young[key] = value


class Facts(msgspec.Struct, frozen=True, gc=False):
    """
    What is known of one message.

    :param digest: of its JSON text
    :param role: "result" is a tool's, "other" one that no role of the API says
    :param calls: the ids of the calls that an assistant makes; "" where it gave none, and a digest
        for one that is longer than `LONGEST_ID`
    :param answers: the id of the call that a result belongs to; "" if it does not say
    :param weight: its tokens, as a guess that no model has corrected yet
    :param size: bytes of its text: no tokenizer makes more tokens of it
    :param images: pictures and other things that are no text
    :param readable: it has the shape of a message of the API
    :param reset: it is a user's, and begins with the marker of a reset
    """

    digest: bytes
    role: Role
    calls: tuple[str, ...] = ()
    answers: str = ""
    weight: float = 0.0
    size: int = 0
    images: int = 0
    readable: bool = True
    reset: bool = False


class Line(NamedTuple):
    """
    One message.

    :param raw: its JSON text
    """

    raw: bytes
    facts: Facts


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: Any = None


class _Call(msgspec.Struct, gc=False):
    id: str | None = None
    function: _Function | None = None


class _Part(msgspec.Struct, gc=False):
    type: str = "text"
    text: str | None = None


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


_decode = msgspec.json.Decoder(_Message).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def digest(data: bytes) -> bytes:
    """Return `DIGEST_SIZE` bytes that stand for `data`."""
    return blake2b(data, digest_size=DIGEST_SIZE).digest()


class Reader:
    """
    Reads messages, each of them once.

    :param reset_pattern: what a user's message begins with to begin a session anew
    """

    def __init__(self, reset_pattern: re.Pattern[str] = RESET_PATTERN) -> None:
        self._reset_pattern = reset_pattern
        self._known: Recent[bytes, Facts] = Recent(MAX_KNOWN)

    def read(self, messages: Iterable[bytes]) -> list[Line]:
        """Return `messages` without the notices in them; those that were nothing else are gone."""
        cleaned = map(without_notices, messages)
        return [Line(raw, self._facts(raw)) for raw in cleaned if raw is not None]

    def since_reset(self, lines: list[Line]) -> list[Line]:
        """
        Return what is to be sent on of `lines`, which is a new list if anything is not.

        What came before the newest marker of a reset, and the marker, is left out; system messages
        stay. What a user wrote behind the marker stays too.
        """
        newest = max((at for at, line in enumerate(lines) if line.facts.reset), default=None)
        if newest is None:
            return lines
        kept = [line for line in lines[:newest] if line.facts.role == "system"]
        rest = without_marker(lines[newest].raw, self._reset_pattern)
        if rest is not None:
            kept.append(Line(rest, self._facts(rest, may_reset=False)))
        return kept + lines[newest + 1 :]

    def _facts(self, raw: bytes, *, may_reset: bool = True) -> Facts:
        key = digest(raw)
        facts = self._known.get(key) if may_reset else None
        if facts is None:
            facts = facts_of(raw, key, self._reset_pattern if may_reset else None)
            if may_reset:
                self._known.put(key, facts)
        return facts


def facts_of(raw: bytes, key: bytes, reset_pattern: re.Pattern[str] | None) -> Facts:
    """Return what is to be known of the message whose JSON is `raw`."""
    message = _read(raw)
    if message is None:
        return Facts(key, "other", (), "", len(raw) / 3, len(raw), readable=False)
    text = text_of(message)
    role = ROLES.get(message.role, "other")
    return Facts(
        digest=key,
        role=role,
        calls=_calls_of(message) if role == "assistant" else (),
        answers=_short_id(message.tool_call_id),
        weight=weigh(text),
        size=len(text.encode("utf-8", "surrogatepass")),
        images=_images_in(message.content),
        readable=role != "other",
        reset=(
            reset_pattern is not None
            and role == "user"
            and reset_pattern.match(_beginning(message.content).lstrip()) is not None
        ),
    )


def text_in(raw: bytes) -> str:
    """Return the text that a model reads of the message whose JSON is `raw`."""
    message = _read(raw)
    return raw.decode("utf-8", "replace") if message is None else text_of(message)


def weigh(text: str) -> float:
    """
    Return about how many tokens `text` is to a model of which nothing is known yet.

    3.5 characters a token are usual for prose and code; a Chinese or Japanese character is about
    one token, a Cyrillic one half; most tokenizers of today write numbers digit by digit.
    """
    encoded = text.encode("utf-8", "surrogatepass")
    characters = len(text)
    digits = len(encoded) - len(encoded.translate(None, _DIGITS))
    wide = len(encoded) - characters
    return (characters - digits) / 3.5 + 0.7 * digits + wide / 3


def _read(raw: bytes) -> _Message | None:
    """Return the message; None if nothing can be said of it."""
    try:
        return _decode(raw)
    except UNREADABLE:
        pass
    try:
        # Halves of surrogate pairs and NaN, which msgspec refuses and backends accept.
        return msgspec.convert(json.loads(raw), _Message)
    except (ValueError, RecursionError):
        return None


def text_of(message: _Message) -> str:
    """Return what a template writes of a message, as far as one can know."""
    parts = [message.reasoning_content or message.reasoning or ""]
    if isinstance(message.content, str):
        parts.append(message.content)
    elif message.content is not None:
        parts.extend(part.text or "" for part in message.content)
    for function in _functions_of(message):
        arguments = function.arguments
        parts.append(function.name or "")
        parts.append(arguments if isinstance(arguments, str) else json.dumps(arguments))
    return "\n".join(filter(None, parts))


def _functions_of(message: _Message) -> list[_Function]:
    called = [call.function for call in message.tool_calls or ()]
    return [function for function in [*called, message.function_call] if function is not None]


def _calls_of(message: _Message) -> tuple[str, ...]:
    if message.tool_calls:
        return tuple(_short_id(call.id) for call in message.tool_calls)
    return ("",) if message.function_call is not None else ()


def _short_id(said: str | None) -> str:
    """Return what a call is known by."""
    if not said or len(said) <= LONGEST_ID:
        return said or ""
    return digest(said.encode("utf-8", "surrogatepass")).hex()


def _images_in(content: str | list[_Part] | None) -> int:
    if not isinstance(content, list):
        return 0
    return sum(part.text is None for part in content)


def _beginning(content: str | list[_Part] | None) -> str:
    """Return the text that a message begins with."""
    if isinstance(content, str):
        return content
    return next((part.text for part in content or () if part.text), "")


def without_marker(raw: bytes, pattern: re.Pattern[str]) -> bytes | None:
    """
    Return the JSON of a user's message without the marker of a reset that it begins with.

    :returns: None if nothing is left of it
    """
    fields: dict[str, Any] = json.loads(raw)
    content = fields["content"]
    parts: list[Any] = [{"text": content}] if isinstance(content, str) else content
    first = next(part for part in parts if part.get("text"))
    text = first["text"].lstrip()
    found = pattern.match(text)
    assert found is not None
    first["text"] = text[found.end() :].lstrip()
    left = [part for part in parts if part is not first or part["text"]]
    if not left:
        return None
    fields["content"] = first["text"] if isinstance(content, str) else left
    return json.dumps(fields).encode()


def first_user(lines: Sequence[Line]) -> bytes:
    """Return the digest of the first message of a user; empty if there is none."""
    return next((line.facts.digest for line in lines if line.facts.role == "user"), b"")
