"""Tools in the prompt, and the errors after which they are written there."""

from __future__ import annotations

import json
from bisect import bisect_left
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.conversation.messages import MessageParser
from blockops.conversation.token_counts import RATIO_RANGE, raw_estimate
from blockops.conversation.tools_in_prompt import MUST_CALL, NO_CALL, TOOL_FIELDS
from blockops.errors import ApiError
from blockops.plugins import tool_prompt_for
from blockops.toolcalls.dialects.prompts import HermesPrompt, QwenXmlPrompt, ToolCallLinePrompt
from blockops.upstream.compatibility import MAX_MODELS, BackendCompatibility
from tests.world import DONE, IDLE, MESSAGES, WEATHER, Backend, Client, World, chat, chunk

USER_MESSAGE = {"role": "user", "content": "And in Rome?"}
CALL_MESSAGE = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city":"Bonn"}'},
        }
    ],
}
RESULT_MESSAGE = {"role": "tool", "tool_call_id": "call_1", "content": "21"}
HISTORY = [{"role": "user", "content": "How is Bonn?"}, CALL_MESSAGE, RESULT_MESSAGE, USER_MESSAGE]

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'

#: Errors of backends without tools: backend -> status and body.
TOOL_ERRORS: dict[str, tuple[str, dict[str, Any] | bytes]] = {
    "vLLM": (
        "400 Bad Request",
        {
            "error": {
                "message": '"auto" tool choice requires --enable-auto-tool-choice and '
                "--tool-call-parser to be set",
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            }
        },
    ),
    "vLLM of old": (
        "400 Bad Request",
        {
            "object": "error",
            "message": 'tool_choice="required" requires --tool-call-parser to be set',
            "code": 400,
        },
    ),
    "llama.cpp without --jinja": (
        "500 Internal Server Error",
        {"error": {"code": 500, "message": "tools param requires --jinja flag"}},
    ),
    "ik_llama.cpp": (
        "500 Internal Server Error",
        {"error": {"code": 500, "message": "tools param is not fully supported yet"}},
    ),
    "Ollama": (
        "400 Bad Request",
        {"error": {"message": "registry.ollama.ai/library/gemma3:4b does not support tools"}},
    ),
    "text": ("400 Bad Request", b"Unsupported param: tools"),
}


def reply(backend: Backend, text: str = "Fine.") -> None:
    backend.begin_stream()
    backend.stream(chunk(text, role="assistant"), chunk(finish_reason="stop"), DONE)
    backend.reactor.advance(0)


def json_response(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "model": "tiny", "choices": [choice]}


def finish_reason(client: Client) -> str:
    chunks = [json.loads(event) for event in client.events() if event != "[DONE]"]
    reasons = [choice["finish_reason"] for each in chunks for choice in each["choices"]]
    return str(reasons[-1])


