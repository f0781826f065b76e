"""Conversations through the daemon: prompts for the backend, and notices for the client."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.conversation.context_window import make_marker
from blockops.conversation.notices import LEADING_MARKER, TRAILING_MARKER
from blockops.operations.memory import MemoryMonitor
from tests import thorough
from tests.conversation.histories import malformed_histories
from tests.world import DONE, IDLE, WEATHER, Backend, Client, World, chat, chunk

JSON_ANSWER = {"type": "json_object"}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def usage(tokens: int) -> str:
    """Return the event with the usage that a backend sends on request."""
    fields = {"prompt_tokens": tokens, "completion_tokens": 2, "total_tokens": tokens + 2}
    return f"data: {json.dumps({'id': 'chatcmpl-1', 'choices': [], 'usage': fields})}\n\n"


class Conversation:
    """A client and a backend in one conversation without tools."""

    def __init__(self, **settings: Any) -> None:
        self.world = World(**settings)
        self.headers: dict[str, str] = {}
        self.fields: dict[str, Any] = {"tools": None}

    def post(self, *messages: Any, **fields: Any) -> Client:
        client = self.world.client()
        body = chat(messages=list(messages), **{**self.fields, **fields})
        client.post("/v1/chat/completions", body, **self.headers)
        return client

    def reply(self, *events: str, reported: int = 0) -> Backend:
        """Stream `events` from the backend."""
        backend = self.world.backend()
        backend.begin_stream()
        backend.stream(chunk("", role="assistant"), *events, chunk(finish="stop"))
        if reported:
            backend.stream(usage(reported))
        backend.stream(DONE)
        backend.end_stream()
        self.world.reactor.advance(0)
        return backend

    def exchange(
        self, *messages: Any, answer: str = "Hello", reported: int = 0, **fields: Any
    ) -> str:
        """Send a request and its response, and return the content that the client received."""
        client = self.post(*messages, **fields)
        self.sent = self.reply(chunk(answer), reported=reported).request_json()
        self.client = client
        return content(client)


def deltas(client: Client) -> list[dict[str, Any]]:
    chunks = [json.loads(event) for event in client.events() if event != "[DONE]"]
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def content(client: Client) -> str:
    return "".join(delta.get("content") or "" for delta in deltas(client))


def reasoning(client: Client) -> str:
    return "".join(delta.get("reasoning_content") or "" for delta in deltas(client))


class UsageTests(SynchronousTestCase):
    """`include_usage` is always requested; usage is hidden unless the client requested it."""

    def test_requested_and_hidden(self) -> None:
        conversation = Conversation()
        conversation.exchange(user("hi"), reported=700)
        self.assertEqual(conversation.sent["stream_options"], {"include_usage": True})
        self.assertNotIn(b"usage", conversation.client.body())
        self.assertTrue(conversation.client.is_complete())
        self.assertEqual(conversation.client.events()[-1], "[DONE]")
        response = conversation.world.traffic.responses()[-1]
        self.assertEqual((response.usage or {})["prompt_tokens"], 700)

    def test_sent_to_a_client_that_requests_it(self) -> None:
        conversation = Conversation()
        conversation.exchange(
            user("hi"), reported=700, stream_options={"include_usage": True, "x": 1}
        )
        self.assertEqual(conversation.sent["stream_options"], {"include_usage": True, "x": 1})
        self.assertIn(b'"prompt_tokens": 700', conversation.client.body())

    def test_other_options_stay(self) -> None:
        conversation = Conversation()
        conversation.exchange(user("hi"), stream_options={"include_usage": False, "x": 1})
        self.assertEqual(conversation.sent["stream_options"], {"include_usage": True, "x": 1})

    def test_other_fields_beside_the_usage_stay(self) -> None:
        conversation = Conversation()
        client = conversation.post(user("hi"))
        timings = {"choices": [], "usage": {"prompt_tokens": 5}, "timings": {"prompt_n": 3}}
        conversation.reply(chunk("Hello"), f"data: {json.dumps(timings)}\n\n")
        self.assertIn(b'"prompt_n": 3', client.body())
        self.assertNotIn(b"usage", client.body())

    def test_rejected_usage_is_not_requested_again(self) -> None:
        conversation = Conversation()
        client = conversation.post(user("hi"))
        error = {"error": {"message": "Unrecognized argument: stream_options"}}
        conversation.world.backend().respond(error, "400 Bad Request")
        self.assertNotIn("stream_options", conversation.reply(chunk("Hello")).request_json())
        self.assertEqual(content(client), "Hello")
        conversation.exchange(user("hi"))
        self.assertNotIn("stream_options", conversation.sent)
        self.assertEqual(conversation.world.load(), IDLE)

    def test_other_errors_reach_the_client(self) -> None:
        for message, fields in (
            ("Unknown model", {}),
            ("No stream_options here", {"stream_options": {"include_usage": True}}),
        ):
            conversation = Conversation()
            client = conversation.post(user("hi"), **fields)
            conversation.world.backend().respond({"error": {"message": message}}, "400 Bad Request")
            self.assertEqual((client.status(), client.error()["message"]), (400, message))

    def test_not_requested_with_json(self) -> None:
        conversation = Conversation()
        client = conversation.post(user("hi"), stream=False)
        backend = conversation.world.backend()
        self.assertNotIn("stream_options", backend.request_json())
        answer = {
            "id": "1",
            "object": "chat.completion",
            "choices": [{"index": 0, "message": assistant("Hi"), "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1_000},
        }
        backend.respond(answer)
        self.assertEqual(client.json(), answer)

    def test_the_estimate_learns(self) -> None:
        conversation = Conversation()
        conversation.exchange(user("word " * 2_000), reported=4_000)
        health = conversation.world.client()
        health.get("/health")
        first = health.json()["token_estimate_error_percent"]
        self.assertLess(first, -20)
        conversation.exchange(user("word " * 2_000), reported=4_000)
        health = conversation.world.client()
        health.get("/health")
        self.assertLess(abs(health.json()["token_estimate_error_percent"]), 1)

    def test_absurd_counts_are_ignored(self) -> None:
        conversation = Conversation()
        for absurd in (2**32 - 1, 10**400):
            conversation.exchange(user("word " * 2_000), reported=absurd)
            # A history of so many tokens would be rejected.
            conversation.exchange(user("word " * 2_000), user("more"), reported=4_000)
            self.assertEqual(len(conversation.sent["messages"]), 2)


class TrimTests(SynchronousTestCase):
    def conversation(self) -> Conversation:
        """Return a conversation of at most 2,000 tokens, with a backend without a tokenizer."""
        conversation = Conversation(token_warn_threshold=10_000, token_hard_threshold=2_000)
        client = conversation.post(user("x" * 2_100))
        conversation.world.backend().respond({"error": "no such route"}, "404 Not Found")
        client.disconnect()
        return conversation

    def history(self, turns: int) -> list[dict[str, Any]]:
        messages = [{"role": "system", "content": "Help."}, user("first")]
        for number in range(turns):
            messages += [assistant(f"answer {number} " * 20), user(f"question {number} " * 20)]
        return messages

    def test_the_middle_is_dropped(self) -> None:
        conversation = self.conversation()
        messages = self.history(40)
        conversation.exchange(*messages, temperature=0.5)
        sent = conversation.sent["messages"]
        self.assertEqual(sent[:2], messages[:2])
        left_out = len(messages) - len(sent) + 1
        self.assertEqual(sent[2], json.loads(make_marker(left_out)))
        self.assertEqual(sent[3:], messages[2 + left_out :])
        self.assertEqual(conversation.sent["temperature"], 0.5)

    def test_the_prefix_is_stable(self) -> None:
        conversation = self.conversation()
        conversation.exchange(*self.history(40))
        before = conversation.sent["messages"]
        conversation.exchange(*self.history(41))
        self.assertEqual(conversation.sent["messages"][: len(before)], before)
        self.assertEqual(len(conversation.sent["messages"]), len(before) + 2)

    def test_short_histories_pass_unchanged(self) -> None:
        conversation = self.conversation()
        messages = self.history(5)
        client = conversation.world.client()
        body = json.dumps({"messages": messages, "temperature": 1.50}).encode()
        client.post("/v1/chat/completions", body)
        self.assertTrue(conversation.world.backend().request().endswith(b"\r\n\r\n" + body))

    def test_too_long_is_rejected_without_the_backend(self) -> None:
        conversation = self.conversation()
        connections = conversation.world.connection_attempts()
        client = conversation.post(user("word " * 4_000))
        self.assertEqual(conversation.world.connection_attempts(), connections)
        self.assertEqual(client.status(), 400)
        self.assertEqual(client.error()["code"], "context_length_exceeded")
        self.assertEqual(conversation.world.load(), IDLE)

    def test_an_undercounted_session_is_trimmed(self) -> None:
        conversation = self.conversation()
        messages = self.history(10)
        conversation.exchange(*messages, reported=1_990)
        self.assertEqual(conversation.sent["messages"], messages)
        conversation.exchange(*messages, assistant("well " * 30), user("and? " * 30))
        self.assertIn("left out here", json.dumps(conversation.sent))

    def test_other_sessions_do_not_lower_the_count(self) -> None:
        """A session's reported count stays, whatever the estimate is later."""
        conversation = self.conversation()
        conversation.exchange(user("word " * 380 + "b"), reported=1_800, user="B")
        messages = [user("word " * 20), assistant("word " * 340)]
        conversation.exchange(*messages, reported=1_800, user="A")
        for number in range(8):
            conversation.exchange(user("word " * 380 + f"{number}"), reported=500, user=f"{number}")
        conversation.exchange(*messages, user("more " * 150), user="A")
        self.assertIn("left out here", json.dumps(conversation.sent))


