"""
Parses the messages of a request for trimming, token counts and sessions.

A message stays the bytes that the client sent. Facts about it are cached under the digest of these
bytes, so that the next turn of a conversation parses only its new messages.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import msgspec

from blockops.api.lenient_json import DECODE_ERRORS
from blockops.conversation.notices import MARKER_PREFIX, remove_notices

#: Messages and lists of tools whose `MessageInfo` is cached: those of six long sessions, about 2
#: MB. Parsing a message again takes microseconds, so a larger cache would gain little.
MAX_MESSAGES = 6_000
#: The longest id of a tool call that is stored unchanged; a longer one is replaced by its digest.
MAX_CALL_ID_LENGTH = 64
#: The default pattern for the beginning of a user message that resets the session.
RESET_PATTERN = re.compile(r"/(?:new|reset)(?!\S)")

Role = Literal["system", "user", "assistant", "tool", "other"]

#: The API's role of a message -> its role here.
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}

#: Bytes of a message's digest.
DIGEST_SIZE = 16


class MessageInfo(msgspec.Struct, frozen=True, gc=False):
    """
    Facts about one message.

    :param role: "tool" for the result of a tool call, "other" for a role that the API does not have
    :param call_ids: the ids of the tool calls that an assistant makes: "" for a call without an id,
        a digest for one longer than `MAX_CALL_ID_LENGTH`
    :param text_estimate: the estimated tokens of its text, not yet calibrated for any model
    :param text_bytes: bytes of its text in UTF-8, an upper bound of its tokens with any tokenizer
    :param images: the number of its images and of other parts that are not text
    :param is_valid: it has the shape of a message of the API
    """

    digest: bytes
    role: Role
    call_ids: tuple[str, ...] = ()
    tool_call_id: str = ""
    text_estimate: float = 0.0
    text_bytes: int = 0
    images: int = 0
    is_valid: bool = True
    is_reset: bool = False


class Message(NamedTuple):
    """The JSON text of one message, and facts about it."""

    raw: bytes
    info: MessageInfo


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: Any = None


class _ToolCall(msgspec.Struct, gc=False):
    id: str | None = None
    function: _Function | None = None


class _ContentPart(msgspec.Struct, gc=False):
    type: str = "text"
    text: str | None = None


class _MessageFields(msgspec.Struct, gc=False):
    role: str
    content: str | list[_ContentPart] | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


_decode = msgspec.json.Decoder(_MessageFields).decode


def digest(data: bytes) -> bytes:
    """Return the BLAKE2b digest of `data`, `DIGEST_SIZE` bytes long."""
    return blake2b(data, digest_size=DIGEST_SIZE).digest()


class MessageParser:
    """Parses messages, and caches the facts about them."""

    def __init__(self, reset_pattern: re.Pattern[str] = RESET_PATTERN) -> None:
        self._reset_pattern = reset_pattern
        # By digest; those that were used last are at the end.
        self._infos: OrderedDict[bytes, MessageInfo] = OrderedDict()

    def parse(self, raw_messages: Iterable[bytes]) -> list[Message]:
        """Parse messages without their notices; drop those that consist only of notices."""
        messages = []
        for received in raw_messages:
            raw = remove_notices(received) if MARKER_PREFIX in received else received
            if raw is None:
                continue
            key = digest(raw)
            info = self._infos.get(key)
            if info is None:
                info = self._infos[key] = message_info(raw, key, self._reset_pattern)
            else:
                self._infos.move_to_end(key)
            messages.append(Message(raw, info))
        while len(self._infos) > MAX_MESSAGES:
            self._infos.popitem(last=False)
        return messages

    def after_reset(self, messages: list[Message]) -> list[Message]:
        """
        Return the messages after the newest reset, of which there is at least one.

        System messages before it stay, as does the user's text after the command.
        """
        newest = max(index for index, message in enumerate(messages) if message.info.is_reset)
        remaining = [message for message in messages[:newest] if message.info.role == "system"]
        raw = strip_reset_command(messages[newest].raw, self._reset_pattern)
        if raw is not None:
            # "/new /new" resets once: what follows the first command is ordinary text.
            remaining.append(Message(raw, message_info(raw, digest(raw), None)))
        return remaining + messages[newest + 1 :]

    def tools_info(self, text: bytes) -> MessageInfo:
        """Return a request's tools as an item to be counted, by their text in the prompt."""
        key = digest(text)
        info = self._infos.get(key)
        if info is None:
            estimate = estimate_tokens(text.decode("utf-8", "replace"))
            info = MessageInfo(key, "system", (), "", estimate, len(text))
        self._infos[key] = info
        self._infos.move_to_end(key)
        return info