class PromptModeTests(SynchronousTestCase):
    """`--tools=prompt`."""

    def start(self, world: World, **fields: Any) -> tuple[Client, Backend]:
        return world.start_chat(**fields)

    def test_the_backend_receives_no_tools(self) -> None:
        world = World(tools="prompt")
        client, backend = world.start_chat(
            messages=HISTORY, tool_choice="required", parallel_tool_calls=True, seed=7
        )
        request = backend.request_json()
        self.assertEqual(set(TOOL_FIELDS) & set(request), set())
        self.assertEqual(request["seed"], 7)
        system, question, body, answer, last = request["messages"]
        prompt = HermesPrompt()
        self.assertEqual(system["content"], f"{prompt.tools_text([WEATHER])}\n\n{MUST_CALL}")
        self.assertEqual((question, last), (HISTORY[0], USER_MESSAGE))
        self.assertEqual(
            body,
            {"role": "assistant", "content": prompt.call_text("get_weather", {"city": "Bonn"})},
        )
        self.assertEqual(
            answer, {"role": "user", "content": "<tool_response>\n21\n</tool_response>"}
        )
        reply(backend, CALL)
        self.assertEqual(finish_reason(client), "tool_calls")
        self.assertEqual(world.load(), IDLE)

    def test_json(self) -> None:
        world = World(tools="prompt", tool_format="line")
        client, backend = world.start_chat(stream=False)
        self.assertEqual(
            backend.request_json()["messages"][0]["content"],
            ToolCallLinePrompt().tools_text([WEATHER]),
        )
        backend.respond(
            json_response('TOOL_CALL: {"name": "get_weather", "arguments": {"city": "Rome"}}')
        )
        (choice,) = client.json()["choices"]
        self.assertEqual(choice["finish_reason"], "tool_calls")
        self.assertEqual(choice["message"]["tool_calls"][0]["function"]["name"], "get_weather")

    def test_another_dialect(self) -> None:
        _, backend = World(tools="prompt", tool_format="xml").start_chat()
        system_prompt = backend.request_json()["messages"][0]["content"]
        self.assertEqual(system_prompt, QwenXmlPrompt().tools_text([WEATHER]))

    def test_unknown_dialect(self) -> None:
        error = self.assertRaises(ValueError, tool_prompt_for, "jsn")
        self.assertIn("use json, xml, line", str(error))

    def test_calls_are_forbidden_at_the_end(self) -> None:
        client, backend = World(tools="prompt").start_chat(messages=HISTORY, tool_choice="none")
        messages = backend.request_json()["messages"]
        self.assertEqual(messages[0]["content"], HermesPrompt().tools_text([WEATHER]))
        self.assertEqual(messages[-1]["content"], f"{USER_MESSAGE['content']}\n\n{NO_CALL}")
        reply(backend, CALL)
        self.assertEqual(finish_reason(client), "stop")

    def test_request_without_tools_passes_unchanged(self) -> None:
        world = World(tools="prompt", notices="off")
        client = world.client()
        body = b'{"messages":  [{"role": "user", "content": "Hi"}], "stream": false}'
        client.post("/v1/chat/completions", body)
        self.assertTrue(world.backend().request().endswith(body))

    def test_pass_is_the_default(self) -> None:
        _, backend = World().start_chat(messages=HISTORY)
        self.assertEqual(backend.request_json()["tools"], [WEATHER])
        self.assertEqual(backend.request_json()["messages"], HISTORY)

    def test_after_notices_and_resets(self) -> None:
        world = World(tools="prompt", cache_reset="off")
        messages = [*HISTORY, {"role": "assistant", "content": "Fine."}]
        _, backend = world.start_chat(
            messages=[*messages, {"role": "user", "content": "/new Hello"}]
        )
        self.assertEqual(
            backend.request_json()["messages"],
            [
                {"role": "system", "content": HermesPrompt().tools_text([WEATHER])},
                {"role": "user", "content": "Hello"},
            ],
        )

    def test_nested_too_deeply(self) -> None:
        """JSON that can be decoded but not encoded is rejected too."""
        tool = {"type": "function", "function": {"name": "f", "parameters": {"x": "DEEP"}}}
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "DEEP"}}
        called = {"role": "assistant", "content": None, "tool_calls": [call]}
        world = World(tools="prompt")
        for fields in ({"tools": [tool]}, {"messages": [*MESSAGES, called]}):
            text = json.dumps(chat(**fields))

            def status_at(depth: int, text: str = text) -> int:
                body = text.replace('"DEEP"', "[" * depth + "]" * depth)
                client = world.client()
                client.post("/v1/chat/completions", body.encode())
                status = client.status()
                client.disconnect()
                self.assertIn(status, {0, 400}, (text, depth))
                return status

            # The maximum depth depends on the Python version: search for it, and test around it.
            edge = bisect_left(range(400_000), 400, key=status_at)
            self.assertEqual((status_at(edge - 120), status_at(edge + 60)), (0, 400))
            for depth in range(edge - 120, edge + 60):
                status_at(depth)


