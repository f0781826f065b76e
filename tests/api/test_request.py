"""Requests are parsed, rejected with a clear error, and forwarded unchanged."""

from __future__ import annotations

import json
import math
import weakref
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.request import ChatRequest, GenerationRequest
from blockops.errors import ApiError
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.tools import OfferedTools

MESSAGES = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "search", "parameters": SCHEMA}}


def parse(**fields: Any) -> ChatRequest:
    return ChatRequest(json.dumps({"messages": MESSAGES, **fields}).encode())


class ReadTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        request = parse()
        self.assertEqual(
            (request.stream, request.include_usage, request.model),
            (False, False, None),
        )

    def test_fields(self) -> None:
        request = parse(stream=True, stream_options={"include_usage": True}, n=3, model="m")
        self.assertEqual((request.stream, request.include_usage, request.model), (True, True, "m"))

    def test_null_is_missing(self) -> None:
        request = parse(stream=None, stream_options=None, n=None, model=None, tools=None)
        self.assertEqual(
            (request.stream, request.include_usage, request.model),
            (False, False, None),
        )

    def test_body_is_unchanged(self) -> None:
        for body in (
            b' {"messages" : [ {} ], "x": 1.50, "x": 1e5}\n',
            b'{"messages":[{"content":"\\ud83d"}]}',
            b'{"messages":[{"content":"x","n":NaN}], "stream": true}',
            b'{"messages":[{}],"seed":1e400}',
            b'{"messages":[{"content":"\xff"}]}',
        ):
            self.assertEqual(ChatRequest(body).body(), body)

    def test_missing_fields_are_appended(self) -> None:
        """The other fields keep their JSON text; only the white space between them goes."""
        received = b' {"messages":[ {"role":"user","content":"}"}], "x" : 1e400 }\n'
        usage = {"stream_options": {"include_usage": True}}
        self.assertEqual(
            ChatRequest(received).body(usage),
            b'{"messages":[ {"role":"user","content":"}"}],"x":1e400,'
            b'"stream_options":{"include_usage":true}}',
        )

    def test_fields_are_not_duplicated(self) -> None:
        usage = {"stream_options": {"include_usage": True}}
        for more in (
            b'"stream_options":null',
            b'"stream\\u005foptions":{"a":1}',
            b'"stream_options":{},"stream_options":{"x":1}',
            b'"tools":[],"stream_options":{}',
        ):
            received = b'{%b,"messages":[{"role":"user"}]}' % more
            body = ChatRequest(received).body(usage, ["tools"])
            self.assertEqual(body.count(b"options"), 1, more)
            self.assertEqual(json.loads(body), {"messages": [{"role": "user"}], **usage}, more)
        body = ChatRequest(b'{"messages":[{}],"seed":1}').body({"seed": 2})
        self.assertEqual(body, b'{"messages":[{}],"seed":2}')

    def test_alias(self) -> None:
        body = b'{"messages":[{}],"model":"short","x":1.50}'
        request = ChatRequest(body, {"short": "org/long"})
        self.assertEqual((request.model, request.backend_model), ("short", "org/long"))
        self.assertEqual(request.body(), b'{"messages":[{}],"model":"org/long","x":1.50}')
        self.assertIs(ChatRequest(body, {"other": "org/long"}).body(), body)

    def test_lenient_body(self) -> None:
        body = b'{"messages":[{"content":"\\ud83d"}],"stream":true,"n":2,"tools":[%s]}'
        request = ChatRequest(body % json.dumps(TOOL).encode())
        self.assertTrue(request.stream)
        self.assertEqual(request.offered_tools(TranslationOptions()).schemas, {"search": SCHEMA})

    def test_completion(self) -> None:
        body = b'{"stream":true,"n":2,"model":"m","stream_options":{"include_usage":true}}'
        request = GenerationRequest(body)
        self.assertEqual((request.stream, request.include_usage, request.model), (True, True, "m"))
        self.assertEqual(request.body(), body)


