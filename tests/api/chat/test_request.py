"""Requests are read as far as needed, refused clearly, and sent on as they came."""

from __future__ import annotations

import json
import math
import weakref
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.request import ChatRequest, CompletionRequest
from blockops.errors import ApiError
from blockops.toolcalls.options import Rules
from blockops.toolcalls.tools import Offer

MESSAGES = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "search", "parameters": SCHEMA}}


def parse(**fields: Any) -> ChatRequest:
    return ChatRequest.parse(json.dumps({"messages": MESSAGES, **fields}).encode())


class ReadTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        asked = parse()
        self.assertEqual(
            (asked.stream, asked.include_usage, asked.n, asked.model), (False, False, 1, None)
        )

    def test_fields(self) -> None:
        asked = parse(stream=True, stream_options={"include_usage": True}, n=3, model="m")
        self.assertEqual(
            (asked.stream, asked.include_usage, asked.n, asked.model), (True, True, 3, "m")
        )

    def test_null_is_missing(self) -> None:
        asked = parse(stream=None, stream_options=None, n=None, model=None, tools=None)
        self.assertEqual(
            (asked.stream, asked.include_usage, asked.n, asked.model), (False, False, 1, None)
        )

    def test_body_is_what_came(self) -> None:
        for body in (
            b' {"messages" : [ {} ], "x": 1.50, "x": 1e5}\n',
            b'{"messages":[{"content":"\\ud83d"}]}',
            b'{"messages":[{"content":"x","n":NaN}], "stream": true}',
            b'{"messages":[{}],"seed":1e400}',
            b'{"messages":[{"content":"\xff"}]}',
        ):
            self.assertEqual(ChatRequest.parse(body).body(), body)

    def test_fields_that_it_does_not_have_are_put_behind_the_others(self) -> None:
        came = b' {"messages":[{"role":"user","content":"}"}], "x": 1e400 }\n'
        usage = {"stream_options": {"include_usage": True}}
        body = ChatRequest.parse(came).body(usage)
        self.assertEqual(body, came[:-2] + b',"stream_options":{"include_usage":true}}\n')

    def test_fields_that_it_may_have_are_not_put_there_twice(self) -> None:
        usage = {"stream_options": {"include_usage": True}}
        for more in (
            b'"stream_options":null',
            b'"stream\\u005foptions":{"a":1}',
            b'"stream_options":{},"stream_options":{"x":1}',
            b'"tools":[],"stream_options":{}',
        ):
            came = b'{%b,"messages":[{"role":"user"}]}' % more
            body = ChatRequest.parse(came).body(usage, ["tools"])
            self.assertEqual(body.count(b"options"), 1, more)
            self.assertEqual(json.loads(body), {"messages": [{"role": "user"}], **usage}, more)
        # Of a field that is not read nobody knows whether it is there.
        body = ChatRequest.parse(b'{"messages":[{}],"seed":1}').body({"seed": 2})
        self.assertEqual(json.loads(body), {"messages": [{}], "seed": 2})
        self.assertEqual(body.count(b"seed"), 1)

    def test_lenient_body_is_read_too(self) -> None:
        body = b'{"messages":[{"content":"\\ud83d"}],"stream":true,"n":2,"tools":[%s]}'
        asked = ChatRequest.parse(body % json.dumps(TOOL).encode())
        self.assertEqual((asked.stream, asked.n), (True, 2))
        self.assertEqual(asked.offer(Rules()).schemas, {"search": SCHEMA})

    def test_completion(self) -> None:
        body = b'{"stream":true,"n":2,"model":"m","stream_options":{"include_usage":true}}'
        asked = CompletionRequest.parse(body)
        self.assertEqual(
            (asked.stream, asked.include_usage, asked.n, asked.model), (True, True, 2, "m")
        )
        self.assertEqual(asked.body(), body)


