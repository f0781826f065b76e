"""
Chunks that no rule changes pass byte for byte; all others keep their unknown fields.

Hypothesis spells the chunks as no encoder of ours would: unusual numbers, white space, escapes,
order of keys, names that resemble known ones. `ExceptionTests` and `OtherFormsExceptionTests` list
every case in which bytes or fields do not arrive as the backend sent them, `UnspecifiedTests` those
of them that no rule asks for.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.report import AnswerReport
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.non_streaming import ResponseTranslator
from blockops.translation.stream import StreamTranslator
from tests import thorough
from tests.api.requests import (
    CALL,
    DONE,
    ROLE,
    STOP,
    chat,
    counted_ids,
    delta,
    text,
    translate,
    translator,
)
from tests.translation.merging import join_texts

# A field's name and its value, both as JSON text.
Fields = list[tuple[str, str]]

WITH_TOOLS = chat("search", "get_weather")
WITHOUT_TOOLS = [chat(), chat("search", tool_choice="none")]

LINE_CALL = '\nTOOL_CALL: {"name": "get_weather", "arguments": {"city": "Z\\u00fcrich", "n": 2.50}}'
XML_CALL = (
    "<tool_call><function=search><parameter=query>\nx < y\n</parameter></function></tool_call>"
)
#: Texts of which some are calls, begin calls, or are held back.
CALL_TEXTS = [
    *(CALL, LINE_CALL, XML_CALL, CALL[:-20], XML_CALL[:-30], LINE_CALL[:-5]),
    *(
        "Hello",
        " ",
        "\n\n",
        "é😀",
        "<",
        "<tool_",
        "</tool_call>",
        "a < b",
        "```\n",
        "<think>",
        "TOOL",
    ),
]


# --- JSON texts, as backends may spell them ---

SPACES = st.sampled_from(["", "", " ", "  ", "\t"])
NUMBERS = st.sampled_from(
    ["0", "-0", "1e0", "140.0", "1E+2", "-0.10", "1e-7", "12345678901234567890123", "0.10000000055"]
)
WORDS = st.sampled_from(["true", "false", "null", '""', "[]", "{}"])
CHARACTERS = st.characters(exclude_categories=["Cs"], max_codepoint=0x1F6FF)
STRINGS = (
    st.builds(json.dumps, st.text(CHARACTERS, max_size=6), ensure_ascii=st.booleans())
    | st.sampled_from(['"\\u0041"', '"\\/"', '"\\ud83d\\ude00"', '"data: [DONE]"', '"content"'])
    | st.sampled_from([json.dumps(CALL), '"\\u003ctool_call>"', '"a\\n\\nb"'])
)
NESTED_NAMES = st.sampled_from(
    [
        '"a"',
        '"content"',
        '"conten\\u0074"',
        '"delta"',
        '"choices"',
        '"finish_reason"',
        '"error"',
        '""',
    ]
)


def spell_list(items: list[str], space: str) -> str:
    return "[" + space + (space + ",").join(items) + space + "]"


def spell_nested(fields: Fields, space: str) -> str:
    members = (f"{name}{space}:{value}" for name, value in fields)
    return "{" + space + ("," + space).join(members) + "}"


VALUES = st.recursive(
    NUMBERS | STRINGS | WORDS,
    lambda inner: (
        st.builds(spell_list, st.lists(inner, max_size=2), SPACES)
        | st.builds(spell_nested, st.lists(st.tuples(NESTED_NAMES, inner), max_size=2), SPACES)
    ),
    max_leaves=4,
)

#: Names of unknown fields; some resemble known ones.
ODD_NAMES = ['"x"', '"Content"', '"content "', '"\\u0078y"', '"é"', '""', '"a\\"b"', '"data: "']
TOP_NAMES = [*ODD_NAMES, '"timings"', '"delta"', '"content"', '"finish_reason"', '"index"']
CHOICE_NAMES = [*ODD_NAMES, '"content"', '"usage"', '"choices"', '"stop_reason"', '"token_ids"']
DELTA_NAMES = [*ODD_NAMES, '"choices"', '"delta"', '"usage"', '"finish_reason"', '"refusal"']


def unknown(names: list[str]) -> st.SearchStrategy[Fields]:
    """Return a strategy for a few unknown fields, without two of one name."""
    fields = st.tuples(st.sampled_from(names), VALUES)
    return st.lists(fields, max_size=2, unique_by=lambda field: field[0])


UNKNOWN_TOP, UNKNOWN_CHOICE, UNKNOWN_DELTA = map(unknown, (TOP_NAMES, CHOICE_NAMES, DELTA_NAMES))


def spell_logprobs(token: str, number: str) -> str:
    top = f'"top_logprobs" : [{{"token":{token},"logprob": {number}}}]'
    return f'{{"content":[{{"token":{token},"logprob":{number} ,{top}}}], "refusal":null}}'


LOGPROBS = st.builds(spell_logprobs, STRINGS, NUMBERS)


class Shape(NamedTuple):
    """The spelling of a chunk's objects: the first field, and the text between the others."""

    turn: int
    colon: str
    comma: str
    space: str

    def spell(self, fields: Fields) -> str:
        turn = self.turn % (len(fields) or 1)
        turned = [*fields[turn:], *fields[:turn]]
        inside = self.comma.join(f"{name}{self.colon}{value}" for name, value in turned)
        return f"{{{self.space}{inside}{self.space}}}"


SHAPES = st.builds(
    Shape,
    st.integers(0, 5),
    st.sampled_from([":", ": ", " : ", "\t:  "]),
    st.sampled_from([",", ", ", " ,"]),
    SPACES,
)


# --- chunks and streams ---


class Part(NamedTuple):
    """A part of one choice; `may_change` if its role, its text or its end may need a rewrite."""

    choice: int
    delta: Fields
    extra: Fields
    may_change: bool


class BackendEvent(NamedTuple):
    """One event of the backend."""

    data: bytes
    may_change: bool


def encode_parts(parts: Iterable[Part], top: Fields, shape: Shape) -> bytes:
    """Return the event of a chunk."""
    choices = [
        shape.spell(
            [('"index"', str(part.choice)), ('"delta"', shape.spell(part.delta)), *part.extra]
        )
        for part in parts
    ]
    data = shape.spell([*top, ('"choices"', spell_list(choices, shape.space))])
    return b"data: " + data.encode() + b"\n\n"