class TokenizerTests(SynchronousTestCase):
    """The backend's tokenizer."""

    def setUp(self) -> None:
        self.conversation = Conversation(token_hard_threshold=2_000, token_warn_threshold=2_000)

    def count(self, tokens: int, sent: int = -1) -> str:
        backend = self.conversation.world.backend(sent)
        self.assertIn(b"POST /tokenize ", backend.request())
        text = backend.request_json()["content"]
        self.assertEqual(backend.request_json()["prompt"], text)
        backend.respond({"tokens": list(range(tokens))})
        return str(text)

    def test_its_count_decides(self) -> None:
        client = self.conversation.post(user("word " * 500))
        self.assertEqual(self.count(1_980), "word " * 500)
        self.assertEqual(client.status(), 0)
        self.count(30)  # the tools
        self.assertEqual(client.error()["code"], "context_length_exceeded")

    def test_only_new_messages_are_counted(self) -> None:
        self.conversation.post(user("word " * 500))
        self.count(500)
        self.count(1)
        self.conversation.reply(chunk("Hello"))
        self.conversation.post(user("word " * 500), assistant("Hello"), user("more"))
        self.assertEqual(self.count(1), "Hello")
        self.assertEqual(self.count(1), "more")
        self.assertIn(b"/v1/chat", self.conversation.world.backend().request())

    def test_a_missing_tokenizer_is_remembered(self) -> None:
        self.conversation.post(user("word " * 500))
        self.conversation.world.backend().respond(b"<html>", "404 Not Found", "text/html")
        self.assertIn(b"/v1/chat", self.conversation.reply(chunk("Hello")).request())
        self.conversation.post(user("other " * 500))
        self.assertIn(b"/v1/chat", self.conversation.world.backend().request())

    def test_slow_tokenizer(self) -> None:
        self.conversation.post(user("word " * 500))
        counting = self.conversation.world.backend()
        self.assertIn(b"/tokenize", counting.request())
        self.conversation.world.pass_time(6)
        self.assertTrue(counting.wire.aborted)
        self.assertIn(b"/v1/chat", self.conversation.world.backend().request())

    def test_client_disconnects_while_counting(self) -> None:
        for counted in (0, 1):
            client = self.conversation.post(
                user(f"word {counted} " * 500), *[user("more")] * counted
            )
            for _ in range(counted):
                self.count(500)
            counting = self.conversation.world.backend()
            connections = self.conversation.world.connection_attempts()
            client.disconnect()
            self.assertTrue(counting.wire.aborted)
            self.assertEqual(self.conversation.world.connection_attempts(), connections)
            self.assertEqual(self.conversation.world.load(), IDLE)

    def test_short_prompts_are_not_counted(self) -> None:
        self.conversation.post(user("word " * 100))
        self.assertIn(b"/v1/chat", self.conversation.world.backend().request())