class RejectionTests(SynchronousTestCase):
    """Each bad request gets a 400 that names the field and its valid values."""

    def reject(self, body: bytes, request_class: type[Any] = ChatRequest) -> ApiError:
        error: ApiError = self.assertRaises(ApiError, request_class, body)
        self.assertEqual((error.status, error.type), (400, "invalid_request_error"))
        return error

    def test_not_json(self) -> None:
        for body in (b"", b"{", b"nope", b"\xff", b'{"a":"\n"}', b"[" * 100_000, b"\x00"):
            for request_class in (ChatRequest, GenerationRequest):
                self.assertIn("not valid JSON", self.reject(body, request_class).message)

    def test_not_an_object(self) -> None:
        types = {
            b"[]": "a list",
            b'"x"': "a string",
            b"1": "a number",
            b"null": "null",
            b"true": "a b",
        }
        for body, word in types.items():
            message = self.reject(body).message
            self.assertIn(word, message)
            self.assertIn("JSON object", message)

    def test_field_names_keep_their_spelling(self) -> None:
        body = '{"messages":[{}],"\u00e9\\\\\\"\\u0001\x7f\\n":1}'.encode()
        self.assertEqual(ChatRequest(body).body({"a": 2}), body[:-1] + b',"a":2}')

    def test_unpaired_surrogate_in_a_field_name(self) -> None:
        for more in (b"", b',"stream":false'):
            body = b'{"messages":[{"role":"user","content":"a"}],"\\ud800":1,"x":NaN%s}' % more
            changed = ChatRequest(body).body({"stream": True})
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
                error = self.reject(lenient)
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
            error = self.reject(json.dumps({"messages": MESSAGES, name: value}).encode())
            self.assertIn(f"`{name}`", error.message)
            self.assertIn(word, error.message)
            self.assertEqual(error.param, name)

    @given(st.binary(max_size=20), st.sampled_from(["messages", "model", "tools", "x"]))
    def test_any_string(self, data: bytes, name: str) -> None:
        try:
            request = ChatRequest(b'{"messages":[{}],"%s":"%s"}' % (name.encode(), data))
        except ApiError as error:
            self.assertEqual(error.status, 400)
        else:
            request.offered_tools(TranslationOptions())

    @given(st.binary(max_size=40) | st.text('{}[]":,mesag1 ', max_size=40).map(str.encode))
    def test_garbage(self, body: bytes) -> None:
        try:
            ChatRequest(body)
        except ApiError as error:
            self.assertEqual(error.status, 400)


class LenientBodyTests(SynchronousTestCase):
    """Bodies with NaN or half a surrogate pair, which many backends accept."""

    MESSAGE = '{ "role":"user","content":"\\ud83d é" , "n":1.10}'

    def test_values_keep_their_text(self) -> None:
        tools = "[ {} , [1e999],2 ]"
        fields = f'"messages" : [{self.MESSAGE} ,{self.MESSAGE}] , "x":NaN,"tools":{tools}'
        request = ChatRequest(f"\n{{ {fields} }}\n".encode())
        self.assertEqual(request.messages(), [self.MESSAGE.encode()] * 2)
        self.assertEqual([bytes(raw) for raw in request.items("tools")], [b"{}", b"[1e999]", b"2"])
        self.assertEqual([request.items(name) for name in ("functions", "y")], [[], []])
        expected = fields.replace('"messages" : ', '"messages":').replace(' , "x"', ',"x"')
        self.assertEqual(request.body({"k": 1}), f'{{{expected},"k":1}}'.encode())

    def test_empty_containers(self) -> None:
        request = ChatRequest(b'{"messages":[{}],"tools":[ ],"x":NaN,"y":{ }}')
        self.assertEqual((request.items("tools"), request.field("y")), ([], {}))

    def test_not_an_object(self) -> None:
        for body in (b" [NaN]", b"NaN", b'"\\ud83d"'):
            with self.assertRaises(ApiError) as caught:
                ChatRequest(body)
            self.assertIn("not a JSON object", caught.exception.message)