def message_info(
    raw: bytes, raw_digest: bytes, reset_pattern: re.Pattern[str] | None
) -> MessageInfo:
    """Parse one message; `reset_pattern` is None if it cannot be a reset."""
    decoded = _decode_message(raw)
    if decoded is None:
        return MessageInfo(raw_digest, "other", (), "", len(raw) / 3, len(raw), is_valid=False)
    fields, text = decoded
    content = fields.content
    parts = content if isinstance(content, list) else ()
    first_text = (
        content if isinstance(content, str) else next(filter(None, (p.text for p in parts)), "")
    )
    role = ROLES.get(fields.role, "other")
    call_ids: tuple[str, ...] = ()
    if role == "assistant" and fields.tool_calls:
        call_ids = tuple(_short_id(call.id) for call in fields.tool_calls)
    elif role == "assistant" and fields.function_call is not None:
        call_ids = ("",)
    return MessageInfo(
        digest=raw_digest,
        role=role,
        call_ids=call_ids,
        tool_call_id=_short_id(fields.tool_call_id) if fields.tool_call_id else "",
        text_estimate=estimate_tokens(text),
        text_bytes=len(text.encode("utf-8", "surrogatepass")),
        images=sum(part.text is None for part in parts),
        is_valid=role != "other",
        is_reset=(
            reset_pattern is not None
            and role == "user"
            and reset_pattern.match(first_text.lstrip()) is not None
        ),
    )


def message_text(raw: bytes) -> str:
    """Return the text that the model reads of the message whose JSON is `raw`."""
    decoded = _decode_message(raw)
    return raw.decode("utf-8", "replace") if decoded is None else decoded[1]


def estimate_tokens(text: str) -> float:
    """
    Return the estimated number of tokens in `text`, for a model that is not calibrated yet.

    3.5 characters a token are usual for prose and code; a Chinese or Japanese character is about
    one token, a Cyrillic one half; most tokenizers of today write numbers digit by digit.
    """
    encoded = text.encode("utf-8", "surrogatepass")
    characters = len(text)
    digits = len(encoded) - len(encoded.translate(None, b"0123456789"))
    extra_bytes = len(encoded) - characters
    return (characters - digits) / 3.5 + 0.7 * digits + extra_bytes / 3


def _decode_message(raw: bytes) -> tuple[_MessageFields, str] | None:
    """Return the fields and the text that a chat template most likely writes; None if invalid."""
    try:
        fields = _decode(raw)
    except DECODE_ERRORS:
        try:
            # msgspec rejects NaN and lone surrogates, which backends accept.
            fields = msgspec.convert(json.loads(raw), _MessageFields)
        except (ValueError, RecursionError):
            return None
    texts = [fields.reasoning_content or fields.reasoning or ""]
    if isinstance(fields.content, str):
        texts.append(fields.content)
    elif fields.content is not None:
        texts.extend(part.text or "" for part in fields.content)
    for function in [*(call.function for call in fields.tool_calls or ()), fields.function_call]:
        if function is not None:
            arguments = function.arguments
            texts.append(function.name or "")
            texts.append(arguments if isinstance(arguments, str) else json.dumps(arguments))
    return fields, "\n".join(filter(None, texts))


def _short_id(call_id: str | None) -> str:
    if not call_id or len(call_id) <= MAX_CALL_ID_LENGTH:
        return call_id or ""
    return digest(call_id.encode("utf-8", "surrogatepass")).hex()


def strip_reset_command(raw: bytes, pattern: re.Pattern[str]) -> bytes | None:
    """
    Return the JSON of a message with `is_reset`, without its reset command.

    :returns: None if nothing remains of the message
    """
    fields: dict[str, Any] = json.loads(raw)
    content = fields["content"]
    parts: list[Any] = [{"text": content}] if isinstance(content, str) else content
    first = next(part for part in parts if part.get("text"))
    text = first["text"].lstrip()
    found = pattern.match(text)
    assert found is not None
    first["text"] = text[found.end() :].lstrip()
    remaining = [part for part in parts if part is not first or part["text"]]
    if not remaining:
        return None
    fields["content"] = first["text"] if isinstance(content, str) else remaining
    return json.dumps(fields).encode()


def first_user_digest(messages: Sequence[Message]) -> bytes:
    """Return the digest of the first user message; empty if no message is a user's."""
    return next((message.info.digest for message in messages if message.info.role == "user"), b"")