class ResetTests(SynchronousTestCase):
    def purge(self, world: World, *, which: int = -1) -> bytes:
        """Respond to the request for the kind of backend, and return the call that follows."""
        world.backend(which).respond({"data": [{"id": "m", "owned_by": "vllm-mlx"}]})
        backend = world.backend()
        request = backend.request().partition(b"\r\n")[0]
        backend.respond({"ok": True})
        return request

    def test_reset_alone_is_answered_locally(self) -> None:
        conversation = Conversation(model_name="Qwen")
        client = conversation.post(user("old"), assistant("x"), user("/new"))
        self.assertIn("Qwen", content(client))
        self.assertTrue(content(client).startswith(LEADING_MARKER))
        self.assertEqual(client.events()[-1], "[DONE]")
        self.assertTrue(client.is_complete())
        self.assertEqual(self.purge(conversation.world), b"DELETE /v1/cache HTTP/1.1")
        self.assertEqual(conversation.world.load(), IDLE)

    def test_system_prompt_alone_is_forwarded(self) -> None:
        conversation = Conversation()
        conversation.exchange({"role": "system", "content": "Tell a joke."})
        self.assertEqual(len(conversation.sent["messages"]), 1)

    def test_json(self) -> None:
        conversation = Conversation(model_name="Qwen")
        client = conversation.post(user("/reset"), stream=False)
        choice = client.json()["choices"][0]
        self.assertIn("Qwen", choice["message"]["content"])
        self.assertEqual(choice["finish_reason"], "stop")

    def test_json_answer(self) -> None:
        client = Conversation(model_name="Qwen").post(
            user("/new"), stream=False, response_format=JSON_ANSWER
        )
        self.assertEqual(client.json()["choices"][0]["message"]["content"], "{}")

    def test_with_a_question(self) -> None:
        conversation = Conversation()
        client = conversation.post(
            {"role": "system", "content": "s"},
            user("old"),
            assistant("x"),
            user("/new and then a question"),
        )
        self.assertEqual(self.purge(conversation.world), b"DELETE /v1/cache HTTP/1.1")
        sent = conversation.reply(chunk("Yes")).request_json()
        self.assertEqual(
            sent["messages"], [{"role": "system", "content": "s"}, user("and then a question")]
        )
        self.assertEqual(content(client), "Yes")

    def test_later_turns_do_not_send_earlier_messages(self) -> None:
        conversation = Conversation(cache_reset="off")
        text = content(conversation.post(user("old"), assistant("x"), user("/new")))
        conversation.exchange(
            user("old"), assistant("x"), user("/new"), assistant(text), user("hi")
        )
        self.assertEqual(conversation.sent["messages"], [user("hi")])

    def test_reset_by_header(self) -> None:
        conversation = Conversation(cache_reset="POST /flush")
        conversation.headers["X_Session_Reset"] = "1"
        conversation.post(user("old"), assistant("x"), user("question"))
        flush = conversation.world.backend()
        self.assertIn(b"POST /flush HTTP/1.1", flush.request())
        flush.respond({})
        sent = conversation.reply(chunk("Yes")).request_json()
        self.assertEqual(len(sent["messages"]), 3)

    def test_reset_on_shrink(self) -> None:
        for option, is_reset in ((True, True), (False, False)):
            conversation = Conversation(cache_reset="POST /flush", reset_on_shrink=option)
            conversation.headers["X_Session_Id"] = "s"
            conversation.exchange(user("a"), assistant("b"), user("c"))
            conversation.post(user("a"))
            self.assertEqual(b"/flush" in conversation.world.backend().request(), is_reset)

    def test_custom_pattern(self) -> None:
        conversation = Conversation(
            cache_reset="POST /flush", reset_pattern=re.compile("A new session was started")
        )
        conversation.post(user("old"), user("A new session was started. Say hello."))
        conversation.world.backend().respond({})
        sent = conversation.reply(chunk("Hello")).request_json()
        self.assertEqual(sent["messages"], [user(". Say hello.")])
        conversation.exchange(user("/new"))
        self.assertEqual(conversation.sent["messages"], [user("/new")])

    def test_purge_waits_for_another_sessions_stream(self) -> None:
        conversation = Conversation(cache_reset="DELETE /v1/cache")
        conversation.headers["X_Session_Id"] = "one"
        running = conversation.post(user("a long story"))
        backend = conversation.world.backend()
        backend.begin_stream()
        backend.stream(chunk("Once", role="assistant"))
        conversation.headers["X_Session_Id"] = "two"
        connections = conversation.world.connection_attempts()
        self.assertTrue(conversation.post(user("/new")).is_complete())
        conversation.world.pass_time(20)
        self.assertEqual(conversation.world.connection_attempts(), connections)
        backend.stream(chunk(" upon a time"), chunk(finish="stop"), DONE)
        backend.end_stream()
        conversation.world.reactor.advance(0)
        self.assertEqual(content(running), "Once upon a time")
        self.assertEqual(conversation.world.connection_attempts(), connections + 1)
        self.assertIn(b"DELETE /v1/cache", conversation.world.backend().request())

    def test_a_question_waits_five_seconds_for_the_purge(self) -> None:
        conversation = Conversation(cache_reset="DELETE /v1/cache")
        conversation.headers["X_Session_Id"] = "one"
        conversation.post(user("a long story"))
        conversation.world.backend().begin_stream()
        conversation.headers["X_Session_Id"] = "two"
        connections = conversation.world.connection_attempts()
        conversation.post(user("/new question"))
        conversation.world.pass_time(4.5)
        self.assertEqual(conversation.world.connection_attempts(), connections)
        conversation.world.pass_time(1)
        self.assertEqual(
            conversation.world.backend().request_json()["messages"], [user("question")]
        )

    def test_the_next_question_cancels_a_scheduled_purge(self) -> None:
        conversation = Conversation(cache_reset="DELETE /v1/cache")
        conversation.headers["X_Session_Id"] = "one"
        conversation.post(user("a long story"))
        story = conversation.world.backend()
        story.begin_stream()
        conversation.headers["X_Session_Id"] = "two"
        conversation.post(user("/new"))
        conversation.exchange(user("/new"), assistant("x"), user("hi"))
        connections = conversation.world.connection_attempts()
        story.disconnect()
        conversation.world.reactor.advance(0)
        self.assertEqual(conversation.world.connection_attempts(), connections)

    def test_failed_purge(self) -> None:
        for answer in ("500 Oops", "404 Not Found"):
            conversation = Conversation(cache_reset="DELETE /v1/cache")
            client = conversation.post(user("/new question"))
            conversation.world.backend().respond({}, answer)
            conversation.reply(chunk("Yes"))
            self.assertEqual(content(client), "Yes")

    def test_purge_timeout(self) -> None:
        conversation = Conversation(cache_reset="DELETE /v1/cache")
        conversation.post(user("/new question"))
        hanging = conversation.world.backend()
        conversation.world.pass_time(6)
        self.assertTrue(hanging.wire.aborted)
        self.assertIn(b"/v1/chat", conversation.world.backend().request())

    def test_requests_wait_for_the_end_of_a_purge(self) -> None:
        conversation = Conversation(cache_reset="DELETE /v1/cache")
        conversation.post(user("/new"))
        purging = conversation.world.backend()
        other = conversation.post(user("hi"))
        self.assertEqual(conversation.world.connection_attempts(), 1)
        purging.respond({})
        conversation.reply(chunk("Hello"))
        self.assertEqual(content(other), "Hello")

    def test_client_disconnects_while_waiting(self) -> None:
        conversation = Conversation(cache_reset="DELETE /v1/cache")
        first = conversation.post(user("a long story"))
        conversation.world.backend().begin_stream()
        conversation.headers["X_Session_Id"] = "two"
        conversation.post(user("/new question")).disconnect()
        first.disconnect()
        self.assertEqual(conversation.world.load(), IDLE)