class RefusalTests(SynchronousTestCase):
    """Each bad request is a 400 that names the field and says what to send."""

    def refuse(self, body: bytes, kind: type[Any] = ChatRequest) -> ApiError:
        error: ApiError = self.assertRaises(ApiError, kind.parse, body)
        self.assertEqual((error.status, error.type), (400, "invalid_request_error"))
        return error

    def test_no_json(self) -> None:
        for body in (b"", b"{", b"nope", b"\xff", b'{"a":"\n"}', b"[" * 100_000, b"\x00"):
            for kind in (ChatRequest, CompletionRequest):
                self.assertIn("not valid JSON", self.refuse(body, kind).message)

    def test_no_object(self) -> None:
        kinds = {
            b"[]": "a list",
            b'"x"': "a string",
            b"1": "a number",
            b"null": "null",
            b"true": "a b",
        }
        for body, word in kinds.items():
            message = self.refuse(body).message
            self.assertIn(word, message)
            self.assertIn("JSON object", message)

    def test_half_a_surrogate_pair_in_a_name(self) -> None:
        for more in (b"", b',"stream":false'):
            body = b'{"messages":[{"role":"user","content":"a"}],"\\ud800":1,"x":NaN%s}' % more
            changed = ChatRequest.parse(body).body({"stream": True})
            self.assertIn(b'"\\ud800":1', changed)
            self.assertTrue(json.loads(changed)["stream"])

    def test_messages(self) -> None:
        cases = {
            b"{}": ("missing", "missing_required_parameter", "messages"),
            b'{"messages":null}': ("null", "invalid_type", "messages"),
            b'{"messages":"hi"}': ("a string", "invalid_type", "messages"),
            b'{"messages":{}}': ("an object", "invalid_type", "messages"),
            b'{"messages":[]}': ("empty", "empty_array", "messages"),
            b'{"messages":[{},"hi"]}': ("an object", "invalid_type", "messages[1]"),
            b'{"messages":[null]}': ("an object", "invalid_type", "messages[0]"),
        }
        for body, (word, code, param) in cases.items():
            for lenient in (body, body.replace(b"{", b'{"x":"\\ud83d",', 1).replace(b",}", b"}")):
                error = self.refuse(lenient)
                self.assertIn(word, error.message)
                self.assertEqual((error.code, error.param), (code, param))

    def test_types(self) -> None:
        cases: list[tuple[str, Any, str]] = [
            ("stream", "yes", "true or false"),
            ("stream", 1, "true or false"),
            ("n", "2", "a whole number"),
            ("n", True, "a whole number"),
            ("n", 1.5, "a whole number"),
            ("n", 0, "1 or more"),
            ("n", -1, "1 or more"),
            ("tools", {}, "a list"),
            ("tools", "search", "a list"),
            ("functions", 7, "a list"),
            ("model", 5, "a string"),
            ("stream_options", [], "an object"),
        ]
        for name, value, word in cases:
            error = self.refuse(json.dumps({"messages": MESSAGES, name: value}).encode())
            self.assertIn(f"`{name}`", error.message)
            self.assertIn(word, error.message)
            self.assertEqual(error.param, name)

    @given(st.binary(max_size=20), st.sampled_from(["messages", "model", "tools", "x"]))
    def test_any_string(self, data: bytes, name: str) -> None:
        try:
            asked = ChatRequest.parse(b'{"messages":[{}],"%s":"%s"}' % (name.encode(), data))
        except ApiError as error:
            self.assertEqual(error.status, 400)
        else:
            asked.offer(Rules())

    @given(st.binary(max_size=40) | st.text('{}[]":,mesag1 ', max_size=40).map(str.encode))
    def test_garbage(self, body: bytes) -> None:
        try:
            ChatRequest.parse(body)
        except ApiError as error:
            self.assertEqual(error.status, 400)


class NumberTests(SynchronousTestCase):
    def test_lists_are_counted_and_not_read(self) -> None:
        self.assertEqual(parse(tools=[TOOL, {}, 1]).number_of("tools"), 3)
        nothing: list[dict[str, Any]] = [{}, {"tools": None}, {"tools": []}]
        for fields in nothing:
            self.assertEqual(parse(**fields).number_of("tools"), 0, fields)

    def test_what_only_a_lenient_reader_takes(self) -> None:
        body = b'{"messages":[{}],"tools":[{},{}],"functions":null,"temperature":NaN}'
        asked = ChatRequest.parse(body)
        self.assertEqual([asked.number_of(name) for name in ("tools", "functions", "x")], [2, 0, 0])


