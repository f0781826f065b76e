"""Conversations through the daemon: what the backend gets, and what the client is told besides."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.conversation.context_window import marker
from blockops.conversation.notices import CLOSES, OPENS
from blockops.operations.memory import MemoryGauge
from tests import thorough
from tests.conversation.histories import malformed
from tests.world import DONE, NOTHING_LEFT, WEATHER, Backend, Client, World, chat, chunk

JSON_ANSWER = {"type": "json_object"}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def usage(tokens: int) -> str:
    """Return the event that a backend sends when it was asked for the usage."""
    told = {"prompt_tokens": tokens, "completion_tokens": 2, "total_tokens": tokens + 2}
    return f"data: {json.dumps({'id': 'chatcmpl-1', 'choices': [], 'usage': told})}\n\n"


class Talk:
    """A client, and the backend behind blockops, in one conversation without tools."""

    def __init__(self, **settings: Any) -> None:
        self.world = World(**settings)
        self.headers: dict[str, str] = {}
        self.fields: dict[str, Any] = {"tools": None}

    def ask(self, *messages: Any, **fields: Any) -> Client:
        client = self.world.client()
        body = chat(messages=list(messages), **{**self.fields, **fields})
        client.post("/v1/chat/completions", body, **self.headers)
        return client

    def reply(self, *events: str, reported: int = 0) -> Backend:
        """Let the backend stream `events`."""
        backend = self.world.backend()
        backend.begin_stream()
        backend.stream(chunk("", role="assistant"), *events, chunk(finish="stop"))
        if reported:
            backend.stream(usage(reported))
        backend.stream(DONE)
        backend.end_stream()
        self.world.reactor.advance(0)
        return backend

    def turn(self, *messages: Any, says: str = "Hello", reported: int = 0, **fields: Any) -> str:
        """Ask, let the backend answer, and return the content that the client got."""
        client = self.ask(*messages, **fields)
        self.asked = self.reply(chunk(says), reported=reported).asked()
        self.client = client
        return content(client)


def deltas(client: Client) -> list[dict[str, Any]]:
    chunks = [json.loads(event) for event in client.events() if event != "[DONE]"]
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def content(client: Client) -> str:
    return "".join(delta.get("content") or "" for delta in deltas(client))


def thoughts(client: Client) -> str:
    return "".join(delta.get("reasoning_content") or "" for delta in deltas(client))


class Usage(SynchronousTestCase):
    """What a prompt had is asked for, and hidden again from who did not ask."""

    def test_asked_for_and_hidden(self) -> None:
        talk = Talk()
        talk.turn(user("hi"), reported=700)
        self.assertEqual(talk.asked["stream_options"], {"include_usage": True})
        self.assertNotIn(b"usage", talk.client.body())
        self.assertTrue(talk.client.complete())
        self.assertEqual(talk.client.events()[-1], "[DONE]")
        response = talk.world.traffic.responses()[-1]
        self.assertEqual((response.usage or {})["prompt_tokens"], 700)

    def test_told_to_who_asked(self) -> None:
        talk = Talk()
        talk.turn(user("hi"), reported=700, stream_options={"include_usage": True, "x": 1})
        self.assertEqual(talk.asked["stream_options"], {"include_usage": True, "x": 1})
        self.assertIn(b'"prompt_tokens": 700', talk.client.body())

    def test_other_options_stay(self) -> None:
        talk = Talk()
        talk.turn(user("hi"), stream_options={"include_usage": False, "x": 1})
        self.assertEqual(talk.asked["stream_options"], {"include_usage": True, "x": 1})

    def test_what_stands_beside_the_usage_stays(self) -> None:
        talk = Talk()
        client = talk.ask(user("hi"))
        timings = {"choices": [], "usage": {"prompt_tokens": 5}, "timings": {"prompt_n": 3}}
        talk.reply(chunk("Hello"), f"data: {json.dumps(timings)}\n\n")
        self.assertIn(b'"prompt_n": 3', client.body())
        self.assertNotIn(b"usage", client.body())

    def test_a_backend_that_refuses_the_wish_is_asked_without_it_from_then_on(self) -> None:
        talk = Talk()
        client = talk.ask(user("hi"))
        error = {"error": {"message": "Unrecognized argument: stream_options"}}
        talk.world.backend().answer(error, "400 Bad Request")
        self.assertNotIn("stream_options", talk.reply(chunk("Hello")).asked())
        self.assertEqual(content(client), "Hello")
        talk.turn(user("hi"))
        self.assertNotIn("stream_options", talk.asked)
        self.assertEqual(talk.world.idle(), NOTHING_LEFT)

    def test_other_refusals_and_those_of_the_clients_own_wish_reach_the_client(self) -> None:
        for message, fields in (
            ("Unknown model", {}),
            ("No stream_options here", {"stream_options": {"include_usage": True}}),
        ):
            talk = Talk()
            client = talk.ask(user("hi"), **fields)
            talk.world.backend().answer({"error": {"message": message}}, "400 Bad Request")
            self.assertEqual((client.status(), client.error()["message"]), (400, message))

    def test_a_whole_answer_is_not_asked_for_it(self) -> None:
        talk = Talk()
        client = talk.ask(user("hi"), stream=False)
        backend = talk.world.backend()
        self.assertNotIn("stream_options", backend.asked())
        answer = {
            "id": "1",
            "object": "chat.completion",
            "choices": [{"index": 0, "message": assistant("Hi"), "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1_000},
        }
        backend.answer(answer)
        self.assertEqual(client.json(), answer)

    def test_the_estimate_learns(self) -> None:
        talk = Talk()
        talk.turn(user("word " * 2_000), reported=4_000)
        health = talk.world.client()
        health.get("/health")
        first = health.json()["token_estimate_error_percent"]
        self.assertLess(first, -20)
        talk.turn(user("word " * 2_000), reported=4_000)
        health = talk.world.client()
        health.get("/health")
        self.assertLess(abs(health.json()["token_estimate_error_percent"]), 1)

    def test_what_is_no_count_teaches_nothing(self) -> None:
        talk = Talk()
        for absurd in (2**32 - 1, 10**400):
            talk.turn(user("word " * 2_000), reported=absurd)
            # A history of so many tokens would not be sent on.
            talk.turn(user("word " * 2_000), user("more"), reported=4_000)
            self.assertEqual(len(talk.asked["messages"]), 2)


class Cutting(SynchronousTestCase):
    def talk(self) -> Talk:
        """Return a talk of at most 2,000 tokens, at a backend that counts none."""
        talk = Talk(token_warn_threshold=10_000, token_hard_threshold=2_000)
        client = talk.ask(user("x" * 2_100))
        talk.world.backend().answer({"error": "no such route"}, "404 Not Found")
        client.leave()
        return talk

    def history(self, turns: int) -> list[dict[str, Any]]:
        messages = [{"role": "system", "content": "Help."}, user("first")]
        for number in range(turns):
            messages += [assistant(f"answer {number} " * 20), user(f"question {number} " * 20)]
        return messages

    def test_the_middle_is_left_out(self) -> None:
        talk = self.talk()
        messages = self.history(40)
        talk.turn(*messages, temperature=0.5)
        sent = talk.asked["messages"]
        self.assertEqual(sent[:2], messages[:2])
        left_out = len(messages) - len(sent) + 1
        self.assertEqual(sent[2], json.loads(marker(left_out)))
        self.assertEqual(sent[3:], messages[2 + left_out :])
        self.assertEqual(talk.asked["temperature"], 0.5)

    def test_the_prefix_stays_from_turn_to_turn(self) -> None:
        talk = self.talk()
        talk.turn(*self.history(40))
        before = talk.asked["messages"]
        talk.turn(*self.history(41))
        self.assertEqual(talk.asked["messages"][: len(before)], before)
        self.assertEqual(len(talk.asked["messages"]), len(before) + 2)

    def test_below_the_threshold_the_bytes_stay(self) -> None:
        talk = self.talk()
        messages = self.history(5)
        client = talk.world.client()
        body = json.dumps({"messages": messages, "temperature": 1.50}).encode()
        client.post("/v1/chat/completions", body)
        self.assertTrue(talk.world.backend().request().endswith(b"\r\n\r\n" + body))

    def test_too_long_is_refused_before_the_backend_is_asked(self) -> None:
        talk = self.talk()
        connections = talk.world.connecting()
        client = talk.ask(user("word " * 4_000))
        self.assertEqual(talk.world.connecting(), connections)
        self.assertEqual(client.status(), 400)
        self.assertEqual(client.error()["code"], "context_length_exceeded")
        self.assertEqual(talk.world.idle(), NOTHING_LEFT)

    def test_a_session_that_was_undercounted_is_cut_in_time(self) -> None:
        talk = self.talk()
        messages = self.history(10)
        talk.turn(*messages, reported=1_990)
        self.assertEqual(talk.asked["messages"], messages)
        talk.turn(*messages, assistant("well " * 30), user("and? " * 30))
        self.assertIn("left out here", json.dumps(talk.asked))

    def test_other_sessions_do_not_make_it_smaller(self) -> None:
        """What was only guessed when its session was reported stays what was reported of it."""
        talk = self.talk()
        talk.turn(user("word " * 380 + "b"), reported=1_800, user="B")
        messages = [user("word " * 20), assistant("word " * 340)]
        talk.turn(*messages, reported=1_800, user="A")
        for number in range(8):
            talk.turn(user("word " * 380 + f"{number}"), reported=500, user=f"{number}")
        talk.turn(*messages, user("more " * 150), user="A")
        self.assertIn("left out here", json.dumps(talk.asked))


class Counting(SynchronousTestCase):
    """The backend's own tokenizer, where it has one."""

    def setUp(self) -> None:
        self.talk = Talk(token_hard_threshold=2_000, token_warn_threshold=2_000)

    def count(self, tokens: int, asked: int = -1) -> str:
        backend = self.talk.world.backend(asked)
        self.assertIn(b"POST /tokenize ", backend.request())
        text = backend.asked()["content"]
        self.assertEqual(backend.asked()["prompt"], text)
        backend.answer({"tokens": list(range(tokens))})
        return str(text)

    def test_its_count_decides(self) -> None:
        client = self.talk.ask(user("word " * 500))
        self.assertEqual(self.count(1_980), "word " * 500)
        self.assertEqual(client.status(), 0)
        self.count(30)  # the tools
        self.assertEqual(client.error()["code"], "context_length_exceeded")

    def test_only_new_messages_are_counted(self) -> None:
        self.talk.ask(user("word " * 500))
        self.count(500)
        self.count(1)
        self.talk.reply(chunk("Hello"))
        self.talk.ask(user("word " * 500), assistant("Hello"), user("more"))
        self.assertEqual(self.count(1), "Hello")
        self.assertEqual(self.count(1), "more")
        self.assertIn(b"/v1/chat", self.talk.world.backend().request())

    def test_a_backend_without_one_is_asked_once(self) -> None:
        self.talk.ask(user("word " * 500))
        self.talk.world.backend().answer(b"<html>", "404 Not Found", "text/html")
        self.assertIn(b"/v1/chat", self.talk.reply(chunk("Hello")).request())
        self.talk.ask(user("other " * 500))
        self.assertIn(b"/v1/chat", self.talk.world.backend().request())

    def test_a_backend_that_is_slow_to_count_is_not_waited_for(self) -> None:
        self.talk.ask(user("word " * 500))
        counting = self.talk.world.backend()
        self.assertIn(b"/tokenize", counting.request())
        self.talk.world.pass_time(6)
        self.assertTrue(counting.wire.aborted)
        self.assertIn(b"/v1/chat", self.talk.world.backend().request())

    def test_a_client_that_leaves_meanwhile(self) -> None:
        for counted in (0, 1):
            client = self.talk.ask(user(f"word {counted} " * 500), *[user("more")] * counted)
            for _ in range(counted):
                self.count(500)
            counting = self.talk.world.backend()
            connections = self.talk.world.connecting()
            client.leave()
            self.assertTrue(counting.wire.aborted)
            self.assertEqual(self.talk.world.connecting(), connections)
            self.assertEqual(self.talk.world.idle(), NOTHING_LEFT)

    def test_short_prompts_are_not_counted(self) -> None:
        self.talk.ask(user("word " * 100))
        self.assertIn(b"/v1/chat", self.talk.world.backend().request())