@st.composite
def other_parts(draw: st.DrawFn, index: int) -> Part:
    """Return a part with neither a role nor content nor a finish reason."""
    own = draw(UNKNOWN_DELTA)
    kind = draw(st.sampled_from(["fields", "reasoning", "reasoning_content", "logprobs", "null"]))
    extra: Fields = [('"finish_reason"', "null"), *draw(UNKNOWN_CHOICE)]
    if kind.startswith("reasoning"):
        own.append((f'"{kind}"', draw(STRINGS)))
    elif kind == "logprobs":
        extra.append(('"logprobs"', draw(LOGPROBS)))
    elif kind == "null":
        own += [('"content"', "null"), ('"reasoning_content"', "null"), ('"role"', "null")]
    return Part(index, own, extra, may_change=False)


@st.composite
def choice_parts(
    draw: st.DrawFn, index: int, pieces: Sequence[str], last: str | None
) -> list[Part]:
    """
    Return the parts of one choice.

    :param pieces: its content
    :param last: the content beside its finish reason
    """
    role: Fields = [('"role"', '"assistant"'), *draw(UNKNOWN_DELTA)]
    role += draw(st.sampled_from([[], [('"content"', '""')], [('"content"', "null")]]))
    parts = [Part(index, role, [*draw(UNKNOWN_CHOICE)], may_change=True)]
    empty: Fields = draw(st.sampled_from([[], [('"logprobs"', "null")], [('"token_ids"', "[]")]]))
    is_plain = draw(st.booleans())  # equal bytes around the texts, as backends send them
    for piece in pieces:
        content = json.dumps(piece, ensure_ascii=draw(st.booleans()))
        own: Fields = [('"content"', content)]
        extra: Fields = [*empty, ('"finish_reason"', "null")]
        if not is_plain and draw(st.booleans()):
            own += draw(UNKNOWN_DELTA)
            extra += draw(UNKNOWN_CHOICE)
        parts.append(Part(index, own, extra, may_change=True))
        if not is_plain and draw(st.booleans()):
            parts.append(draw(other_parts(index)))
    own = [] if last is None else [('"content"', json.dumps(last))]
    reason = draw(st.sampled_from(['"stop"', '"length"', '"\\u0073top"', '"content_filter"']))
    extra = [('"finish_reason"', reason), *draw(UNKNOWN_CHOICE)]
    return [*parts, Part(index, [*own, *draw(UNKNOWN_DELTA)], extra, may_change=True)]


@st.composite
def backend_streams(
    draw: st.DrawFn, texts: st.SearchStrategy[list[str]], lasts: st.SearchStrategy[str | None]
) -> list[BackendEvent]:
    """
    Return the events of a stream that has all that clients need: roles, indexes, finish reasons.

    :param texts: the content of a choice, in pieces
    :param lasts: the content beside the finish reason
    """
    indexes = draw(st.sampled_from([[0], [0], [1], [0, 1], [2, 0], [7, 0, 1]]))
    queues = [draw(choice_parts(index, draw(texts), draw(lasts))) for index in indexes]
    shape = draw(SHAPES)
    has_own_envelopes = draw(st.booleans())
    usage = 0
    events: list[BackendEvent] = []
    bare_left = draw(st.integers(0, 3))
    while queues or bare_left:
        envelope = len(events) if has_own_envelopes else 0
        top: Fields = [('"id"', f'"i{envelope}"'), ('"model"', f'"m\\u002f{envelope}"')]
        top += [('"created"', "1E9"), ('"system_fingerprint"', f'"f{envelope}"')]
        is_bare = bare_left > 0 and (not queues or draw(st.integers(0, 5)) == 0)
        parts: list[Part] = []
        if is_bare:
            bare_left -= 1
        else:
            count = draw(st.sampled_from([1, 1, 1, 2, 3]))
            start = draw(st.integers(0, len(queues) - 1))
            chosen = queues[start : start + count]
            parts = [queue.pop(0) for queue in chosen]
            queues = [queue for queue in queues if queue]
        if is_bare or draw(st.integers(0, 5)) == 0:
            top += draw(UNKNOWN_TOP)
            if draw(st.booleans()):
                # An equal one in a chunk without choices would be hidden: see `ExceptionTests`.
                usage += 1 if is_bare else draw(st.integers(0, 1))
                value = f'{{"total_tokens" :{usage}.0,"x":{draw(NUMBERS)}}}'
                top.append(('"usage"', draw(st.sampled_from([value, value, "null"]))))
        own_shape = draw(SHAPES) if draw(st.integers(0, 5)) == 0 else shape
        data = encode_parts(parts, top, own_shape)
        events.append(BackendEvent(data, any(part.may_change for part in parts)))
    return events


# Text that passes at once, even if calls are looked for: it neither contains the start of a call
# nor ends with white space.
SAFE_TEXTS = st.builds(
    str.__add__,
    st.text("ab \n\t{}[]()\"'\\/`*#é😀ß0.,:-_", max_size=6),
    st.sampled_from(["a", "é", "😀", "}", '"', "\\", "`", ".", "end"]),
)
ANY_TEXTS = st.sampled_from(CALL_TEXTS) | st.text(CHARACTERS, min_size=1, max_size=6)
SAFE_STREAMS = backend_streams(st.lists(SAFE_TEXTS, max_size=5), st.none() | SAFE_TEXTS)
ANY_STREAMS = backend_streams(st.lists(ANY_TEXTS, max_size=5), st.none() | ANY_TEXTS)


@st.composite
def split_calls(draw: st.DrawFn) -> list[str]:
    """Return prose and calls, in pieces."""
    whole = "".join(draw(st.lists(st.sampled_from(CALL_TEXTS), min_size=1, max_size=3)))
    size = draw(st.sampled_from([3, 11, 40, 200]))
    return [whole[at : at + size] for at in range(0, len(whole), size)]


CALL_STREAMS = backend_streams(split_calls(), st.none() | st.sampled_from([CALL, "a", "</tool_"]))


def join_events(events: Iterable[BackendEvent]) -> bytes:
    return b"".join(each.data for each in events) + DONE


