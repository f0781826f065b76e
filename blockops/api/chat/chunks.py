"""
`chat.completion.chunk` and its kin: read as far as needed, changed without touching the rest.

A chunk is decoded into the few fields that decide something, and usually goes on as the bytes it
came in. Only where a choice's text changed is it taken apart, one level at a time, into fields that
keep their JSON text, so that everything else of it leaves byte for byte as it came.

Shapes: https://platform.openai.com/docs/api-reference/chat/streaming, and what backends add.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

_T = TypeVar("_T")
# What every chunk of an answer repeats. All else of a chunk is said once.
_ENVELOPE = frozenset(
    {"id", "object", "created", "model", "system_fingerprint", "service_tier", "provider"}
)
_NOTHING = tuple(map(msgspec.Raw, (b"null", b"[]", b"{}", b'""')))
_NONE = msgspec.Raw(b"[]")
_OURS = frozenset({"index", "delta", "finish_reason"})  # fields of a choice that are written anew
_CALLS = ("tool_calls", "function_call")
_APART = _ENVELOPE | {"choices"}
_HERE = msgspec.Raw(b"\0")  # stands in no JSON
_CHUNK = msgspec.Raw(b'"chat.completion.chunk"')


class Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    index: int | None = None
    function: Function | None = None


class Delta(msgspec.Struct, gc=False):
    """A `delta`, or the `message` of a whole answer."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None


class Choice(msgspec.Struct, gc=False):
    """One of `choices`; `text` is what `/v1/completions` has instead of a delta."""

    index: int | None = None
    delta: Delta | None = None
    message: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct, gc=False):
    """
    What decides something in a chunk or a whole answer.

    :ivar choices: None if there is no such list
    :ivar error: what a backend says instead of a chunk
    """

    choices: list[Choice] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


class Piece(msgspec.Struct):
    """A delta of ours; with a finish reason it is the last one of its choice."""

    delta: dict[str, Any]
    finish_reason: str | None = None


class Fragment(msgspec.Struct, frozen=True, gc=False):
    """
    A delta of ours that says one piece of text, as nearly all do.

    :param call: of which call it is the arguments; None for the content
    """

    text: str
    call: int | None = None

    def piece(self) -> Piece:
        """Return it as any other delta."""
        return Piece(said_in(self.call, self.text))


def said_in(call: int | None, text: Any) -> dict[str, Any]:
    """Return the delta that says `text` as arguments of a call; None: as the content."""
    if call is None:
        return {"content": text}
    return {"tool_calls": [{"index": call, "function": {"arguments": text}}]}


class Rewritten(msgspec.Struct):
    """
    What one choice of a chunk becomes.

    :param pieces: the deltas that stand for its role and its content
    :param rest: whether all else of it goes with them; "nowhere" if the choice goes
    :param shift: what to add to the index of the backend's own tool calls
    :param lead: what stands in front of all that it says
    """

    pieces: list[Piece]
    rest: Literal["along", "nowhere"] = "along"
    shift: int = 0
    lead: Sequence[Piece] = ()


_decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_encode = msgspec.json.Encoder().encode


def event(json: bytes) -> bytes:
    """Return the event whose data is this JSON, which a line must hold."""
    if b"\n" in json or b"\r" in json:
        json = msgspec.json.format(json, indent=-1)
    return b"data: " + json + b"\n\n"


def envelope(data: bytes) -> dict[str, Any]:
    """Return the fields of a chunk that every chunk of its answer has."""
    return {key: raw for key, raw in _decode_fields(data).items() if key in _ENVELOPE}


def chunk(fields: Mapping[str, Any], choices: list[dict[str, Any]]) -> bytes:
    """Return the JSON of a chunk of ours."""
    return _encode({**fields, "choices": choices})


def decode_chunk(data: bytes) -> Chunk:
    """
    Read a chunk.

    :raises msgspec.ValidationError: fields that are read have other types than they should
    :raises blockops.api.lenient_json.UNREADABLE: it is not strict JSON
    """
    if not data.isascii():
        data.decode()  # the decoder looks only into the strings that it hands out
    return _decode_chunk(data)


def loose_chunk(data: bytes) -> Chunk:
    """
    Read a chunk of which some fields have types of their own; those count as missing.

    :param data: strict JSON
    :raises ValueError: it is no JSON object, or its choices are none
    """
    value = msgspec.json.decode(data)
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 - the bytes are at fault
    choices = _if(list, value.get("choices"))
    if choices is not None and not _are_objects(choices):
        raise ValueError("a choice is not an object")
    return Chunk(
        None if choices is None else [_loose_choice(choice) for choice in choices],
        _if(dict, value.get("usage")),
        value.get("error"),
    )


def _loose_choice(choice: dict[str, Any]) -> Choice:
    return Choice(
        _if(int, choice.get("index")),
        _loose_delta(choice.get("delta")),
        _loose_delta(choice.get("message")),
        _if(str, choice.get("text")),
        _if(str, choice.get("finish_reason")),
    )