class NoticeTests(SynchronousTestCase):
    def test_the_first_answer_has_the_banner(self) -> None:
        conversation = Conversation(model_name="Qwen")
        first = conversation.exchange(user("hi"))
        self.assertTrue(first.startswith(f"{LEADING_MARKER}\n"))
        self.assertTrue(first.endswith("\n\nHello"))
        self.assertIn("Qwen", first)
        second = conversation.exchange(user("hi"), assistant(first), user("more"))
        self.assertEqual(second, "Hello")
        self.assertEqual(
            conversation.sent["messages"], [user("hi"), assistant("Hello"), user("more")]
        )

    def test_no_banner_without_a_name(self) -> None:
        self.assertEqual(Conversation().exchange(user("hi")), "Hello")

    def test_banner_after_the_think_block(self) -> None:
        text = Conversation(model_name="Qwen").exchange(
            user("hi"), answer="<think>hm</think>\n\nHello"
        )
        self.assertTrue(text.startswith(f"<think>hm</think>\n\n{LEADING_MARKER}"))
        self.assertTrue(text.endswith("\n\nHello"))

    def test_with_tools_the_banner_is_at_the_end(self) -> None:
        conversation = Conversation(model_name="Qwen")
        text = conversation.exchange(user("hi"), tools=[WEATHER])
        self.assertTrue(text.startswith(f"Hello\n\n{TRAILING_MARKER}\n"))

    def test_with_tools_the_banner_waits_for_an_answer_without_calls(self) -> None:
        conversation = Conversation(model_name="Qwen")
        call = '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>'
        self.assertNotIn("Qwen", conversation.exchange(user("hi"), answer=call, tools=[WEATHER]))
        self.assertIn("Qwen", conversation.exchange(user("hi"), user("more"), tools=[WEATHER]))
        self.assertNotIn("Qwen", conversation.exchange(user("hi"), user("more"), tools=[WEATHER]))

    def test_never_in_json(self) -> None:
        conversation = Conversation(model_name="Qwen")
        self.assertEqual(
            conversation.exchange(user("hi"), answer="{}", response_format=JSON_ANSWER), "{}"
        )
        self.assertIn("Qwen", conversation.exchange(user("hi")))

    def test_in_json(self) -> None:
        conversation = Conversation(model_name="Qwen")
        client = conversation.post(user("hi"), stream=False)
        choice = {"index": 0, "message": assistant("Hello"), "finish_reason": "stop"}
        conversation.world.backend().respond({"object": "chat.completion", "choices": [choice]})
        text = client.json()["choices"][0]["message"]["content"]
        self.assertTrue(text.startswith(LEADING_MARKER))
        self.assertTrue(text.endswith("\n\nHello"))

    def test_as_reasoning(self) -> None:
        conversation = Conversation(model_name="Qwen", notices="reasoning")
        self.assertEqual(conversation.exchange(user("hi"), tools=[WEATHER]), "Hello")
        self.assertIn("Qwen", reasoning(conversation.client))
        self.assertEqual(deltas(conversation.client)[0]["role"], "assistant")

    def test_in_a_header(self) -> None:
        conversation = Conversation(model_name="Qwen ✓", notices="header")
        self.assertEqual(conversation.exchange(user("hi")), "Hello")
        self.assertIn("Qwen ?", conversation.client.headers()["x-blockops-notice"])
        conversation.exchange(user("hi"))
        self.assertNotIn("x-blockops-notice", conversation.client.headers())

    def test_off(self) -> None:
        conversation = Conversation(model_name="Qwen", notices="off")
        self.assertEqual(conversation.exchange(user("hi")), "Hello")
        self.assertNotIn("x-blockops-notice", conversation.client.headers())

    def test_failed_answer_delivers_no_banner(self) -> None:
        conversation = Conversation(model_name="Qwen")
        conversation.post(user("hi"))
        conversation.world.backend().respond({}, "500 Oops")
        self.assertIn("Qwen", conversation.exchange(user("hi")))

    def test_one_banner_for_each_session(self) -> None:
        conversation = Conversation(model_name="Qwen")
        for name in ("one", "two"):
            conversation.headers["X_Session_Id"] = name
            self.assertIn("Qwen", conversation.exchange(user("hi")))
            self.assertNotIn("Qwen", conversation.exchange(user("hi")))

    def test_long_history_once_until_it_is_short_again(self) -> None:
        conversation = Conversation(token_warn_threshold=1_000)
        conversation.headers["X_Session_Id"] = "s"
        long = user("word " * 2_000)
        start = user("first")
        client = conversation.post(start, long)
        conversation.world.backend().respond({}, "404 Not Found")  # no /tokenize
        conversation.reply(chunk("Hello"))
        self.assertIn(f"{LEADING_MARKER}\nThis conversation is long", content(client))
        self.assertEqual(conversation.exchange(start, long), "Hello")
        self.assertEqual(conversation.exchange(start), "Hello")
        self.assertIn("This conversation is long", conversation.exchange(start, long))

    def test_short_second_history_does_not_repeat_the_notice(self) -> None:
        conversation = Conversation(token_warn_threshold=1_000)
        conversation.headers["X_Session_Id"] = "s"
        long = user("word " * 2_000)
        client = conversation.post(long)
        conversation.world.backend().respond({}, "404 Not Found")
        conversation.reply(chunk("Hello"))
        self.assertIn("This conversation is long", content(client))
        self.assertEqual(conversation.exchange(user("a sub-agent's question")), "Hello")
        self.assertEqual(conversation.exchange(long, assistant("Hello"), user("more")), "Hello")

    def test_two_long_histories_of_one_session(self) -> None:
        conversation = Conversation(token_warn_threshold=1_000)
        conversation.headers["X_Session_Id"] = "s"
        one, other = user("word " * 2_000), user("other " * 2_000)
        client = conversation.post(one)
        conversation.world.backend().respond({}, "404 Not Found")
        conversation.reply(chunk("Hello"))
        self.assertIn("This conversation is long", content(client))
        for _ in range(3):
            self.assertEqual(conversation.exchange(other), "Hello")
            self.assertEqual(conversation.exchange(user("a title, please")), "Hello")
            self.assertEqual(conversation.exchange(one), "Hello")
        conversation.headers["X_Session_Id"] = "t"
        self.assertIn("This conversation is long", conversation.exchange(other))

    def test_failed_answer_delivers_no_context_notice(self) -> None:
        conversation = Conversation(token_warn_threshold=1_000)
        conversation.headers["X_Session_Id"] = "s"
        long = user("word " * 2_000)
        conversation.post(long)
        conversation.world.backend().respond({}, "404 Not Found")
        conversation.world.backend().respond({}, "500 Oops")
        self.assertIn("This conversation is long", conversation.exchange(long))

    def test_the_untrimmed_history_is_measured(self) -> None:
        conversation = Conversation(token_warn_threshold=1_500, token_hard_threshold=1_000)
        messages = [user("first")]
        for number in range(40):
            messages += [assistant(f"answer {number} " * 20), user(f"question {number} " * 20)]
        client = conversation.post(*messages)
        conversation.world.backend().respond({}, "404 Not Found")
        conversation.reply(chunk("Hello"))
        self.assertIn("This conversation is long", content(client))


class MemoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.available = 50.0
        self.patch(MemoryMonitor.__init__, "__defaults__", (lambda: self.available,))

    def set_available(self, conversation: Conversation, percent: float) -> None:
        self.available = percent
        conversation.world.pass_time(11)

    def test_each_tier_once_in_each_session(self) -> None:
        conversation = Conversation()
        conversation.headers["X_Session_Id"] = "one"
        self.assertEqual(conversation.exchange(user("hi")), "Hello")
        for percent, tier in ((18, "notice"), (12, "warning"), (7, "high"), (4, "critical")):
            self.set_available(conversation, percent)
            self.assertIn(
                f"Memory is getting tight ({tier}): {percent} %",
                conversation.exchange(user("hi")),
            )
            self.assertEqual(conversation.exchange(user("hi")), "Hello")
        conversation.headers["X_Session_Id"] = "two"
        self.assertIn("(critical)", conversation.exchange(user("hi")))
        self.set_available(conversation, 50)
        self.set_available(conversation, 18)
        conversation.headers["X_Session_Id"] = "one"
        self.assertEqual(conversation.exchange(user("hi")), "Hello")

    def test_the_gate(self) -> None:
        conversation = Conversation(memory_gate=True)
        self.set_available(conversation, 4)
        client = conversation.post(user("hi"))
        self.assertEqual((client.status(), client.error()["code"]), (503, "memory_critical"))
        self.assertEqual(client.headers()["retry-after"], "10")
        self.assertEqual(conversation.world.connection_attempts(), 0)
        other = conversation.world.client()
        other.post("/v1/embeddings", {"input": "x"})
        self.assertEqual(other.status(), 503)
        self.set_available(conversation, 6)
        self.assertIn("Hello", conversation.exchange(user("hi")))

    def test_without_the_gate(self) -> None:
        conversation = Conversation()
        self.set_available(conversation, 4)
        self.assertIn("Hello", conversation.exchange(user("hi")))