class Resets(SynchronousTestCase):
    def purge(self, world: World, *, which: int = -1) -> bytes:
        """Answer blockops' question what the backend is, and return the call that follows."""
        world.backend(which).answer({"data": [{"id": "m", "owned_by": "vllm-mlx"}]})
        backend = world.backend()
        request = backend.request().partition(b"\r\n")[0]
        backend.answer({"ok": True})
        return request

    def test_new_alone_is_answered_at_once(self) -> None:
        talk = Talk(model_name="Qwen")
        client = talk.ask(user("old"), assistant("x"), user("/new"))
        self.assertIn("Qwen", content(client))
        self.assertTrue(content(client).startswith(OPENS))
        self.assertEqual(client.events()[-1], "[DONE]")
        self.assertTrue(client.complete())
        self.assertEqual(self.purge(talk.world), b"DELETE /v1/cache HTTP/1.1")
        self.assertEqual(talk.world.idle(), NOTHING_LEFT)

    def test_a_system_prompt_alone_is_a_question(self) -> None:
        talk = Talk()
        talk.turn({"role": "system", "content": "Tell a joke."})
        self.assertEqual(len(talk.asked["messages"]), 1)

    def test_whole(self) -> None:
        talk = Talk(model_name="Qwen")
        client = talk.ask(user("/reset"), stream=False)
        choice = client.json()["choices"][0]
        self.assertIn("Qwen", choice["message"]["content"])
        self.assertEqual(choice["finish_reason"], "stop")

    def test_as_json(self) -> None:
        client = Talk(model_name="Qwen").ask(
            user("/new"), stream=False, response_format=JSON_ANSWER
        )
        self.assertEqual(client.json()["choices"][0]["message"]["content"], "{}")

    def test_with_a_question(self) -> None:
        talk = Talk()
        client = talk.ask(
            {"role": "system", "content": "s"},
            user("old"),
            assistant("x"),
            user("/new and then a question"),
        )
        self.assertEqual(self.purge(talk.world), b"DELETE /v1/cache HTTP/1.1")
        asked = talk.reply(chunk("Yes")).asked()
        self.assertEqual(
            asked["messages"], [{"role": "system", "content": "s"}, user("and then a question")]
        )
        self.assertEqual(content(client), "Yes")

    def test_later_turns_do_not_send_what_was_before(self) -> None:
        talk = Talk(cache_reset="off")
        said = content(talk.ask(user("old"), assistant("x"), user("/new")))
        talk.turn(user("old"), assistant("x"), user("/new"), assistant(said), user("hi"))
        self.assertEqual(talk.asked["messages"], [user("hi")])

    def test_the_header(self) -> None:
        talk = Talk(cache_reset="POST /flush")
        talk.headers["X_Session_Reset"] = "1"
        talk.ask(user("old"), assistant("x"), user("question"))
        flush = talk.world.backend()
        self.assertIn(b"POST /flush HTTP/1.1", flush.request())
        flush.answer({})
        asked = talk.reply(chunk("Yes")).asked()
        self.assertEqual(len(asked["messages"]), 3)

    def test_a_shorter_history_with_the_option_and_without(self) -> None:
        for option, begins_anew in ((True, True), (False, False)):
            talk = Talk(cache_reset="POST /flush", reset_on_shrink=option)
            talk.headers["X_Session_Id"] = "s"
            talk.turn(user("a"), assistant("b"), user("c"))
            talk.ask(user("a"))
            self.assertEqual(b"/flush" in talk.world.backend().request(), begins_anew)

    def test_a_pattern_of_ones_own(self) -> None:
        talk = Talk(
            cache_reset="POST /flush", reset_pattern=re.compile("A new session was started")
        )
        talk.ask(user("old"), user("A new session was started. Say hello."))
        talk.world.backend().answer({})
        asked = talk.reply(chunk("Hello")).asked()
        self.assertEqual(asked["messages"], [user(". Say hello.")])
        talk.turn(user("/new"))
        self.assertEqual(talk.asked["messages"], [user("/new")])

    def test_another_sessions_stream_is_untouched_and_the_purge_comes_behind_it(self) -> None:
        talk = Talk(cache_reset="DELETE /v1/cache")
        talk.headers["X_Session_Id"] = "one"
        running = talk.ask(user("a long story"))
        backend = talk.world.backend()
        backend.begin_stream()
        backend.stream(chunk("Once", role="assistant"))
        talk.headers["X_Session_Id"] = "two"
        connections = talk.world.connecting()
        self.assertTrue(talk.ask(user("/new")).complete())
        talk.world.pass_time(20)
        self.assertEqual(talk.world.connecting(), connections)
        backend.stream(chunk(" upon a time"), chunk(finish="stop"), DONE)
        backend.end_stream()
        talk.world.reactor.advance(0)
        self.assertEqual(content(running), "Once upon a time")
        self.assertEqual(talk.world.connecting(), connections + 1)
        self.assertIn(b"DELETE /v1/cache", talk.world.backend().request())

    def test_a_question_waits_for_five_seconds_and_goes_on_without(self) -> None:
        talk = Talk(cache_reset="DELETE /v1/cache")
        talk.headers["X_Session_Id"] = "one"
        talk.ask(user("a long story"))
        talk.world.backend().begin_stream()
        talk.headers["X_Session_Id"] = "two"
        connections = talk.world.connecting()
        talk.ask(user("/new question"))
        talk.world.pass_time(4.5)
        self.assertEqual(talk.world.connecting(), connections)
        talk.world.pass_time(1)
        self.assertEqual(talk.world.backend().asked()["messages"], [user("question")])

    def test_the_next_question_calls_a_late_purge_off(self) -> None:
        talk = Talk(cache_reset="DELETE /v1/cache")
        talk.headers["X_Session_Id"] = "one"
        talk.ask(user("a long story"))
        story = talk.world.backend()
        story.begin_stream()
        talk.headers["X_Session_Id"] = "two"
        talk.ask(user("/new"))
        talk.turn(user("/new"), assistant("x"), user("hi"))
        connections = talk.world.connecting()
        story.leave()
        talk.world.reactor.advance(0)
        self.assertEqual(talk.world.connecting(), connections)

    def test_a_backend_that_fails_to_forget_is_not_felt(self) -> None:
        for answer in ("500 Oops", "404 Not Found"):
            talk = Talk(cache_reset="DELETE /v1/cache")
            client = talk.ask(user("/new question"))
            talk.world.backend().answer({}, answer)
            talk.reply(chunk("Yes"))
            self.assertEqual(content(client), "Yes")

    def test_a_backend_that_hangs_at_it_is_not_waited_for(self) -> None:
        talk = Talk(cache_reset="DELETE /v1/cache")
        talk.ask(user("/new question"))
        hanging = talk.world.backend()
        talk.world.pass_time(6)
        self.assertTrue(hanging.wire.aborted)
        self.assertIn(b"/v1/chat", talk.world.backend().request())

    def test_requests_wait_for_the_end_of_a_purge(self) -> None:
        talk = Talk(cache_reset="DELETE /v1/cache")
        talk.ask(user("/new"))
        purging = talk.world.backend()
        other = talk.ask(user("hi"))
        self.assertEqual(talk.world.connecting(), 1)
        purging.answer({})
        talk.reply(chunk("Hello"))
        self.assertEqual(content(other), "Hello")

    def test_a_client_that_leaves_while_it_waits(self) -> None:
        talk = Talk(cache_reset="DELETE /v1/cache")
        first = talk.ask(user("a long story"))
        talk.world.backend().begin_stream()
        talk.headers["X_Session_Id"] = "two"
        talk.ask(user("/new question")).leave()
        first.leave()
        self.assertEqual(talk.world.idle(), NOTHING_LEFT)