class TokenCountTests(SynchronousTestCase):
    """Tools in the prompt count once, as the text that they are there."""

    def test_once(self) -> None:
        world = World(tools="prompt", token_warn_threshold=10, token_hard_threshold=20_000)
        texts: list[str] = []
        client = world.client()
        client.post("/v1/chat/completions", chat())
        while (backend := world.backend()).request().startswith(b"POST /tokenize"):
            texts.append(backend.request_json()["prompt"])
            backend.respond({"tokens": [1] * 100})
        self.assertIn("messages", backend.request_json())
        self.assertEqual(sorted(texts), ["Hello", HermesPrompt().tools_text([WEATHER])][::-1])

    def test_the_ratio_is_that_of_the_sent_prompt(self) -> None:
        """The ratio of a model is the backend's count over the estimate of the whole prompt."""
        usage = {"prompt_tokens": 520, "completion_tokens": 1, "total_tokens": 521}
        (hello,) = MessageParser().parse([json.dumps(chat()["messages"][0]).encode()])
        for tools in ("prompt", "auto"):
            world = World(tools=tools)
            _, backend = world.start_chat(model="m")
            if tools == "auto":
                backend.respond(b"it does not support tools", "400 Bad Request")
                backend = world.backend()
            backend.begin_stream()
            usage_event = f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
            backend.stream(
                chunk("Hi", role="assistant"), chunk(finish_reason="stop"), usage_event, DONE
            )
            backend.reactor.advance(0)
            tools_text = HermesPrompt().tools_text([WEATHER])
            sent = [hello.info, MessageParser().tools_info(tools_text.encode())]
            ratio = world.daemon.components.conversations.tokens.for_model("m").ratio
            self.assertAlmostEqual(ratio, 520 / raw_estimate(sent), msg=tools)
            self.assertLess(ratio, RATIO_RANGE[1])

    def test_whole_steps_are_dropped(self) -> None:
        world = World(tools="prompt", token_warn_threshold=300, token_hard_threshold=1500)
        steps = [[CALL_MESSAGE, {**RESULT_MESSAGE, "content": "word " * 300}] for _ in range(6)]
        messages = [HISTORY[0], *(message for step in steps for message in step)]
        _, backend = world.start_chat(messages=messages)
        backend.respond(b"", "404 Not Found")  # no /tokenize
        request = world.backend().request_json()["messages"]
        system, question, marker, *rest = request
        self.assertIn("get_weather", system["content"])
        self.assertEqual(question, HISTORY[0])
        self.assertIn("left out here", marker["content"])
        roles = [message["role"] for message in rest]
        self.assertLess(len(rest), 2 * len(steps))
        self.assertEqual(roles, ["assistant", "user"] * (len(rest) // 2))


class AutoModeTests(SynchronousTestCase):
    """`--tools=auto`."""

    def test_known_errors(self) -> None:
        for name, (status, body) in TOOL_ERRORS.items():
            world = World(tools="auto")
            client, rejecting_backend = world.start_chat(messages=HISTORY)
            self.assertEqual(rejecting_backend.request_json()["tools"], [WEATHER], name)
            rejecting_backend.respond(body, status)
            backend = world.backend()
            self.assertNotIn("tools", backend.request_json(), name)
            system_prompt = backend.request_json()["messages"][0]["content"]
            self.assertEqual(system_prompt, HermesPrompt().tools_text([WEATHER]), name)
            self.assertEqual(
                backend.request_json()["stream_options"], {"include_usage": True}, name
            )
            reply(backend, CALL)
            self.assertEqual((client.status(), finish_reason(client)), (200, "tool_calls"), name)
            self.assertEqual(world.load(), IDLE, name)

    def reject(self, rejecting_backend: Backend, name: str = "vLLM") -> None:
        status, body = TOOL_ERRORS[name]
        rejecting_backend.respond(body, status)

    def test_remembered_for_the_model(self) -> None:
        world = World(tools="auto")
        _, rejecting_backend = world.start_chat(model="a")
        self.reject(rejecting_backend)
        reply(world.backend())
        _, backend = world.start_chat(model="a")
        self.assertNotIn("tools", backend.request_json())
        reply(backend)
        _, other = world.start_chat(model="b")
        self.assertIn("tools", other.request_json())

    def test_json(self) -> None:
        for settings in ({}, {"whole_as_stream": True}):
            world = World(tools="auto", **settings)
            client, rejecting_backend = world.start_chat(stream=False)
            self.reject(rejecting_backend)
            backend = world.backend()
            self.assertNotIn("tools", backend.request_json())
            backend.respond(json_response(CALL))
            self.assertEqual(client.json()["choices"][0]["finish_reason"], "tool_calls")
            self.assertEqual(world.load(), IDLE)

    def test_usage_is_rejected_too(self) -> None:
        usage = b'{"error": {"message": "Unrecognized argument: stream_options"}}'
        world = World(tools="auto")
        client, backend = world.start_chat()
        backend.respond(usage, "400 Bad Request")
        backend = world.backend()
        self.assertIn("tools", backend.request_json())
        self.reject(backend)
        backend = world.backend()
        self.assertNotIn("tools", backend.request_json())
        self.assertNotIn("stream_options", backend.request_json())
        reply(backend)
        self.assertEqual(client.status(), 200)

    def test_one_retry(self) -> None:
        world = World(tools="auto")
        client, backend = world.start_chat()
        self.reject(backend)
        self.reject(world.backend(), "Ollama")
        self.assertEqual(client.status(), 400)
        self.assertIn("does not support tools", client.json()["error"]["message"])
        self.assertEqual(world.connection_attempts(), 2)

    def test_template_without_results(self) -> None:
        body = b'{"error": {"message": "Conversation roles must alternate user/assistant/..."}}'
        world = World(tools="auto")
        client, backend = world.start_chat(messages=HISTORY, tools=None)
        backend.respond(body, "400 Bad Request")
        backend = world.backend()
        roles = [message["role"] for message in backend.request_json()["messages"]]
        self.assertEqual(roles, ["user", "assistant", "user", "user"])
        reply(backend)
        self.assertEqual(client.status(), 200)
        _, backend = world.start_chat()
        self.assertNotIn("tools", backend.request_json())

    def test_template_with_results_and_another_error(self) -> None:
        """One client's mistake does not change the requests of the others."""
        body = b'{"error": {"message": "Conversation roles must alternate user/assistant/..."}}'
        for stream in (True, False):
            world = World(tools="auto")
            client, backend = world.start_chat(messages=[*MESSAGES, *HISTORY], stream=stream)
            backend.respond(body, "400 Bad Request")
            world.backend().respond(body, "400 Bad Request")
            self.assertEqual(client.status(), 400)
            _, backend = world.start_chat()
            self.assertIn("tools", backend.request_json())

    def test_other_errors(self) -> None:
        roles = b'{"error": {"message": "Conversation roles must alternate user/assistant/..."}}'
        for settings, fields, body in (
            ({"tools": "auto"}, {}, roles),
            ({"tools": "auto"}, {}, b"no such model"),
            ({"tools": "auto"}, {"tools": None}, b"does not support tools"),
            ({"tools": "pass"}, {}, b"does not support tools"),
            ({"tools": "prompt"}, {}, b"does not support tools"),
        ):
            world = World(**settings)
            client, backend = world.start_chat(**fields)
            backend.respond(body, "400 Bad Request")
            self.assertEqual(client.status(), 400, body)
            self.assertEqual(world.connection_attempts(), 1, body)

    def test_concurrent_rejections(self) -> None:
        world = World(tools="auto")
        pairs = [world.start_chat() for _ in range(2)]
        for client, rejecting_backend in pairs:
            self.reject(rejecting_backend)
            reply(world.backend())
            self.assertEqual(client.status(), 200)

    def test_remembered_models_are_limited(self) -> None:
        compatibility, rejecting_backend = (
            BackendCompatibility(),
            ApiError(400, "it does not support tools"),
        )
        for number in range(2 * MAX_MODELS):
            self.assertTrue(
                compatibility.detect_tools_error(rejecting_backend, str(number), with_results=False)
            )
        known = [compatibility.rejects_tools(str(number)) for number in range(2 * MAX_MODELS)]
        self.assertEqual(known, [False] * MAX_MODELS + [True] * MAX_MODELS)