class PrefillNoticeTests(SynchronousTestCase):
    def wait(self, seconds: float, **settings: Any) -> tuple[Client, Backend, Conversation]:
        conversation = Conversation(cold_start_notice=60, **settings)
        client = conversation.post(user("hi"))
        backend = conversation.world.backend()
        conversation.world.pass_time(seconds)
        return client, backend, conversation

    def test_as_reasoning_once(self) -> None:
        client, backend, conversation = self.wait(59)
        self.assertEqual(client.events(), [])
        conversation.world.pass_time(2)
        self.assertIn("60 seconds so far", reasoning(client))
        self.assertTrue(reasoning(client).startswith(LEADING_MARKER))
        self.assertEqual(deltas(client)[0], {"role": "assistant"})
        conversation.world.pass_time(120)
        backend.begin_stream()
        backend.stream(chunk("", role="assistant"), chunk("Hello"), chunk(finish="stop"), DONE)
        conversation.world.reactor.advance(0)
        self.assertEqual(reasoning(client).count("so far"), 1)
        self.assertEqual(content(client), "Hello")
        self.assertEqual(client.events()[-1], "[DONE]")

    def test_after_the_backends_role(self) -> None:
        conversation = Conversation()
        client = conversation.post(user("hi"))
        backend = conversation.world.backend()
        backend.begin_stream()
        backend.stream(chunk("", role="assistant"))
        conversation.world.pass_time(61)
        self.assertIn("so far", reasoning(client))

    def test_not_after_the_first_token(self) -> None:
        for text in (chunk("Hello"), chunk(reasoning_content="hm")):
            conversation = Conversation()
            client = conversation.post(user("hi"))
            backend = conversation.world.backend()
            backend.begin_stream()
            backend.stream(chunk("", role="assistant"), text)
            conversation.world.pass_time(120)
            self.assertNotIn("so far", reasoning(client))

    def test_not_while_queued(self) -> None:
        conversation = Conversation(max_concurrent=1)
        conversation.post(user("first"))
        second = conversation.post(user("second"))
        conversation.world.pass_time(120)
        self.assertEqual(reasoning(second), "")

    def test_off_or_no_room(self) -> None:
        for options, fields in (
            ({"cold_start_notice": 0}, {}),
            ({"notices": "off"}, {}),
            ({"notices": "header"}, {}),
            ({}, {"response_format": JSON_ANSWER}),
        ):
            conversation = Conversation(**options)
            client = conversation.post(user("hi"), **fields)
            conversation.world.backend()
            conversation.world.pass_time(120)
            self.assertEqual(reasoning(client), "")

    def test_removed_from_the_history(self) -> None:
        client, backend, conversation = self.wait(61)
        backend.begin_stream()
        backend.stream(chunk("Hello", role="assistant"), chunk(finish="stop"), DONE)
        conversation.world.reactor.advance(0)
        back = {**assistant("Hello"), "reasoning_content": reasoning(client)}
        conversation.exchange(user("hi"), back, user("more"))
        self.assertEqual(conversation.sent["messages"][1], {**back, "reasoning_content": ""})


