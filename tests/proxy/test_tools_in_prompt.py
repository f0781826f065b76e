"""Tools in the prompt: what the backend gets, what the client gets, and what is learnt."""

from __future__ import annotations

import json
from bisect import bisect_left
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.conversation.messages import Reader
from blockops.conversation.token_counts import RATIOS, of_tools, weight_of
from blockops.conversation.tools_in_prompt import FIELDS, MUST_CALL, NO_CALL
from blockops.errors import ApiError
from blockops.plugins import wording_of
from blockops.toolcalls.dialects.prompts import CoderWording, HermesWording, LineWording
from blockops.upstream.compatibility import MAX_MODELS, Refusals
from tests.world import DONE, MESSAGES, NOTHING_LEFT, WEATHER, Backend, Client, World, chat, chunk

USER = {"role": "user", "content": "And in Rome?"}
CALLED = {
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
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "21"}
HISTORY = [{"role": "user", "content": "How is Bonn?"}, CALLED, RESULT, USER]

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'

#: What backends say, and the status with which they say it.
REFUSALS: dict[str, tuple[str, dict[str, Any] | bytes]] = {
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
    backend.stream(chunk(text, role="assistant"), chunk(finish="stop"), DONE)
    backend.reactor.advance(0)


def whole(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "model": "tiny", "choices": [choice]}


def finish(client: Client) -> str:
    chunks = [json.loads(event) for event in client.events() if event != "[DONE]"]
    reasons = [choice["finish_reason"] for each in chunks for choice in each["choices"]]
    return str(reasons[-1])


class Written(SynchronousTestCase):
    """`--tools=prompt`."""

    def ask(self, world: World, **fields: Any) -> tuple[Client, Backend]:
        return world.ask(**fields)

    def test_the_backend_hears_of_no_tools(self) -> None:
        world = World(tools="prompt")
        client, backend = world.ask(
            messages=HISTORY, tool_choice="required", parallel_tool_calls=True, seed=7
        )
        asked = backend.asked()
        self.assertEqual(set(FIELDS) & set(asked), set())
        self.assertEqual(asked["seed"], 7)
        system, question, said, answer, last = asked["messages"]
        words = HermesWording()
        self.assertEqual(system["content"], f"{words.offer([WEATHER])}\n\n{MUST_CALL}")
        self.assertEqual((question, last), (HISTORY[0], USER))
        self.assertEqual(
            said, {"role": "assistant", "content": words.call("get_weather", {"city": "Bonn"})}
        )
        self.assertEqual(
            answer, {"role": "user", "content": "<tool_response>\n21\n</tool_response>"}
        )
        reply(backend, CALL)
        self.assertEqual(finish(client), "tool_calls")
        self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_a_whole_answer(self) -> None:
        world = World(tools="prompt", tool_format="line")
        client, backend = world.ask(stream=False)
        self.assertEqual(backend.asked()["messages"][0]["content"], LineWording().offer([WEATHER]))
        backend.answer(whole('TOOL_CALL: {"name": "get_weather", "arguments": {"city": "Rome"}}'))
        (choice,) = client.json()["choices"]
        self.assertEqual(choice["finish_reason"], "tool_calls")
        self.assertEqual(choice["message"]["tool_calls"][0]["function"]["name"], "get_weather")

    def test_in_the_words_of_another_format(self) -> None:
        _, backend = World(tools="prompt", tool_format="xml").ask()
        offered = backend.asked()["messages"][0]["content"]
        self.assertEqual(offered, CoderWording().offer([WEATHER]))

    def test_a_format_that_there_is_not(self) -> None:
        error = self.assertRaises(ValueError, wording_of, "jsn")
        self.assertIn("give json, xml, line", str(error))

    def test_calls_are_forbidden_behind_everything(self) -> None:
        client, backend = World(tools="prompt").ask(messages=HISTORY, tool_choice="none")
        messages = backend.asked()["messages"]
        self.assertEqual(messages[0]["content"], HermesWording().offer([WEATHER]))
        self.assertEqual(messages[-1]["content"], f"{USER['content']}\n\n{NO_CALL}")
        reply(backend, CALL)
        self.assertEqual(finish(client), "stop")

    def test_a_request_without_any_goes_as_it_came(self) -> None:
        world = World(tools="prompt", notices="off")
        client = world.client()
        body = b'{"messages":  [{"role": "user", "content": "Hi"}], "stream": false}'
        client.post("/v1/chat/completions", body)
        self.assertTrue(world.backend().request().endswith(body))

    def test_pass_is_the_default(self) -> None:
        _, backend = World().ask(messages=HISTORY)
        self.assertEqual(backend.asked()["tools"], [WEATHER])
        self.assertEqual(backend.asked()["messages"], HISTORY)

    def test_notices_and_resets_go_first(self) -> None:
        world = World(tools="prompt", cache_reset="off")
        messages = [*HISTORY, {"role": "assistant", "content": "Fine."}]
        _, backend = world.ask(messages=[*messages, {"role": "user", "content": "/new Hello"}])
        self.assertEqual(
            backend.asked()["messages"],
            [
                {"role": "system", "content": HermesWording().offer([WEATHER])},
                {"role": "user", "content": "Hello"},
            ],
        )

    def test_what_is_nested_too_deeply_is_refused(self) -> None:
        """Where what may be read cannot be written, no more than where it cannot be read."""
        tool = {"type": "function", "function": {"name": "f", "parameters": {"x": "DEEP"}}}
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "DEEP"}}
        called = {"role": "assistant", "content": None, "tool_calls": [call]}
        world = World(tools="prompt")
        for fields in ({"tools": [tool]}, {"messages": [*MESSAGES, called]}):
            text = json.dumps(chat(**fields))

            def told(depth: int, text: str = text) -> int:
                body = text.replace('"DEEP"', "[" * depth + "]" * depth)
                client = world.client()
                client.post("/v1/chat/completions", body.encode())
                status = client.status()
                client.leave()
                self.assertIn(status, {0, 400}, (text, depth))
                return status

            # Each Python has a depth of its own; what can be read and not written is around it.
            edge = bisect_left(range(400_000), 400, key=told)
            self.assertEqual((told(edge - 120), told(edge + 60)), (0, 400))
            for depth in range(edge - 120, edge + 60):
                told(depth)