def _loose_delta(delta: Any) -> Delta | None:
    if not isinstance(delta, dict):
        return None
    calls = _if(list, delta.get("tool_calls"))
    return Delta(
        _if(str, delta.get("role")),
        _if(str, delta.get("content")),
        [_loose_call(call) for call in calls] if calls and _are_objects(calls) else None,
        Function() if delta.get("function_call") else None,
    )


def _loose_call(call: dict[str, Any]) -> ToolCall:
    function = _if(dict, call.get("function")) or {}
    name, arguments = function.get("name"), function.get("arguments")
    return ToolCall(_if(int, call.get("index")), Function(_if(str, name), _if(str, arguments)))


def _are_objects(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _if(kind: type[_T], value: Any) -> _T | None:
    return value if isinstance(value, kind) else None


def spread(
    data: bytes, read: Sequence[Choice], rewritten: Sequence[Rewritten | None]
) -> list[bytes]:
    """
    Return the JSON of the chunks that one chunk becomes.

    :param data: the chunk
    :param read: its choices
    :param rewritten: what each of them becomes; None where it stays as it is
    """
    chunk = _decode_fields(data)
    raw_choices = _decode_list(chunk["choices"]) if read else []
    made: list[Mapping[str, Any]] = []
    for raw, choice, becomes in zip(raw_choices, read, rewritten, strict=True):
        if becomes is None:
            made.append(raw)
        elif becomes.rest != "nowhere":
            made.extend(_choices_of(raw, choice, becomes))
    if not made:
        chunk["choices"] = _NONE
        says_more = any(key not in _ENVELOPE and _says(raw) for key, raw in chunk.items())
        return [_encode(chunk)] if says_more else []
    whole: dict[str, Any] = {**chunk, "choices": made[-1:]}
    if len(made) == 1:
        return [_encode(whole)]
    repeated = {key: raw for key, raw in chunk.items() if key in _APART or not _says(raw)}
    return [*(_encode({**repeated, "choices": [choice]}) for choice in made[:-1]), _encode(whole)]


def _choices_of(
    raw: dict[str, msgspec.Raw], choice: Choice, becomes: Rewritten
) -> Iterable[dict[str, Any]]:
    """
    Return the choices that one becomes, all that was not rewritten in just one of them.

    That is the first one, for thoughts stand in front of what follows from them; but the last one
    for calls, in front of which text stands.
    """
    rest = _rest_of_delta(raw, choice, becomes.shift)
    beside = {key: raw[key] for key in raw if key not in _OURS}
    calls = {key: rest.pop(key) for key in _CALLS if _says(rest.get(key, _NONE))}
    pieces = becomes.pieces
    said = {key for key, value in rest.items() if _says(value)}
    if not pieces:
        if said or calls or any(_says(value) for value in beside.values()):
            pieces = [Piece({})]
    elif not said.isdisjoint(pieces[0].delta):
        pieces = [*_behind_its_role(pieces[0]), *pieces[1:]]
    if not calls.keys().isdisjoint(pieces[-1].delta if pieces else ()):
        pieces = [*pieces, Piece({})]
    silent = {key: value for key, value in beside.items() if not _says(value)}
    first, last = 0, len(pieces) - 1
    for place, piece in enumerate([*becomes.lead, *pieces], -len(becomes.lead)):
        delta = {**rest, **piece.delta} if place == first else piece.delta
        yield {
            "index": choice.index or 0,
            "delta": {**delta, **calls} if place == last else delta,
            **(beside if place == first else silent),
            "finish_reason": piece.finish_reason,
        }


def _behind_its_role(piece: Piece) -> list[Piece]:
    """Return two pieces that say what one says, the first of them only its role, if any."""
    role, said = dict[str, Any](), dict[str, Any]()
    for key, value in piece.delta.items():
        (role if key == "role" else said)[key] = value
    return [Piece(role), Piece(said, piece.finish_reason)]


def _rest_of_delta(raw: dict[str, msgspec.Raw], choice: Choice, shift: int) -> dict[str, Any]:
    """Return the fields of a delta that its pieces do not stand for."""
    if choice.delta is None:
        return {}
    rest: dict[str, Any] = dict(_decode_fields(raw["delta"]))
    rest.pop("role", None)
    if choice.delta.content is not None:
        del rest["content"]
    if shift and choice.delta.tool_calls:
        calls = _decode_list(rest["tool_calls"])
        rest["tool_calls"] = [
            {**call, "index": shift + (place if read.index is None else read.index)}
            for place, (call, read) in enumerate(zip(calls, choice.delta.tool_calls, strict=True))
        ]
    return rest


class Apart(msgspec.Struct):
    """
    A chunk in parts: its JSON is `head`, a delta's, and `tail`.

    :ivar rest: what its delta has besides the role and what it says, and says nothing
    """

    index: int
    head: bytes
    tail: bytes
    rest: dict[str, Any]


def apart(data: bytes, field: str, value: bytes) -> Apart:
    """
    Return the parts of a chunk that says nothing but `field` of one delta.

    :param value: the JSON of what it says there
    :raises ValueError: it says more, or that is not what it says
    :raises LookupError: it has no such field
    """
    chunk = _decode_fields(data)
    (raw,) = _decode_list(chunk["choices"])
    rest = _decode_fields(raw["delta"])
    rest.pop("role", None)
    index = msgspec.json.decode(raw["index"], type=int)
    beside = {key: raw[key] for key in raw if key not in _OURS}
    more = [*beside.values(), raw.get("finish_reason", _NONE)]
    more += [said for key, said in chunk.items() if key not in _APART]
    if rest.pop(field) != msgspec.Raw(value) or any(map(_says, [*rest.values(), *more])):
        raise ValueError("it says more")
    choice = {"index": index, "delta": _HERE, **beside, "finish_reason": None}
    head, _, tail = _encode({**chunk, "choices": [choice]}).partition(_HERE)
    return Apart(index, head, tail, dict(rest))


def _says(value: Any) -> bool:
    """Tell whether a field's value is worth a chunk of its own."""
    return value not in _NOTHING


def join(data: bytes, read: Sequence[Choice], rewritten: Sequence[Rewritten | None]) -> bytes:
    """Return the JSON of a whole answer whose messages become what `rewritten` says."""
    answer: dict[str, Any] = dict(_decode_fields(data))
    answer["choices"] = [
        raw if becomes is None else _joined(raw, choice, becomes)
        for raw, choice, becomes in zip(
            _decode_list(answer["choices"]), read, rewritten, strict=True
        )
    ]
    return _encode(answer)


def _joined(raw: dict[str, msgspec.Raw], choice: Choice, becomes: Rewritten) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", **_decode_fields(raw["message"])}
    deltas = [piece.delta for piece in becomes.pieces]
    texts = [delta["content"] for delta in deltas if "content" in delta]
    ahead, thoughts = _thoughts(piece.delta for piece in becomes.lead), _thoughts(deltas)
    calls = _joined_calls(delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta)
    if texts or (choice.delta is not None and choice.delta.content is not None):
        message["content"] = "".join(texts) if texts or not calls else None
    if ahead or thoughts:
        said = _if(str, msgspec.json.decode(message.get("reasoning_content", b"null")))
        message["reasoning_content"] = ahead + (said or "") + thoughts
    if calls:
        message["tool_calls"] = calls + _objects(message.get("tool_calls", _NONE))
    return {**raw, "message": message, "finish_reason": becomes.pieces[-1].finish_reason}


def _thoughts(deltas: Iterable[dict[str, Any]]) -> str:
    return "".join(delta.get("reasoning_content", "") for delta in deltas)


def _joined_calls(deltas: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return whole calls from the deltas that a stream would have had."""
    calls: list[dict[str, Any]] = []
    fragments: list[list[str]] = []
    for delta in deltas:
        if "id" in delta:
            calls.append({key: delta[key] for key in ("id", "type", "function")})
            fragments.append([])
        else:
            fragments[-1].append(delta["function"]["arguments"])
    return [
        {**call, "function": {**call["function"], "arguments": "".join(parts)}}
        for call, parts in zip(calls, fragments, strict=True)
    ]


def as_chunk(data: bytes) -> bytes:
    """Return a whole answer as one chunk that says it all at once."""
    answer: dict[str, Any] = dict(_decode_fields(data))
    answer["choices"] = [_as_delta(choice) for choice in _decode_list(answer["choices"])]
    answer["object"] = _CHUNK
    return _encode(answer)


def without_usage(data: bytes) -> tuple[bytes, bytes]:
    """Return a chunk without its `usage`, and a chunk for that alone, as OpenAI sends them."""
    fields = _decode_fields(data)
    usage = fields.pop("usage", _NONE)
    return _encode(fields), _encode({**envelope(data), "choices": [], "usage": usage})


def speaks(data: bytes) -> bool:
    """Tell whether a chunk says anything beyond who speaks: text, thoughts, a call."""
    said = msgspec.json.decode(data, type=_Said)
    return any(
        value for choice in said.choices for key, value in choice.delta.items() if key != "role"
    )


class _SaidChoice(msgspec.Struct):
    delta: dict[str, Any] = {}


class _Said(msgspec.Struct):
    choices: list[_SaidChoice] = []


def _as_delta(choice: dict[str, msgspec.Raw]) -> dict[str, Any]:
    delta: dict[str, Any] = dict(_decode_fields(choice["message"]))
    calls = _objects(delta.get("tool_calls", _NONE))
    if calls:
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    rest = {key: value for key, value in choice.items() if key not in {"message", "delta"}}
    return {**rest, "delta": delta}


def _objects(raw: msgspec.Raw) -> list[dict[str, msgspec.Raw]]:
    """Return what may be a list of objects, and is as good as empty if it is not."""
    try:
        return _decode_list(raw)
    except msgspec.ValidationError:
        return []