class OfferTests(SynchronousTestCase):
    def offer(self, rules: Rules | None = None, **fields: Any) -> Offer:
        return parse(**fields).offer(rules or Rules())

    def test_tools(self) -> None:
        self.assertEqual(self.offer(tools=[TOOL]), Offer({"search": SCHEMA}))

    def test_the_same_one_is_made_once_as_long_as_it_is_of_use(self) -> None:
        offer = self.offer(tools=[TOOL])
        self.assertIs(self.offer(tools=[TOOL], messages=[{}, {}]), offer)
        others: list[dict[str, Any]] = [
            {"tools": [TOOL, TOOL]},
            {"tools": [TOOL], "tool_choice": "none"},
            {"tools": [TOOL], "parallel_tool_calls": False},
            {"tools": [TOOL], "rules": Rules(translate="always")},
        ]
        for other in others:
            self.assertIsNot(self.offer(**other), offer, other)
        seen = weakref.ref(offer)
        del offer
        self.assertIsNone(seen())

    def test_without_tools(self) -> None:
        cases: list[dict[str, Any]] = [{}, {"tools": []}, {"tools": None}, {"tool_choice": "auto"}]
        for fields in cases:
            self.assertEqual(self.offer(**fields), Offer({}, translate=False))

    def test_schemas_that_say_nothing(self) -> None:
        tools = [
            {"type": "function", "function": {"name": "a"}},
            {"type": "function", "function": {"name": "b", "parameters": None}},
        ]
        self.assertEqual(self.offer(tools=tools).schemas, {"a": {}, "b": {}})

    def test_parameters_in_a_list(self) -> None:
        """As Qwen-Agent sends them."""
        listed = {"name": "a", "parameters": [{"name": "x", "type": "integer"}]}
        (schema,) = self.offer(tools=[{"type": "function", "function": listed}]).schemas.values()
        self.assertEqual(schema["properties"], {"x": {"type": "integer"}})

    def test_odd_tools(self) -> None:
        """They are the backend's to judge."""
        tools = [1, {}, {"function": 1}, {"function": {"name": 1}}, {"function": None}, TOOL]
        self.assertEqual(self.offer(tools=tools).schemas, {"search": SCHEMA})

    def test_flat_tools(self) -> None:
        flat = {"type": "function", "name": "search", "parameters": SCHEMA}
        self.assertEqual(self.offer(tools=[flat]).schemas, {"search": SCHEMA})

    def test_functions(self) -> None:
        """The API's older fields."""
        functions = [{"name": "search", "parameters": SCHEMA}, 1]
        self.assertEqual(self.offer(functions=functions), Offer({"search": SCHEMA}))
        self.assertFalse(self.offer(functions=functions, function_call="none").translate)
        self.assertEqual(self.offer(functions=functions, function_call={"name": "f"}).forced, "f")

    def test_tool_choice(self) -> None:
        named = {"type": "function", "function": {"name": "search"}}
        cases: list[tuple[Any, str | None, bool]] = [
            ("none", None, False),
            ("auto", None, True),
            ("required", None, True),
            (named, "search", True),
            ({"type": "function", "name": "search"}, "search", True),
            ({"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}, None, True),
            ({"type": "function", "function": "search"}, None, True),
            (7, None, True),
            (None, None, True),
        ]
        for choice, forced, translate in cases:
            offer = self.offer(tools=[TOOL], tool_choice=choice)
            self.assertEqual((offer.forced, offer.translate), (forced, translate), choice)

    def test_allowed_tools(self) -> None:
        """The others are known, so that a call of one is not taken for a slip of the model."""
        tools = [TOOL, {"type": "function", "function": {"name": "delete"}}]
        allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "search"}}]}
        offer = self.offer(tools=tools, tool_choice={"type": "allowed_tools", **allowed})
        self.assertEqual(offer, Offer({"search": SCHEMA}, forbidden=frozenset({"delete"})))
        nothing = {"type": "allowed_tools", "tools": []}
        self.assertFalse(self.offer(tools=tools, tool_choice=nothing).translate)

    def test_always(self) -> None:
        always = Rules(translate="always")
        self.assertTrue(self.offer(always).translate)
        self.assertTrue(self.offer(always, tools=[TOOL], tool_choice="none").translate)

    def test_parallel_tool_calls(self) -> None:
        self.assertFalse(self.offer(tools=[TOOL], parallel_tool_calls=False).parallel)
        self.assertTrue(self.offer(tools=[TOOL], parallel_tool_calls=True).parallel)
        self.assertTrue(self.offer(tools=[TOOL], parallel_tool_calls=None).parallel)

    def test_a_number_that_is_out_of_range(self) -> None:
        """Python's own reader takes it, and so do the backends that are written in Python."""
        tool = b'{"function": {"name": "f", "parameters": {"maximum": 1e400}}}'
        asked = ChatRequest.parse(b'{"messages": [{}], "tools": [%s]}' % tool)
        self.assertEqual(asked.offer(Rules()).schemas, {"f": {"maximum": math.inf}})
        self.assertTrue(asked.offer(Rules()).translate)

    def test_unreadable_field(self) -> None:
        """A field that cannot be read is as good as missing; the backend will say so."""
        for tools in (b'[{"x":1e400}]', b'["\xff"]'):
            asked = ChatRequest.parse(b'{"messages":[{}],"tools":%s}' % tools)
            self.assertEqual(asked.offer(Rules()), Offer({}, translate=False))