class Counted(SynchronousTestCase):
    """What is written into the prompt counts once, as it is written."""

    def test_once(self) -> None:
        world = World(tools="prompt", token_warn_threshold=10, token_hard_threshold=20_000)
        texts: list[str] = []
        client = world.client()
        client.post("/v1/chat/completions", chat())
        while (backend := world.backend()).request().startswith(b"POST /tokenize"):
            texts.append(backend.asked()["prompt"])
            backend.answer({"tokens": [1] * 100})
        self.assertIn("messages", backend.asked())
        self.assertEqual(sorted(texts), ["Hello", HermesWording().offer([WEATHER])][::-1])

    def test_what_is_learnt_is_learnt_of_what_was_sent(self) -> None:
        """The ratio of a model is what its backend counts over the weight of all that it got."""
        usage = {"prompt_tokens": 520, "completion_tokens": 1, "total_tokens": 521}
        (hello,) = Reader().read([json.dumps(chat()["messages"][0]).encode()])
        for tools in ("prompt", "auto"):
            world = World(tools=tools)
            _, backend = world.ask(model="m")
            if tools == "auto":
                backend.answer(b"it does not support tools", "400 Bad Request")
                backend = world.backend()
            backend.begin_stream()
            told = f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
            backend.stream(chunk("Hi", role="assistant"), chunk(finish="stop"), told, DONE)
            backend.reactor.advance(0)
            sent = [hello.facts, of_tools(HermesWording().offer([WEATHER]).encode())]
            ratio = world.daemon._turns.tokens.of("m").ratio
            self.assertAlmostEqual(ratio, 520 / weight_of(sent), msg=tools)
            self.assertLess(ratio, RATIOS[1])

    def test_what_is_dropped_is_dropped_in_whole_steps(self) -> None:
        world = World(tools="prompt", token_warn_threshold=300, token_hard_threshold=1500)
        steps = [[CALLED, {**RESULT, "content": "word " * 300}] for _ in range(6)]
        messages = [HISTORY[0], *(message for step in steps for message in step)]
        _, backend = world.ask(messages=messages)
        backend.answer(b"", "404 Not Found")  # it counts no tokens
        asked = world.backend().asked()["messages"]
        system, question, marker, *rest = asked
        self.assertIn("get_weather", system["content"])
        self.assertEqual(question, HISTORY[0])
        self.assertIn("left out here", marker["content"])
        roles = [message["role"] for message in rest]
        self.assertLess(len(rest), 2 * len(steps))
        self.assertEqual(roles, ["assistant", "user"] * (len(rest) // 2))


class Learnt(SynchronousTestCase):
    """`--tools=auto`."""

    def test_each_refusal_that_is_known(self) -> None:
        for name, (status, body) in REFUSALS.items():
            world = World(tools="auto")
            client, refused = world.ask(messages=HISTORY)
            self.assertEqual(refused.asked()["tools"], [WEATHER], name)
            refused.answer(body, status)
            backend = world.backend()
            self.assertNotIn("tools", backend.asked(), name)
            offered = backend.asked()["messages"][0]["content"]
            self.assertEqual(offered, HermesWording().offer([WEATHER]), name)
            self.assertEqual(backend.asked()["stream_options"], {"include_usage": True}, name)
            reply(backend, CALL)
            self.assertEqual((client.status(), finish(client)), (200, "tool_calls"), name)
            self.assertEqual(world.idle(), NOTHING_LEFT, name)

    def refuse(self, refused: Backend, name: str = "vLLM") -> None:
        status, body = REFUSALS[name]
        refused.answer(body, status)

    def test_it_is_remembered_for_the_model(self) -> None:
        world = World(tools="auto")
        _, refused = world.ask(model="a")
        self.refuse(refused)
        reply(world.backend())
        _, backend = world.ask(model="a")
        self.assertNotIn("tools", backend.asked())
        reply(backend)
        _, other = world.ask(model="b")
        self.assertIn("tools", other.asked())

    def test_a_whole_answer(self) -> None:
        for settings in ({}, {"whole_as_stream": True}):
            world = World(tools="auto", **settings)
            client, refused = world.ask(stream=False)
            self.refuse(refused)
            backend = world.backend()
            self.assertNotIn("tools", backend.asked())
            backend.answer(whole(CALL))
            self.assertEqual(client.json()["choices"][0]["finish_reason"], "tool_calls")
            self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_usage_is_refused_too(self) -> None:
        usage = b'{"error": {"message": "Unrecognized argument: stream_options"}}'
        world = World(tools="auto")
        client, backend = world.ask()
        backend.answer(usage, "400 Bad Request")
        backend = world.backend()
        self.assertIn("tools", backend.asked())
        self.refuse(backend)
        backend = world.backend()
        self.assertNotIn("tools", backend.asked())
        self.assertNotIn("stream_options", backend.asked())
        reply(backend)
        self.assertEqual(client.status(), 200)

    def test_it_is_tried_once(self) -> None:
        world = World(tools="auto")
        client, backend = world.ask()
        self.refuse(backend)
        self.refuse(world.backend(), "Ollama")
        self.assertEqual(client.status(), 400)
        self.assertIn("does not support tools", client.json()["error"]["message"])
        self.assertEqual(world.connecting(), 2)

    def test_a_template_that_knows_no_results(self) -> None:
        said = b'{"error": {"message": "Conversation roles must alternate user/assistant/..."}}'
        world = World(tools="auto")
        client, backend = world.ask(messages=HISTORY, tools=None)
        backend.answer(said, "400 Bad Request")
        backend = world.backend()
        roles = [message["role"] for message in backend.asked()["messages"]]
        self.assertEqual(roles, ["user", "assistant", "user", "user"])
        reply(backend)
        self.assertEqual(client.status(), 200)
        _, backend = world.ask()
        self.assertNotIn("tools", backend.asked())

    def test_a_template_that_knows_results_and_refuses_something_else(self) -> None:
        """A client's mistake does not take the tools from all the others."""
        said = b'{"error": {"message": "Conversation roles must alternate user/assistant/..."}}'
        for stream in (True, False):
            world = World(tools="auto")
            client, backend = world.ask(messages=[*MESSAGES, *HISTORY], stream=stream)
            backend.answer(said, "400 Bad Request")
            world.backend().answer(said, "400 Bad Request")
            self.assertEqual(client.status(), 400)
            _, backend = world.ask()
            self.assertIn("tools", backend.asked())

    def test_what_has_nothing_to_do_with_tools(self) -> None:
        roles = b'{"error": {"message": "Conversation roles must alternate user/assistant/..."}}'
        for settings, fields, said in (
            ({"tools": "auto"}, {}, roles),
            ({"tools": "auto"}, {}, b"no such model"),
            ({"tools": "auto"}, {"tools": None}, b"does not support tools"),
            ({"tools": "pass"}, {}, b"does not support tools"),
            ({"tools": "prompt"}, {}, b"does not support tools"),
        ):
            world = World(**settings)
            client, backend = world.ask(**fields)
            backend.answer(said, "400 Bad Request")
            self.assertEqual(client.status(), 400, said)
            self.assertEqual(world.connecting(), 1, said)

    def test_two_that_are_refused_at_the_same_time(self) -> None:
        world = World(tools="auto")
        pairs = [world.ask() for _ in range(2)]
        for client, refused in pairs:
            self.refuse(refused)
            reply(world.backend())
            self.assertEqual(client.status(), 200)

    def test_names_are_not_kept_without_end(self) -> None:
        refusals, refused = Refusals(), ApiError(400, "it does not support tools")
        for number in range(2 * MAX_MODELS):
            self.assertTrue(refusals.of_tools(refused, str(number), with_results=False))
        known = [refusals.takes_no_tools(str(number)) for number in range(2 * MAX_MODELS)]
        self.assertEqual(known, [False] * MAX_MODELS + [True] * MAX_MODELS)