class OfferedToolsTests(SynchronousTestCase):
    def offered_tools(
        self, options: TranslationOptions | None = None, **fields: Any
    ) -> OfferedTools:
        return parse(**fields).offered_tools(options or TranslationOptions())

    def test_tools(self) -> None:
        self.assertEqual(self.offered_tools(tools=[TOOL]), OfferedTools({"search": SCHEMA}))

    def test_equal_tools_are_shared_while_in_use(self) -> None:
        offered = self.offered_tools(tools=[TOOL])
        self.assertIs(self.offered_tools(tools=[TOOL], messages=[{}, {}]), offered)
        others: list[dict[str, Any]] = [
            {"tools": [TOOL, TOOL]},
            {"tools": [TOOL], "tool_choice": "none"},
            {"tools": [TOOL], "parallel_tool_calls": False},
            {"tools": [TOOL], "options": TranslationOptions(translate="always")},
        ]
        for other in others:
            self.assertIsNot(self.offered_tools(**other), offered, other)
        reference = weakref.ref(offered)
        del offered
        self.assertIsNone(reference())

    def test_without_tools(self) -> None:
        cases: list[dict[str, Any]] = [{}, {"tools": []}, {"tools": None}, {"tool_choice": "auto"}]
        for fields in cases:
            self.assertEqual(self.offered_tools(**fields), OfferedTools({}, may_translate=False))

    def test_missing_schemas(self) -> None:
        tools = [
            {"type": "function", "function": {"name": "a"}},
            {"type": "function", "function": {"name": "b", "parameters": None}},
        ]
        self.assertEqual(self.offered_tools(tools=tools).schemas, {"a": {}, "b": {}})

    def test_parameters_in_a_list(self) -> None:
        """As Qwen-Agent sends them."""
        listed = {"name": "a", "parameters": [{"name": "x", "type": "integer"}]}
        (schema,) = self.offered_tools(
            tools=[{"type": "function", "function": listed}]
        ).schemas.values()
        self.assertEqual(schema["properties"], {"x": {"type": "integer"}})

    def test_invalid_tools(self) -> None:
        """Invalid entries are left to the backend."""
        tools = [1, {}, {"function": 1}, {"function": {"name": 1}}, {"function": None}, TOOL]
        self.assertEqual(self.offered_tools(tools=tools).schemas, {"search": SCHEMA})

    def test_flat_tools(self) -> None:
        flat = {"type": "function", "name": "search", "parameters": SCHEMA}
        self.assertEqual(self.offered_tools(tools=[flat]).schemas, {"search": SCHEMA})

    def test_functions(self) -> None:
        """The API's older fields."""
        functions = [{"name": "search", "parameters": SCHEMA}, 1]
        self.assertEqual(self.offered_tools(functions=functions), OfferedTools({"search": SCHEMA}))
        self.assertFalse(
            self.offered_tools(functions=functions, function_call="none").may_translate
        )
        self.assertEqual(
            self.offered_tools(functions=functions, function_call={"name": "f"}).forced_tool, "f"
        )

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
            offered = self.offered_tools(tools=[TOOL], tool_choice=choice)
            self.assertEqual(
                (offered.forced_tool, offered.may_translate), (forced, translate), choice
            )

    def test_allowed_tools(self) -> None:
        """The other names are kept, so that a call of one is not counted as an unknown name."""
        tools = [TOOL, {"type": "function", "function": {"name": "delete"}}]
        allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "search"}}]}
        offered = self.offered_tools(tools=tools, tool_choice={"type": "allowed_tools", **allowed})
        self.assertEqual(
            offered, OfferedTools({"search": SCHEMA}, forbidden_tools=frozenset({"delete"}))
        )
        nothing = {"type": "allowed_tools", "tools": []}
        self.assertFalse(self.offered_tools(tools=tools, tool_choice=nothing).may_translate)

    def test_always(self) -> None:
        always = TranslationOptions(translate="always")
        self.assertTrue(self.offered_tools(always).may_translate)
        self.assertTrue(self.offered_tools(always, tools=[TOOL], tool_choice="none").may_translate)

    def test_parallel_tool_calls(self) -> None:
        self.assertFalse(self.offered_tools(tools=[TOOL], parallel_tool_calls=False).parallel)
        self.assertTrue(self.offered_tools(tools=[TOOL], parallel_tool_calls=True).parallel)
        self.assertTrue(self.offered_tools(tools=[TOOL], parallel_tool_calls=None).parallel)

    def test_number_out_of_range(self) -> None:
        """Python's own parser accepts it, and so do backends written in Python."""
        tool = b'{"function": {"name": "f", "parameters": {"maximum": 1e400}}}'
        request = ChatRequest(b'{"messages": [{}], "tools": [%s]}' % tool)
        self.assertEqual(
            request.offered_tools(TranslationOptions()).schemas, {"f": {"maximum": math.inf}}
        )
        self.assertTrue(request.offered_tools(TranslationOptions()).may_translate)

    def test_invalid_field(self) -> None:
        """A field that cannot be parsed counts as missing; the backend rejects the request."""
        for tools in (b'[{"x":1e400}]', b'["\xff"]'):
            request = ChatRequest(b'{"messages":[{}],"tools":%s}' % tools)
            self.assertEqual(
                request.offered_tools(TranslationOptions()), OfferedTools({}, may_translate=False)
            )