class SessionTests(SynchronousTestCase):
    """The session of a request in the traffic log."""

    def session(self, headers: dict[str, str] | None = None, /, **fields: Any) -> str | None:
        conversation = Conversation()
        conversation.headers = headers or {}
        conversation.exchange(user("hi"), **fields)
        return conversation.world.traffic.requests()[-1].session

    def test_sources_of_the_name(self) -> None:
        fields: dict[str, Any] = {
            "metadata": {"session_id": "m"},
            "prompt_cache_key": "k",
            "user": "u",
        }
        self.assertEqual(self.session({"X_Session_Id": "h"}, **fields), "header:h")
        for name in list(fields):
            self.assertIn(self.session(**fields), {"metadata:m", "cache_key:k", "user:u"})
            del fields[name]

    def test_the_system_prompt_does_not_count(self) -> None:
        conversation = Conversation()
        names = set()
        for hour in range(3):
            system = {"role": "system", "content": f"It is {hour} o'clock."}
            conversation.exchange(system, user("hi"))
            names.add(conversation.world.traffic.requests()[-1].session)
        self.assertEqual(len(names), 1)
        conversation.exchange(user("something else"))
        self.assertNotIn(conversation.world.traffic.requests()[-1].session, names)

    def test_a_header_in_another_encoding(self) -> None:
        conversation = Conversation()
        client = conversation.world.client()
        body = json.dumps(chat(messages=[user("hi")])).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: b\r\nContent-Length: {len(body)}\r\n"
        client.send(head.encode() + b"X-Session-Id: caf\xe9\r\nAuthorization: \xff\r\n\r\n" + body)
        conversation.world.reactor.advance(0)
        self.assertIn(b"/v1/chat", conversation.world.backend().request())
        self.assertTrue(
            str(conversation.world.traffic.requests()[-1].session).startswith("header:caf")
        )

    def test_odd_values_are_ignored(self) -> None:
        fields: dict[str, Any] = {"metadata": ["x"], "prompt_cache_key": {}, "user": ""}
        self.assertRegex(str(self.session(**fields)), "^client:")

    def test_message_count(self) -> None:
        conversation = Conversation()
        conversation.exchange(user("hi"), assistant("x"), user("y"))
        self.assertEqual(conversation.world.traffic.requests()[-1].messages, 3)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["type", "session_id", "include_usage"]), st.text(max_size=3)),
)
NAMES = [
    *("metadata", "prompt_cache_key", "user", "response_format", "grammar", "tools", "functions"),
    *("tool_choice", "model", "stream", "stream_options", "n"),
]


class FuzzTests(SynchronousTestCase):
    """Random requests."""

    @given(
        malformed_histories, st.dictionaries(st.sampled_from(NAMES), ODD, max_size=5), st.booleans()
    )
    @thorough(200)
    def test_no_request_causes_an_internal_error(
        self, messages: list[Any], fields: dict[str, Any], long: Any
    ) -> None:
        limits = {"token_hard_threshold": 300, "token_warn_threshold": 200} if long else {}
        conversation = Conversation(model_name="Qwen", cache_reset="off", **limits)
        client = conversation.world.client()
        body = json.dumps({"messages": [user("/new x"), *messages], **fields}).encode()
        client.post("/v1/chat/completions", body)
        if conversation.world.connection_attempts():
            conversation.world.backend().respond({"error": {"message": "no"}}, "404 Not Found")
        if conversation.world.connection_attempts() > 1:
            conversation.world.backend().respond({"error": {"message": "no"}}, "404 Not Found")
        self.assertIn(client.status(), {200, 400, 404})
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(conversation.world.load(), IDLE)