def cut(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Return the stream in packets."""
    edges = sorted({0, len(stream), *(at % len(stream) for at in cuts)})
    return [stream[start:end] for start, end in pairwise(edges)]


#: Lines of an event before its data.
FRAMINGS = st.sampled_from(
    [b"", b"", b"", b": comment\n", b"event: message\r\n", b"data:\r\n", b"event: error\r\n"]
)

#: Edges of packets, as numbers of which only the remainder counts.
CUTS = st.lists(st.integers(0, 20_000), max_size=8)


def receive(packets: Iterable[bytes], request: Any) -> tuple[bytes, AnswerReport]:
    """Return the client's stream for these packets, and the report."""
    stream_translator = translator(request)
    out = b"".join(map(stream_translator.receive_data, packets))
    return out + stream_translator.end(is_truncated=False), stream_translator.report


def split_events(stream: bytes) -> list[bytes]:
    assert stream.endswith(b"\n\n"), stream
    return [each + b"\n\n" for each in stream.split(b"\n\n")[:-1]]


# --- the unknown fields of chunks ---

ENVELOPE = {"id", "model", "created", "system_fingerprint", "object"}
KNOWN_TOP = {*ENVELOPE, "choices"}
KNOWN_CHOICE = {"index", "delta", "message", "finish_reason"}
KNOWN_DELTA = {"role", "content", "tool_calls"}
EMPTY = {b"null", b"[]", b"{}", b'""'}

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_objects = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode

#: The level, the choice's index (-1 at the top), the name, and the JSON text of the value.
Found = tuple[str, int, str, bytes]


def fields_at(level: str, index: int, fields: Any, known: set[str]) -> Iterator[Found]:
    """Yield the unknown fields."""
    for name, raw in fields.items():
        if name not in known:
            yield level, index, name, bytes(raw)


def all_unknown_fields(chunks: Iterable[bytes], container: str = "delta") -> Iterator[Found]:
    """
    Yield the unknown fields of chunks, in their order.

    :param container: the field of a choice that has its content
    """
    for chunk in chunks:
        fields = _decode_object(chunk)
        yield from fields_at("top", -1, fields, KNOWN_TOP)
        for choice in _decode_objects(fields["choices"]):
            index = int(bytes(choice["index"]))
            yield from fields_at("choice", index, choice, KNOWN_CHOICE)
            yield from fields_at("delta", index, _decode_object(choice[container]), KNOWN_DELTA)


def unknown_fields(chunks: Iterable[bytes], container: str = "delta") -> dict[str, list[Found]]:
    """Return the unknown fields that are not empty, by their level."""
    found = [each for each in all_unknown_fields(chunks, container) if each[3] not in EMPTY]
    return {
        level: [each for each in found if each[0] == level] for level in ("top", "choice", "delta")
    }


def chunks_of(stream: bytes) -> list[bytes]:
    """Return the JSON of the chunks of a stream."""
    return [each[len(b"data: ") : -2] for each in split_events(stream) if each != DONE]


def envelopes(chunks: Iterable[bytes]) -> list[tuple[bytes, ...]]:
    """Return the JSON texts of the fields that all chunks share, without adjacent repetitions."""
    found: list[tuple[bytes, ...]] = []
    for chunk in chunks:
        fields = _decode_object(chunk)
        envelope = tuple(bytes(fields[name]) for name in sorted(ENVELOPE & fields.keys()))
        if not found or found[-1] != envelope:
            found.append(envelope)
    return found


def is_subsequence(items: Iterable[object], of: Iterable[object]) -> bool:
    remaining = iter(of)
    return all(item in remaining for item in items)


class PassingTests(SynchronousTestCase):
    """A chunk that no rule changes arrives with exactly its bytes, in its order."""

    @given(SAFE_STREAMS, CUTS)
    def test_text_that_begins_no_call(self, events: list[BackendEvent], cuts: list[int]) -> None:
        stream = join_events(events)
        self.assertEqual(receive(cut(stream, cuts), WITH_TOOLS)[0], stream)
        stream_translator = translator(WITH_TOOLS)
        for each in events:  # none waits for a later one
            self.assertEqual(stream_translator.receive_data(each.data), each.data)

    @thorough(80)
    @given(ANY_STREAMS, CUTS, st.sampled_from(WITHOUT_TOOLS))
    def test_any_text_without_tools(
        self, events: list[BackendEvent], cuts: list[int], request: Any
    ) -> None:
        stream = join_events(events)
        self.assertEqual(receive(cut(stream, cuts), request)[0], stream)

    @thorough(80)
    @given(CALL_STREAMS, CUTS)
    def test_other_chunks_between_calls(self, events: list[BackendEvent], cuts: list[int]) -> None:
        """Chunks without a role, content or a finish reason pass, even in the middle of a call."""
        out, _ = receive(cut(join_events(events), cuts), WITH_TOOLS)
        unchanged = [each.data for each in events if not each.may_change]
        self.assertTrue(is_subsequence(unchanged, split_events(out)), out)

    @given(SAFE_STREAMS, st.lists(VALUES, min_size=1, max_size=3), CUTS)
    def test_calls_of_the_backend(
        self, events: list[BackendEvent], values: list[str], cuts: list[int]
    ) -> None:
        """Structured calls pass, and whatever follows them in their choice."""
        calls = ""
        for number, value in enumerate(values):
            function = '{ "name":"f", "arguments" :"", "x":1e0}'
            call = f'{{"id":"b{number}","index" : {number},"k":{value},"function":{function}}}'
            role = "" if number else '"role":"assistant", '
            delta_text = f'{{{role}"tool_calls":[{call}]}}'
            calls += f'data: {{"choices":[{{"index":9, "delta":{delta_text}}}]}}\n\n'
        stream = calls.encode() + text(CALL, 9) + delta(9, "tool_calls") + join_events(events)
        self.assertEqual(receive(cut(stream, cuts), WITH_TOOLS)[0], stream)


class UnknownFieldTests(SynchronousTestCase):
    """Around a call, every unknown field arrives once, at its level, with its JSON text."""

    @thorough(80)
    @given(CALL_STREAMS, CUTS)
    def test_unknown_fields(self, events: list[BackendEvent], cuts: list[int]) -> None:
        stream = join_events(events)
        out, _ = receive(cut(stream, cuts), WITH_TOOLS)
        sent, received = chunks_of(out), chunks_of(stream)
        self.assertEqual(unknown_fields(sent), unknown_fields(received), out)
        # Each event has the fields that all chunks share, as they are in the chunk it came from.
        self.assertTrue(is_subsequence(envelopes(sent), envelopes(received)), out)


class CutTests(SynchronousTestCase):
    """The result does not depend on how the bytes are cut."""

    def assert_same(self, stream: bytes, packets: Iterable[Sequence[bytes]]) -> None:
        """Assert that all these packets of a stream give what the whole stream gives."""
        whole, report = receive([stream], WITH_TOOLS)
        events = join_texts(whole)
        for each in packets:
            out, cut_report = receive(each, WITH_TOOLS)
            if out != whole:
                self.assertEqual(join_texts(out), events, each)
            self.assertEqual(cut_report, report)

    @thorough(80)
    @given(CALL_STREAMS, CUTS)
    def test_cuts(self, events: list[BackendEvent], cuts: list[int]) -> None:
        stream = join_events(events)
        single_bytes = [stream[at : at + 1] for at in range(len(stream))]
        self.assert_same(
            stream, [cut(stream, cuts), [*(each.data for each in events), DONE], single_bytes]
        )

    @thorough(20)
    @given(st.one_of(CALL_STREAMS, SAFE_STREAMS), st.integers(0, 20_000))
    def test_every_cut(self, events: list[BackendEvent], start: int) -> None:
        """Every cut of a part of the stream: 150 bytes are an event, or more."""
        stream = join_events(events)
        start %= len(stream)
        self.assert_same(
            stream,
            ([stream[:at], stream[at:]] for at in range(start, min(start + 150, len(stream)))),
        )

    @thorough(80)
    @given(st.one_of(CALL_STREAMS, SAFE_STREAMS), st.lists(FRAMINGS, max_size=40))
    def test_cuts_between_the_lines_of_an_event(
        self, events: list[BackendEvent], framings: list[bytes]
    ) -> None:
        data = [each.data for each in events]
        lines = [*framings, *[b""] * len(data)]  # `zip` drops those that are too many
        packets = [*chain.from_iterable(zip(lines, data, strict=False)), DONE]
        stream = b"".join(packets)
        self.assert_same(stream, [packets, re.split(rb"(?<=[\r\n])", stream)])

    def test_every_cut_of_examples(self) -> None:
        unusual = 'data: {"x":1e0 ,"choices":[{"delta":{"content":%s,"k":[1.0 ]},"index":0}]}\n\n'
        parts = ["Hi é😀 ", CALL[:30], CALL[30:], "\n"]
        for is_ascii in (True, False):
            texts = [unusual % json.dumps(part, ensure_ascii=is_ascii) for part in parts]
            usage = b'data: {"choices" : [ ],"usage":{"a":1e0}}\n\n'
            stream = ROLE + "".join(texts).encode() + STOP + usage + DONE
            self.assert_same(stream, ([stream[:at], stream[at:]] for at in range(1, len(stream))))

    def test_every_two_cuts_around_the_start_of_an_event(self) -> None:
        """A read that is exactly one event of the usual bytes may belong to an earlier line."""
        usual = text("a").replace(b":", b": ")
        for framing in (
            b"event: error\n",
            b"event: error\r\n",
            b"data:\n",
            b": comment\n",
            b"id: 1\n",
        ):
            before, after = ROLE + usual * 3, usual * 2 + STOP + DONE
            stream = before + framing + after
            start, end = len(before), len(before + framing + usual)
            packets = [
                [stream[:first], stream[first:second], stream[second:]]
                for first in range(start, start + len(framing) + 9)
                for second in range(end - 2, end + 3)
            ]
            self.assert_same(stream, packets)


def chunk(data: str) -> bytes:
    return b"data: " + data.encode() + b"\n\n"


def one(choice: str, more: str = "") -> bytes:
    """Return the event of a chunk with one choice, and more fields of the chunk."""
    return chunk(f'{{"choices":[{choice}]{more}}}')


HELD = '"content":"<tool_"'  # the start of a call: held back until the next text


class ExceptionTests(SynchronousTestCase):
    """Every rule by which a chunk without a call is not passed byte for byte."""

    def assert_becomes(self, backend: bytes, client: bytes, **options: Any) -> None:
        out = translate(ROLE + backend + STOP + DONE, **options)
        self.assertEqual(out, ROLE + client + STOP + DONE)

    def assert_passes(self, *events: bytes, **options: Any) -> None:
        for each in events:
            self.assert_becomes(each, each, **options)

    def test_first_delta_without_a_role(self) -> None:
        """The role is added after the unknown fields; one of another name is kept."""
        rewritten = (
            '{"index":0,"delta":{"k":1e0,"role":"assistant","content":"a"},'
            '"x":[1.0 ],"finish_reason":null}'
        )
        for role in ("", '"role":null,', '"role":"",', '"role":5,'):
            first = one(f'{{"x":[1.0 ],"index":0,"delta":{{{role}"k":1e0, "content":"a"}}}}')
            self.assertEqual(translate(first + STOP + DONE), one(rewritten) + STOP + DONE)
        first = one('{"index":0, "delta":{"role" :"user","content":"a"}}')
        self.assertEqual(translate(first + STOP + DONE), first + STOP + DONE)

    def test_later_roles_are_removed(self) -> None:
        """A delta that had only the role stays, empty; a null role passes."""
        for role in ('"assistant"', '""', '"user"'):
            self.assert_becomes(
                one(f'{{"index":0, "delta":{{"role":{role},"k":1e0 ,"content":"a"}}}}'),
                one('{"index":0,"delta":{"k":1e0,"content":"a"},"finish_reason":null}'),
            )
            self.assert_becomes(
                one(f'{{"index":0, "delta":{{"role":{role}}}}}', ', "t":1.0'),
                one('{"index":0,"delta":{},"finish_reason":null}', ',"t":1.0'),
            )
        self.assert_passes(one('{"index":0, "delta":{"role":null ,"content":"a"}}'))

    def test_role_after_a_heartbeat_chunk(self) -> None:
        stream_translator = translator(heartbeat_style="chunk")
        stream_translator.heartbeat()
        self.assertEqual(
            stream_translator.receive_data(one('{"index":0, "delta":{"role":"assistant"}}')),
            one('{"index":0,"delta":{},"finish_reason":null}'),
        )

    def test_index_that_is_not_an_integer(self) -> None:
        rewritten = '{"index":0,"delta":{"k":1e0,"content":"a"},"x":2.0,"finish_reason":null}'
        for index in ("", '"index":null,', '"index":"0",', '"index":0.0,', '"index":1e0,'):
            self.assert_becomes(
                one(f'{{{index}"x":2.0, "delta":{{"content":"a","k":1e0}}}}', ', "t": 1.0'),
                one(rewritten, ',"t":1.0'),
            )

    def test_missing_delta(self) -> None:
        for choice in ('{"index":0, "x":1e0}', '{"delta":null,"index":0,"x":1e0}'):
            self.assert_becomes(
                one(choice), one('{"index":0,"delta":{},"x":1e0,"finish_reason":null}')
            )

    def test_missing_choices(self) -> None:
        """A chunk without choices gets empty ones; one without unknown fields is dropped."""
        for choices in ("", '"choices":null ,'):
            # The key keeps its place, so a null one stays where it was.
            expected = (
                '{"choices":[],"t":1e0,"n":null}' if choices else '{"t":1e0,"n":null,"choices":[]}'
            )
            self.assert_becomes(chunk(f'{{{choices}"t" : 1e0, "n":null}}'), chunk(expected))
            self.assert_becomes(chunk(f'{{{choices}"id":"i","model":"m","n":null,"l":[]}}'), b"")
        self.assert_passes(
            chunk('{ "choices" : [ ]}'), chunk('{"usage": null,"choices":[ ], "n":[]}')
        )

    def test_hidden_usage(self) -> None:
        """Only in chunks without choices, and only if it is an object."""
        usage = '"usage":{"a" : 1e0}'
        self.assert_becomes(chunk(f'{{"id":"i","choices":[], {usage}}}'), b"", is_usage_hidden=True)
        self.assert_becomes(
            chunk(f'{{ {usage},"choices":[ ], "t":2.0}}'),
            chunk('{"choices":[],"t":2.0}'),
            is_usage_hidden=True,
        )
        self.assert_passes(
            one('{"index":0, "delta":{}}', ", " + usage),
            chunk('{"choices":[], "usage":null}'),
            chunk('{"choices":[], "usage":[1e0]}'),
            is_usage_hidden=True,
        )

    def test_usage_that_is_repeated_without_choices(self) -> None:
        """It is hidden if it equals the last one, and that was in a chunk with a choice."""
        first = one('{"index":0, "delta":{"k":1}}', ', "usage":{"a" : 1}')
        again = '{"choices":[], "usage":{"a":1.0}'
        self.assert_becomes(first + chunk(again + "}"), first)
        self.assert_becomes(
            first + chunk(again + ', "t":1e0}'), first + chunk('{"choices":[],"t":1e0}')
        )
        bare, other = chunk(again + "}"), chunk('{"choices":[], "usage":{"a":2}}')
        self.assert_passes(bare + bare, first + first, first + other + bare)

    def test_after_the_finish_reason(self) -> None:
        """The choice is dropped, with its unknown fields; those of the chunk are sent."""
        late = '{"index":0,"delta":{"content":"late","reasoning":"late","k":1},"x":1}'
        self.assert_becomes(STOP + one(late), b"")
        out = translate(ROLE + STOP + one(late, ', "t" : 1e0') + DONE)
        self.assertEqual(out, ROLE + STOP + one("", ',"t":1e0') + DONE)

    def test_finish_reason_of_calls_that_were_not_sent(self) -> None:
        last = '{"index":0, "delta":{"k":1e0},"x":2.0,"finish_reason":"tool_calls"}'
        self.assertEqual(
            translate(ROLE + one(last, ', "t":1E1') + DONE),
            ROLE
            + one('{"index":0,"delta":{"k":1e0},"x":2.0,"finish_reason":"stop"}', ',"t":1E1')
            + DONE,
        )

    def test_text_that_is_held_back(self) -> None:
        """It arrives with the next text, or at the end; the rest of its chunk is not held back."""
        other = one('{"index":0,"delta":{ "reasoning":"r"}}')
        self.assertEqual(
            translate(ROLE + text("a ") + other + text("b<") + STOP + DONE),
            ROLE + text("a") + other + text(" b") + text("<") + STOP + DONE,
        )
        self.assert_becomes(
            one(f'{{"delta":{{"k" : 1e0, {HELD}}},"index":0, "x":[1.0 ]}}', ', "t": 1E1')
            + text("b"),
            one('{"index":0,"delta":{"k":1e0},"x":[1.0 ],"finish_reason":null}', ',"t":1E1')
            + text("<tool_b"),
        )

    def test_empty_fields_of_a_rewritten_chunk(self) -> None:
        """They are sent with each chunk that replaces it; alone they are not sent."""
        empty = ', "n":null,"l":[]'
        self.assert_becomes(
            one(f'{{"index":0,"delta":{{{HELD},"d":{{}}}},"e":""}}', empty) + text("b"),
            text("<tool_b"),
        )
        out = translate(
            ROLE
            + one(f'{{"index":0,"delta":{{"content":{json.dumps("a" + CALL)}}},"e":""}}', empty)
            + STOP
            + DONE
        )
        made = chunks_of(out)[1:-1]
        self.assertEqual(len(made), 3)
        for each in made:
            self.assertIn(b'"e":""', each)
            self.assertIn(b'"n":null,"l":[]', each)

    def test_names_and_white_space_of_a_rewritten_chunk(self) -> None:
        """Values keep their JSON text; names are encoded again, known fields moved."""
        choice = f'{{ "\\u0078" : {{ "\\u0078" : 1 }}, "index":0,"delta":{{{HELD}}} }}'
        made = '{"index":0,"delta":{},"x":{ "\\u0078" : 1 },"finish_reason":null}'
        self.assert_becomes(
            one(choice, ' , "\\/":1') + text("b"), one(made, ',"/":1') + text("<tool_b")
        )

    def test_repeated_names(self) -> None:
        """They pass, but a rewritten chunk keeps the last value only."""
        repeated = '"x":1,"\\u0078":2,"x":3.0'
        top = ', "x":1, "x":2e0'
        self.assert_passes(
            one(f'{{"index":0,"delta":{{"content":"a",{repeated}}},{repeated}}}', top)
        )
        self.assert_becomes(
            one(f'{{"index":0,"delta":{{{HELD},{repeated}}},{repeated}}}', top) + text("b"),
            one('{"index":0,"delta":{"x":3.0},"x":3.0,"finish_reason":null}', ',"x":2e0')
            + text("<tool_b"),
        )

    def test_several_choices_of_which_one_is_rewritten(self) -> None:
        """Each gets a chunk; the other keeps its values, the last has the chunk's own fields."""
        parts = [
            '{"index":1, "delta":{"content":"b" }}',
            f'{{"index":0,"delta":{{{HELD},"k":1e0}}}}',
        ]
        first = delta(1, role="assistant")
        self.assertEqual(
            translate(ROLE + first + one(",".join(parts), ', "t" : 2.0') + STOP + delta(1, "stop")),
            ROLE
            + first
            + one('{"index":1,"delta":{"content":"b" }}')
            + one('{"index":0,"delta":{"k":1e0},"finish_reason":null}', ',"t":2.0')
            + text("<tool_")
            + STOP
            + delta(1, "stop")
            + DONE,
        )

    def test_structured_calls_after_translated_ones(self) -> None:
        """Their index changes, and nothing else."""
        call = '{ "id":"b","x":1e0, "index":0,"function":{ "name":"f", "y":2.0}}'
        out = translate(ROLE + text(CALL) + one(f'{{"index":0,"delta":{{"tool_calls":[{call}]}}}}'))
        moved = '{"id":"b","x":1e0,"index":1,"function":{ "name":"f", "y":2.0}}'
        self.assertIn(
            one(f'{{"index":0,"delta":{{"tool_calls":[{moved}]}},"finish_reason":null}}'), out
        )

    def test_message_in_place_of_a_delta(self) -> None:
        first = one('{"index":0, "message":{"role":"assistant","k":1e0}, "x":2.0}')
        made = '{"index":0,"x":2.0,"delta":{"role":"assistant","k":1e0}}'
        self.assertEqual(
            translate(first + STOP + DONE),
            one(made, ',"object":"chat.completion.chunk"') + STOP + DONE,
        )
        self.assert_passes(one('{"index":0,"delta":{}, "message":null}'))

    def test_framing(self) -> None:
        """Each event is one line of data, whatever the backend sends around its JSON."""
        data = '{"choices":[ ], "t" : 1e0}'
        plain = chunk(data)
        for unusual in (
            b"event: message\nid: 5\nretry: 1\n" + plain,
            plain.replace(b"data: ", b"data:"),
            plain.replace(b"\n", b"\r\n"),
            b": comment\n" + plain + b":\n\n",
        ):
            self.assert_becomes(unusual, plain)
        self.assertEqual(translate(b"\xef\xbb\xbf" + ROLE + STOP + DONE), ROLE + STOP + DONE)
        self.assert_becomes(plain.replace(b", ", b",\ndata: "), chunk('{"choices":[],"t":1e0}'))
        self.assert_becomes(b"event: ping\n" + plain, b"")
        self.assert_passes(b"data:  " + data.encode() + b"\t\n\n")

    def test_invalid_json_and_surrogates(self) -> None:
        """The whole chunk is encoded again; numbers keep their spelling."""
        for value, made in (("NaN", "null"), ('"\\ud83d"', '"\ufffd"'), ('"a\tb"', '"a\\tb"')):
            self.assert_becomes(
                one('{"index":0, "delta":{"content":"\\u0061"}}', f', "v":{value},"n":[1E1, 1.0]'),
                one('{"index":0,"delta":{"content":"a"}}', f',"v":{made},"n":[1E1,1.0]'),
            )
        not_text = one('{"index":0, "delta":{}}', ', "v":"?"').replace(b"?", b"\xff")
        self.assert_becomes(not_text, one('{"index":0,"delta":{}}', ',"v":"\ufffd"'))
        half, rest = (one(f'{{"index":0, "delta":{{"k":"{text}"}}}}') for text in ("\\ud83d", "a"))
        self.assert_becomes(
            half + rest,
            one('{"index":0,"delta":{"k":""}}') + one('{"index":0,"delta":{"k":"\ufffda"}}'),
        )

    def test_known_fields_of_another_type(self) -> None:
        """They pass, as unknown fields do, except those of the tests above."""
        for name in ("content", "tool_calls", "function_call", "role"):
            self.assert_passes(one(f'{{"index":0, "delta":{{"{name}":[1e0 ]}}}}'))
        for name in ("text", "finish_reason", "message"):
            self.assert_passes(one(f'{{"index":0, "delta":{{}},"{name}":1e0}}'))

    def test_error_that_is_false(self) -> None:
        for value in ("null", "false", "{ }", '""', "0.0"):
            self.assert_passes(one('{"index":0, "delta":{"content":"a"}}', f', "error":{value}'))
        out = translate(ROLE + one('{"index":0,"delta":{"content":"a"}}', ', "error":1') + STOP)
        self.assertTrue(out.startswith(ROLE + b'data: {"error":{"message":"1",'), out)
        self.assertEqual(len(split_events(out)), 2)

    def test_added_finish_reason(self) -> None:
        """The chunk that is added has the fields that all chunks share, of the last chunk."""
        last = one('{"index":0, "delta":{"role":"a"}}', ', "id":"\\u0069","created":1E9,"x":1')
        shared = '{"id":"\\u0069","object":"chat.completion.chunk","created":1E9,"model":"",'
        end = shared + '"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
        self.assertEqual(translate(last + DONE), last + chunk(end) + DONE)


class UnspecifiedTests(SynchronousTestCase):
    """Behaviour of today for which there is no rule, or which a later change should correct."""

    def test_empty_values_that_strict_clients_reject(self) -> None:
        """An empty list of calls and an empty finish reason pass; a rewrite keeps the list only."""
        for unusual in (
            one('{"index":0, "delta":{"content":"a","tool_calls":[]}}'),
            one('{"index":0, "delta":{"content":"a"},"finish_reason":""}'),
        ):
            stream = ROLE + unusual + STOP + DONE
            self.assertEqual(translate(stream), stream)
        out = translate(
            one('{"index":0,"delta":{"content":"a","tool_calls":[]},"finish_reason":""}') + STOP
        )
        rewritten = '{"tool_calls":[],"role":"assistant","content":"a"}'
        self.assertEqual(
            out, one(f'{{"index":0,"delta":{rewritten},"finish_reason":null}}') + STOP + DONE
        )

    def test_number_that_is_too_large(self) -> None:
        """It passes in a chunk, but a response with it is encoded again."""
        stream = ROLE + chunk('{"choices":[ ], "x":1e400}') + STOP + DONE
        self.assertEqual(translate(stream), stream)
        message = '{"message":{"role":"assistant","content":"a"},"finish_reason":"stop"}'
        self.assertEqual(
            respond(f'{{"choices":[{message}], "x":1e400}}'),
            f'{{"choices":[{message}],"x":null}}'.encode(),
        )

    def test_ids_that_change(self) -> None:
        """A chunk keeps its own id; a stream may have several."""
        stream = ROLE + one('{"index":0, "delta":{"content":"a"}}', ', "id":"other"') + STOP + DONE
        self.assertEqual(translate(stream), stream)

    def test_requested_usage_that_the_response_lacks(self) -> None:
        """A list in place of an object."""
        body = '{"choices":[{"index":0,"message":{"role":"assistant"},"finish_reason":"stop"}]}'
        request = chat("search", stream_options={"include_usage": True})
        self.assertIn(b'"choices":[],"usage":[]}', stream_response(body, request))

    def test_message_beside_the_delta_of_an_aggregated_stream(self) -> None:
        """It takes the place of the message that the deltas make, even if it is null."""
        answer = aggregate(ROLE + one('{"index":0,"delta":{"content":"a"},"message":null}') + STOP)
        self.assertEqual(
            answer["choices"], [{"index": 0, "message": None, "finish_reason": "stop"}]
        )

    def test_nested_names_of_an_aggregated_stream(self) -> None:
        """Within an unknown field, `tool_calls` loses the items that are not objects."""
        answer = aggregate(
            ROLE + one('{"index":0,"delta":{"k":{"tool_calls":[1,{"a":2}]}}}') + STOP
        )
        self.assertEqual(answer["choices"][0]["message"]["k"], {"tool_calls": [{"a": 2}]})


# --- non-streaming responses and aggregated streams ---


class Message(NamedTuple):
    """A choice of a response."""

    content: str
    own: Fields
    extra: Fields
    reason: str


@st.composite
def messages(draw: st.DrawFn, texts: st.SearchStrategy[list[str]]) -> Message:
    own = draw(UNKNOWN_DELTA)
    if draw(st.booleans()):
        own.append(('"reasoning_content"', draw(STRINGS)))
    extra = draw(UNKNOWN_CHOICE)
    if draw(st.booleans()):
        extra.append(('"logprobs"', draw(LOGPROBS)))
    reason = draw(st.sampled_from(['"stop"', '"length"']))
    return Message("".join(draw(texts)), own, extra, reason)


@st.composite
def responses(draw: st.DrawFn, texts: st.SearchStrategy[list[str]]) -> str:
    """Return a response that has all that clients need."""
    shape = draw(SHAPES)
    is_ascii = draw(st.booleans())
    choices = []
    for index, message in enumerate(draw(st.lists(messages(texts), min_size=1, max_size=3))):
        content = json.dumps(message.content, ensure_ascii=is_ascii)
        own = [('"role"', '"assistant"'), ('"content"', content), *message.own]
        fields = [('"index"', str(index)), ('"message"', shape.spell(own)), *message.extra]
        choices.append(shape.spell([*fields, ('"finish_reason"', message.reason)]))
    top: Fields = [('"id"', '"i"'), ('"created"', "1E9"), *draw(UNKNOWN_TOP)]
    top.append(('"usage"', f'{{"total_tokens" :{draw(NUMBERS)}}}'))
    return shape.spell([*top, ('"choices"', spell_list(choices, shape.space))])


SAFE_RESPONSES = responses(st.lists(SAFE_TEXTS, max_size=3))
CALL_RESPONSES = responses(split_calls())
MIXED_RESPONSES = responses(split_calls() | st.lists(SAFE_TEXTS, max_size=3))


def respond(body: str | bytes, request: Any = WITH_TOOLS) -> bytes:
    data = body if isinstance(body, bytes) else body.encode()
    return ResponseTranslator(request, TranslationOptions(), new_id=counted_ids()).receive_body(
        data
    )


def stream_response(body: str | bytes, request: Any = WITH_TOOLS) -> bytes:
    data = body if isinstance(body, bytes) else body.encode()
    return StreamTranslator(request, TranslationOptions(), new_id=counted_ids()).receive_body(data)


class ResponseTests(SynchronousTestCase):
    """Non-streaming responses, also those that become streams."""

    @given(SAFE_RESPONSES)
    def test_unchanged(self, body: str) -> None:
        self.assertEqual(respond(body), body.encode())

    @given(CALL_RESPONSES, st.sampled_from(WITHOUT_TOOLS))
    def test_unchanged_without_tools(self, body: str, request: Any) -> None:
        self.assertEqual(respond(body, request), body.encode())

    @given(CALL_RESPONSES)
    def test_unknown_fields(self, body: str) -> None:
        out = respond(body)
        self.assertEqual(
            unknown_fields([out], "message"), unknown_fields([body.encode()], "message"), out
        )
        for name in ("id", "created"):
            self.assertEqual(_decode_object(out)[name], _decode_object(body.encode())[name])

    @given(MIXED_RESPONSES)
    def test_unchanged_choices(self, body: str) -> None:
        """A choice without a call keeps its whole message beside one with a call."""
        before, after = (
            _decode_objects(_decode_object(data)["choices"])
            for data in (body.encode(), respond(body))
        )
        for old, new in zip(before, after, strict=True):
            content = json.loads(bytes(old["message"]))["content"]
            if not re.search(r"[<T]|\s\Z", content):
                self.assertEqual(new, old)

    @given(CALL_RESPONSES)
    def test_unknown_fields_of_a_stream(self, body: str) -> None:
        found = unknown_fields(chunks_of(stream_response(body)))
        self.assertEqual(found, unknown_fields([body.encode()], "message"))


def values_sent_once(stream: bytes) -> list[Found]:
    """Return the unknown fields of which only one chunk has a value, and that is not empty."""
    found = [each for each in all_unknown_fields(chunks_of(stream)) if each[3] != b"null"]
    counts = Counter(each[:3] for each in found)
    # An empty value is lost with a chunk that is held back: see `ExceptionTests`.
    return [each for each in found if counts[each[:3]] == 1 and each[3] not in EMPTY]


def aggregate(stream: bytes, packets: Iterable[bytes] = ()) -> Any:
    aggregator = ResponseTranslator(WITH_TOOLS, TranslationOptions(), new_id=counted_ids())
    for packet in packets or [stream]:
        aggregator.receive_data(packet)
    return json.loads(aggregator.end(is_truncated=False))


class AggregateTests(SynchronousTestCase):
    """An aggregated stream keeps the values of unknown fields."""

    @thorough(80)
    @given(st.one_of(CALL_STREAMS, SAFE_STREAMS), CUTS)
    def test_unknown_fields(self, events: list[BackendEvent], cuts: list[int]) -> None:
        stream = join_events(events)
        answer = aggregate(stream, cut(stream, cuts))
        choices = {choice["index"]: choice for choice in answer["choices"]}
        for level, index, name, value in values_sent_once(stream):
            fields = answer if level == "top" else choices[index]
            fields = fields["message"] if level == "delta" else fields
            self.assertEqual(fields.get(name), json.loads(value), (level, index, name))


class OtherFormsExceptionTests(SynchronousTestCase):
    """Every rule by which a response or an aggregated stream does not keep bytes or values."""

    def response(self, choice: str, more: str = "") -> str:
        return f'{{"choices":[{choice}]{more}}}'

    def test_response_that_is_completed(self) -> None:
        """It is encoded again without white space, except in its unknown values."""
        message = '{"role":"assistant","content":"a","k":1e0}'
        made = f'{{"message":{message},"x":[1.0 ],"finish_reason":"stop"}}'
        own = '"content":"a", "k":1e0'
        for choice in (
            f'{{"message":{{"role":"assistant",{own}}},"x":[1.0 ]}}',
            f'{{"message":{{"role":"assistant",{own}}},"x":[1.0 ], "finish_reason":null}}',
            f'{{"message":{{"role":"assistant",{own}}},"x":[1.0 ], "finish_reason":""}}',
            f'{{"message":{{"role":"assistant",{own}}},"x":[1.0 ], "finish_reason":"tool_calls"}}',
            f'{{"message":{{{own}}},"x":[1.0 ], "finish_reason":"stop"}}',
        ):
            self.assertEqual(
                respond(self.response(choice, ', "t":2E0')),
                self.response(made, ',"t":2E0').encode(),
            )

    def test_response_with_text_that_would_be_held_back(self) -> None:
        """It is encoded again, though its values are the same."""
        choice = '{"message":{"role":"assistant", "content":"a "},"finish_reason":"stop"}'
        body = self.response(choice)
        self.assertEqual(respond(body), body.replace(", ", ",").encode())

    def test_repeated_names_of_a_response(self) -> None:
        """They pass, but a rewritten message keeps the last value only."""
        choice = '{"message":{"role":"assistant","content":"a","k":1,"k":2},"finish_reason":"stop"}'
        body = self.response(choice, ', "x":1,"x":2.0')
        self.assertEqual(respond(body), body.encode())
        self.assertEqual(
            respond(body.replace('"stop"', "null")),
            self.response(choice.replace('"k":1,', ""), ',"x":2.0').encode(),
        )

    def test_response_as_a_stream(self) -> None:
        """`object` changes, line ends are removed, and usage may get its own chunk."""
        body = (
            '{"object":"chat.completion",\n"choices":[{"index":0,"finish_reason":"stop",'
            '"message":{"role":"assistant",\r\n"k":[1e0, 2.0]}}], "usage":{"a" : 1E1}}'
        )
        made = '{"index":0,"finish_reason":"stop","delta":{"role":"assistant","k":[1e0,%s2.0]}}'
        head = '{"object":"chat.completion.chunk","choices":'
        self.assertEqual(
            stream_response(body), chunk(f'{head}[{made % " "}],"usage":{{"a" : 1E1}}}}') + DONE
        )
        inside = body.replace("[1e0, 2.0]", "[1e0,\n2.0]")
        self.assertEqual(
            stream_response(inside), chunk(f'{head}[{made % ""}],"usage":{{"a":1E1}}}}') + DONE
        )
        request = chat("search", stream_options={"include_usage": True})
        self.assertEqual(
            stream_response(body, request),
            chunk(f"{head}[{made % ' '}]}}") + chunk(f'{head}[],"usage":{{"a" : 1E1}}}}') + DONE,
        )

    def test_spelling_of_an_aggregated_stream(self) -> None:
        """Values are kept, not their JSON text."""
        stream = ROLE + chunk('{"choices":[],"t":[1e0,140.00,"\\u00e9\\/",-0,1e400]}') + STOP
        aggregator = ResponseTranslator(WITH_TOOLS, TranslationOptions())
        aggregator.receive_data(stream)
        self.assertIn('"t":[1.0,140.0,"é/",0,null]'.encode(), aggregator.end(is_truncated=False))

    def test_fields_of_several_chunks(self) -> None:
        """The last value but null counts; objects and lists in a choice are joined."""
        stream = ROLE
        for value in ("1", '{"a":1}', '{"b":2}', "null"):
            stream += one(f'{{"index":0,"delta":{{"k":{value}}},"x":{value}}}', f',"t":{value}')
        for value in ("[1]", "[2]", "null"):
            stream += one(f'{{"index":0,"delta":{{"l":{value}}},"m":{value}}}', f',"n":{value}')
        for value in ('"a"', '"b"'):
            values = f'"content":{value},"id":{value},"s":{value}'
            stream += one(f'{{"index":0,"delta":{{"k":1}},{values}}}', f",{values}")
        answer = aggregate(stream + STOP)
        joined = {"a": 1, "b": 2}
        (choice,) = answer["choices"]
        self.assertEqual((answer["t"], answer["n"]), ({"b": 2}, [2]))
        self.assertEqual(
            (choice["x"], choice["m"], choice["message"]["l"]), (joined, [1, 2], [1, 2])
        )
        # Text is joined; of an id, the first counts, but the last one at the top.
        self.assertEqual((answer["content"], answer["id"], answer["s"]), ("ab", "c", "b"))
        self.assertEqual((choice["content"], choice["id"], choice["s"]), ("ab", "a", "b"))