class ConversationTests(SynchronousTestCase):
    """The parts of a request that the conversation needs and changes."""

    def test_messages_are_unchanged(self) -> None:
        body = b'{"messages": [{"a": 1.50}, { "b" : "\\u00e9" }]}'
        messages = [b'{"a": 1.50}', b'{ "b" : "\\u00e9" }']
        self.assertEqual(ChatRequest(body).messages(), messages)

    def test_messages_of_a_lenient_body(self) -> None:
        body = b'{"messages": [{"content": "x", "n": NaN}], "tools": [NaN], "x": Infinity}'
        request = ChatRequest(body)
        self.assertEqual(request.messages(), [b'{"content": "x", "n": NaN}'])
        self.assertEqual(request.tools_json(), b"[NaN]")
        changed = json.loads(request.body({"stream": True}))
        self.assertEqual((changed["stream"], changed["x"]), (True, float("inf")))

    def test_tools(self) -> None:
        self.assertEqual(parse().tools_json(), b"")
        self.assertEqual(parse(tools=None).tools_json(), b"")
        self.assertEqual(json.loads(parse(tools=[TOOL]).tools_json()), [TOOL])
        self.assertEqual(json.loads(parse(functions=[{"name": "f"}]).tools_json()), [{"name": "f"}])

    def test_fields(self) -> None:
        request = parse(user="u", metadata={"session_id": 7})
        self.assertEqual(
            (request.field("user"), request.field("metadata")), ("u", {"session_id": 7})
        )
        self.assertIsNone(request.field("prompt_cache_key"))

    def test_changes_keep_other_fields_unchanged(self) -> None:
        body = b'{"messages":[{}],"a":1.50,"b":{"c" : [ 1e5 ]},"stream":false}'
        changed = ChatRequest(body).body({"stream": True, "d": 1})
        self.assertEqual(
            changed, b'{"messages":[{}],"a":1.50,"b":{"c" : [ 1e5 ]},"stream":true,"d":1}'
        )
        self.assertIs(ChatRequest(body).body({}), body)

    def test_is_constrained(self) -> None:
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
        for more, expected in fields:
            self.assertEqual(parse(**more).is_constrained, expected, more)