class Notices(SynchronousTestCase):
    def test_the_banner_opens_the_first_answer_once(self) -> None:
        talk = Talk(model_name="Qwen")
        first = talk.turn(user("hi"))
        self.assertTrue(first.startswith(f"{OPENS}\n"))
        self.assertTrue(first.endswith("\n\nHello"))
        self.assertIn("Qwen", first)
        second = talk.turn(user("hi"), assistant(first), user("more"))
        self.assertEqual(second, "Hello")
        self.assertEqual(talk.asked["messages"], [user("hi"), assistant("Hello"), user("more")])

    def test_none_without_a_name(self) -> None:
        self.assertEqual(Talk().turn(user("hi")), "Hello")

    def test_it_stands_behind_the_think_block(self) -> None:
        said = Talk(model_name="Qwen").turn(user("hi"), says="<think>hm</think>\n\nHello")
        self.assertTrue(said.startswith(f"<think>hm</think>\n\n{OPENS}"))
        self.assertTrue(said.endswith("\n\nHello"))

    def test_with_tools_it_closes_an_answer_without_calls(self) -> None:
        talk = Talk(model_name="Qwen")
        said = talk.turn(user("hi"), tools=[WEATHER])
        self.assertTrue(said.startswith(f"Hello\n\n{CLOSES}\n"))

    def test_with_tools_it_waits_for_an_answer_without_calls(self) -> None:
        talk = Talk(model_name="Qwen")
        call = '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>'
        self.assertNotIn("Qwen", talk.turn(user("hi"), says=call, tools=[WEATHER]))
        self.assertIn("Qwen", talk.turn(user("hi"), user("more"), tools=[WEATHER]))
        self.assertNotIn("Qwen", talk.turn(user("hi"), user("more"), tools=[WEATHER]))

    def test_never_in_json(self) -> None:
        talk = Talk(model_name="Qwen")
        self.assertEqual(talk.turn(user("hi"), says="{}", response_format=JSON_ANSWER), "{}")
        self.assertIn("Qwen", talk.turn(user("hi")))

    def test_in_whole_answers(self) -> None:
        talk = Talk(model_name="Qwen")
        client = talk.ask(user("hi"), stream=False)
        choice = {"index": 0, "message": assistant("Hello"), "finish_reason": "stop"}
        talk.world.backend().answer({"object": "chat.completion", "choices": [choice]})
        said = client.json()["choices"][0]["message"]["content"]
        self.assertTrue(said.startswith(OPENS))
        self.assertTrue(said.endswith("\n\nHello"))

    def test_as_reasoning(self) -> None:
        talk = Talk(model_name="Qwen", notices="reasoning")
        self.assertEqual(talk.turn(user("hi"), tools=[WEATHER]), "Hello")
        self.assertIn("Qwen", thoughts(talk.client))
        self.assertEqual(deltas(talk.client)[0]["role"], "assistant")

    def test_in_a_header(self) -> None:
        talk = Talk(model_name="Qwen ✓", notices="header")
        self.assertEqual(talk.turn(user("hi")), "Hello")
        self.assertIn("Qwen ?", talk.client.headers()["x-blockops-notice"])
        talk.turn(user("hi"))
        self.assertNotIn("x-blockops-notice", talk.client.headers())

    def test_nowhere(self) -> None:
        talk = Talk(model_name="Qwen", notices="off")
        self.assertEqual(talk.turn(user("hi")), "Hello")
        self.assertNotIn("x-blockops-notice", talk.client.headers())

    def test_an_answer_that_failed_has_not_said_it(self) -> None:
        talk = Talk(model_name="Qwen")
        talk.ask(user("hi"))
        talk.world.backend().answer({}, "500 Oops")
        self.assertIn("Qwen", talk.turn(user("hi")))

    def test_two_sessions_share_nothing(self) -> None:
        talk = Talk(model_name="Qwen")
        for name in ("one", "two"):
            talk.headers["X_Session_Id"] = name
            self.assertIn("Qwen", talk.turn(user("hi")))
            self.assertNotIn("Qwen", talk.turn(user("hi")))

    def test_a_long_history_is_told_once_until_it_is_short_again(self) -> None:
        talk = Talk(token_warn_threshold=1_000)
        talk.headers["X_Session_Id"] = "s"
        long = user("word " * 2_000)
        start = user("first")
        client = talk.ask(start, long)
        talk.world.backend().answer({}, "404 Not Found")  # it has no /tokenize
        talk.reply(chunk("Hello"))
        self.assertIn(f"{OPENS}\nThis conversation is long", content(client))
        self.assertEqual(talk.turn(start, long), "Hello")
        self.assertEqual(talk.turn(start), "Hello")
        self.assertIn("This conversation is long", talk.turn(start, long))

    def test_a_short_side_track_does_not_tell_it_again(self) -> None:
        talk = Talk(token_warn_threshold=1_000)
        talk.headers["X_Session_Id"] = "s"
        long = user("word " * 2_000)
        client = talk.ask(long)
        talk.world.backend().answer({}, "404 Not Found")
        talk.reply(chunk("Hello"))
        self.assertIn("This conversation is long", content(client))
        self.assertEqual(talk.turn(user("a sub-agent's question")), "Hello")
        self.assertEqual(talk.turn(long, assistant("Hello"), user("more")), "Hello")

    def test_two_long_histories_of_a_session_are_told_of_once(self) -> None:
        talk = Talk(token_warn_threshold=1_000)
        talk.headers["X_Session_Id"] = "s"
        one, other = user("word " * 2_000), user("other " * 2_000)
        client = talk.ask(one)
        talk.world.backend().answer({}, "404 Not Found")
        talk.reply(chunk("Hello"))
        self.assertIn("This conversation is long", content(client))
        for _ in range(3):
            self.assertEqual(talk.turn(other), "Hello")
            self.assertEqual(talk.turn(user("a title, please")), "Hello")
            self.assertEqual(talk.turn(one), "Hello")
        talk.headers["X_Session_Id"] = "t"
        self.assertIn("This conversation is long", talk.turn(other))

    def test_an_answer_that_failed_has_not_told_of_a_long_history(self) -> None:
        talk = Talk(token_warn_threshold=1_000)
        talk.headers["X_Session_Id"] = "s"
        long = user("word " * 2_000)
        talk.ask(long)
        talk.world.backend().answer({}, "404 Not Found")
        talk.world.backend().answer({}, "500 Oops")
        self.assertIn("This conversation is long", talk.turn(long))

    def test_a_history_is_measured_as_it_came(self) -> None:
        talk = Talk(token_warn_threshold=1_500, token_hard_threshold=1_000)
        messages = [user("first")]
        for number in range(40):
            messages += [assistant(f"answer {number} " * 20), user(f"question {number} " * 20)]
        client = talk.ask(*messages)
        talk.world.backend().answer({}, "404 Not Found")
        talk.reply(chunk("Hello"))
        self.assertIn("This conversation is long", content(client))