class ConversationTests(SynchronousTestCase):
    """What a conversation needs of a request, and what it changes in it."""

    def test_messages_are_the_bytes_that_came(self) -> None:
        body = b'{"messages": [{"a": 1.50}, { "b" : "\\u00e9" }]}'
        messages = [b'{"a": 1.50}', b'{ "b" : "\\u00e9" }']
        self.assertEqual(ChatRequest.parse(body).messages(), messages)

    def test_messages_that_only_a_lenient_reader_takes(self) -> None:
        body = b'{"messages": [{"content": "x", "n": NaN}], "tools": [NaN], "x": Infinity}'
        asked = ChatRequest.parse(body)
        self.assertEqual(asked.messages(), [b'{"content": "x", "n": NaN}'])
        self.assertEqual(asked.tools(), b"[NaN]")
        changed = json.loads(asked.body({"stream": True}))
        self.assertEqual((changed["stream"], changed["x"]), (True, float("inf")))

    def test_tools(self) -> None:
        self.assertEqual(parse().tools(), b"")
        self.assertEqual(parse(tools=None).tools(), b"")
        self.assertEqual(json.loads(parse(tools=[TOOL]).tools()), [TOOL])
        self.assertEqual(json.loads(parse(functions=[{"name": "f"}]).tools()), [{"name": "f"}])

    def test_fields(self) -> None:
        asked = parse(user="u", metadata={"session_id": 7})
        self.assertEqual((asked.field("user"), asked.field("metadata")), ("u", {"session_id": 7}))
        self.assertIsNone(asked.field("prompt_cache_key"))

    def test_changes_leave_the_rest_as_it_came(self) -> None:
        body = b'{"messages":[{}],"a":1.50,"b":{"c" : [ 1e5 ]},"stream":false}'
        changed = ChatRequest.parse(body).body({"stream": True, "d": 1})
        self.assertEqual(
            changed, b'{"messages":[{}],"a":1.50,"b":{"c" : [ 1e5 ]},"stream":true,"d":1}'
        )
        self.assertIs(ChatRequest.parse(body).body({}), body)

    def test_answers_that_have_to_be_json(self) -> None:
        fields: list[tuple[dict[str, Any], bool]] = [
            ({}, False),
            ({"response_format": None}, False),
            ({"response_format": {"type": "text"}}, False),
            ({"response_format": "text"}, False),
            ({"response_format": {"type": "json_object"}}, True),
            ({"response_format": {"type": "json_schema", "json_schema": {}}}, True),
            ({"guided_json": {}}, True),
            ({"grammar": "root ::= x"}, True),
            ({"structured_outputs": None}, False),
        ]
        for more, wanted in fields:
            self.assertEqual(parse(**more).wants_json, wanted, more)