class Memory(SynchronousTestCase):
    def setUp(self) -> None:
        self.available = 50.0
        self.patch(MemoryGauge.__init__, "__defaults__", (lambda: self.available,))

    def read(self, talk: Talk, percent: float) -> None:
        self.available = percent
        talk.world.pass_time(11)

    def test_each_tier_is_told_once_in_each_session(self) -> None:
        talk = Talk()
        talk.headers["X_Session_Id"] = "one"
        self.assertEqual(talk.turn(user("hi")), "Hello")
        for percent, tier in ((18, "notice"), (12, "warning"), (7, "high"), (4, "critical")):
            self.read(talk, percent)
            self.assertIn(f"Memory is getting tight ({tier}): {percent} %", talk.turn(user("hi")))
            self.assertEqual(talk.turn(user("hi")), "Hello")
        talk.headers["X_Session_Id"] = "two"
        self.assertIn("(critical)", talk.turn(user("hi")))
        self.read(talk, 50)
        self.read(talk, 18)
        talk.headers["X_Session_Id"] = "one"
        self.assertEqual(talk.turn(user("hi")), "Hello")

    def test_the_gate(self) -> None:
        talk = Talk(memory_gate=True)
        self.read(talk, 4)
        client = talk.ask(user("hi"))
        self.assertEqual((client.status(), client.error()["code"]), (503, "memory_critical"))
        self.assertEqual(client.headers()["retry-after"], "10")
        self.assertEqual(talk.world.connecting(), 0)
        other = talk.world.client()
        other.post("/v1/embeddings", {"input": "x"})
        self.assertEqual(other.status(), 503)
        self.read(talk, 6)
        self.assertIn("Hello", talk.turn(user("hi")))

    def test_without_the_gate(self) -> None:
        talk = Talk()
        self.read(talk, 4)
        self.assertIn("Hello", talk.turn(user("hi")))


class ColdStart(SynchronousTestCase):
    def waiting(self, seconds: float, **settings: Any) -> tuple[Client, Backend, Talk]:
        talk = Talk(cold_start_notice=60, **settings)
        client = talk.ask(user("hi"))
        backend = talk.world.backend()
        talk.world.pass_time(seconds)
        return client, backend, talk

    def test_one_line_as_reasoning(self) -> None:
        client, backend, talk = self.waiting(59)
        self.assertEqual(client.events(), [])
        talk.world.pass_time(2)
        self.assertIn("60 seconds so far", thoughts(client))
        self.assertTrue(thoughts(client).startswith(OPENS))
        self.assertEqual(deltas(client)[0], {"role": "assistant"})
        talk.world.pass_time(120)
        backend.begin_stream()
        backend.stream(chunk("", role="assistant"), chunk("Hello"), chunk(finish="stop"), DONE)
        talk.world.reactor.advance(0)
        self.assertEqual(thoughts(client).count("so far"), 1)
        self.assertEqual(content(client), "Hello")
        self.assertEqual(client.events()[-1], "[DONE]")

    def test_also_behind_the_backends_role(self) -> None:
        talk = Talk()
        client = talk.ask(user("hi"))
        backend = talk.world.backend()
        backend.begin_stream()
        backend.stream(chunk("", role="assistant"))
        talk.world.pass_time(61)
        self.assertIn("so far", thoughts(client))

    def test_not_once_the_model_speaks(self) -> None:
        for said in (chunk("Hello"), chunk(reasoning_content="hm")):
            talk = Talk()
            client = talk.ask(user("hi"))
            backend = talk.world.backend()
            backend.begin_stream()
            backend.stream(chunk("", role="assistant"), said)
            talk.world.pass_time(120)
            self.assertNotIn("so far", thoughts(client))

    def test_not_while_queued(self) -> None:
        talk = Talk(max_concurrent=1)
        talk.ask(user("first"))
        second = talk.ask(user("second"))
        talk.world.pass_time(120)
        self.assertEqual(thoughts(second), "")

    def test_never_where_it_is_off_or_there_is_no_room(self) -> None:
        for options, fields in (
            ({"cold_start_notice": 0}, {}),
            ({"notices": "off"}, {}),
            ({"notices": "header"}, {}),
            ({}, {"response_format": JSON_ANSWER}),
        ):
            talk = Talk(**options)
            client = talk.ask(user("hi"), **fields)
            talk.world.backend()
            talk.world.pass_time(120)
            self.assertEqual(thoughts(client), "")

    def test_it_is_removed_when_it_comes_back(self) -> None:
        client, backend, talk = self.waiting(61)
        backend.begin_stream()
        backend.stream(chunk("Hello", role="assistant"), chunk(finish="stop"), DONE)
        talk.world.reactor.advance(0)
        back = {**assistant("Hello"), "reasoning_content": thoughts(client)}
        talk.turn(user("hi"), back, user("more"))
        self.assertEqual(talk.asked["messages"][1], {**back, "reasoning_content": ""})


class Known(SynchronousTestCase):
    """Whose a request is, as the traffic log has it."""

    def session(self, headers: dict[str, str] | None = None, /, **fields: Any) -> str | None:
        talk = Talk()
        talk.headers = headers or {}
        talk.turn(user("hi"), **fields)
        return talk.world.traffic.requests()[-1].session

    def test_by_what(self) -> None:
        fields: dict[str, Any] = {
            "metadata": {"session_id": "m"},
            "prompt_cache_key": "k",
            "user": "u",
        }
        self.assertEqual(self.session({"X_Session_Id": "h"}, **fields), "header:h")
        for name in list(fields):
            self.assertIn(self.session(**fields), {"metadata:m", "cache_key:k", "user:u"})
            del fields[name]

    def test_without_a_word_the_system_prompt_does_not_count(self) -> None:
        talk = Talk()
        names = set()
        for hour in range(3):
            system = {"role": "system", "content": f"It is {hour} o'clock."}
            talk.turn(system, user("hi"))
            names.add(talk.world.traffic.requests()[-1].session)
        self.assertEqual(len(names), 1)
        talk.turn(user("something else"))
        self.assertNotIn(talk.world.traffic.requests()[-1].session, names)

    def test_a_header_in_another_encoding(self) -> None:
        talk = Talk()
        client = talk.world.client()
        body = json.dumps(chat(messages=[user("hi")])).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: b\r\nContent-Length: {len(body)}\r\n"
        client.send(head.encode() + b"X-Session-Id: caf\xe9\r\nAuthorization: \xff\r\n\r\n" + body)
        talk.world.reactor.advance(0)
        self.assertIn(b"/v1/chat", talk.world.backend().request())
        self.assertTrue(str(talk.world.traffic.requests()[-1].session).startswith("header:caf"))

    def test_odd_words_are_none(self) -> None:
        fields: dict[str, Any] = {"metadata": ["x"], "prompt_cache_key": {}, "user": ""}
        self.assertRegex(str(self.session(**fields)), "^client:")

    def test_how_many_messages(self) -> None:
        talk = Talk()
        talk.turn(user("hi"), assistant("x"), user("y"))
        self.assertEqual(talk.world.traffic.requests()[-1].messages, 3)


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


class Whatever(SynchronousTestCase):
    """No request is so odd that blockops fails at it."""

    @given(malformed, st.dictionaries(st.sampled_from(NAMES), ODD, max_size=5), st.booleans())
    @thorough(200)
    def test_no_request_is_a_fault_of_ours(
        self, messages: list[Any], fields: dict[str, Any], long: Any
    ) -> None:
        limits = {"token_hard_threshold": 300, "token_warn_threshold": 200} if long else {}
        talk = Talk(model_name="Qwen", cache_reset="off", **limits)
        client = talk.world.client()
        body = json.dumps({"messages": [user("/new x"), *messages], **fields}).encode()
        client.post("/v1/chat/completions", body)
        if talk.world.connecting():
            talk.world.backend().answer({"error": {"message": "no"}}, "404 Not Found")
        if talk.world.connecting() > 1:
            talk.world.backend().answer({"error": {"message": "no"}}, "404 Not Found")
        self.assertIn(client.status(), {200, 400, 404})
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(talk.world.idle(), NOTHING_LEFT)
