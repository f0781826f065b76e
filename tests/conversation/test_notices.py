"""Notices: made, and taken out of what comes back, byte for byte."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.conversation import notices
from blockops.conversation.notices import CLOSES, OPENS, closing, opening, without_notices


def cleaned(content: Any, **more: Any) -> Any:
    """Return the content of an assistant's message that came back without its notices."""
    raw = without_notices(json.dumps({"role": "assistant", "content": content, **more}).encode())
    return None if raw is None else json.loads(raw)["content"]


def in_json(content: str) -> bytes:
    """Return the JSON of an assistant's message."""
    return json.dumps({"role": "assistant", "content": content}).encode()


def left_of(text: str) -> str:
    """Return what is left of a text; a message that is gone had nothing but white space."""
    left = cleaned(text, tool_calls=[CALL])
    assert isinstance(left, str)
    return left


#: With a call no message is empty.
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
HI = notices.session_banner("Q")
BYE = notices.memory_notice("high", 9)

numbers = st.integers(0, 10**9)
#: All that blockops says.
sentences = st.one_of(
    st.text(max_size=250).map(notices.session_banner),
    st.builds(notices.context_notice, numbers, numbers, numbers),
    st.builds(
        notices.memory_notice,
        st.sampled_from(["notice", "warning", "high", "critical"]),
        st.floats(0, 100),
    ),
    st.builds(notices.cold_start_notice, st.floats(0, 10**6), numbers),
)
lines = st.lists(sentences, min_size=1, max_size=8)
#: What texts are made of that are hard to tell from notices, or to cut.
shards = st.one_of(
    st.sampled_from([OPENS, CLOSES, "[blockops ", "\n", "\n\n", "\r", "\r\n", " ", "\t", "> "]),
    st.sampled_from(["<think>", "</think>", "\\", "\\n", '"', "```", ".", "</thi", "Hello", "é😀"]),
    sentences,
    st.builds(opening, lines),
    st.builds(closing, lines),
    st.text(max_size=5),
)
texts = st.lists(shards, max_size=9).map("".join)
#: What models write; no model has ever seen a sentence of ours.
answers = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(["\n", "\r", " ", "\t", "\\", "n", '"', "a", "é😀"])).map("".join),
    st.sampled_from(["", "\n\nHello", "a\n\nb\n", 'say "hi" \\ \\n', "[blockops]", "\r\n"]),
    st.sampled_from([OPENS, CLOSES, f"\n{OPENS}\n", f"\n\n{CLOSES}\n", f"{OPENS}\nHi.\n\nx"]),
)


class Making(SynchronousTestCase):
    def test_a_marker_line_the_lines_and_a_blank_line(self) -> None:
        self.assertEqual(opening(["One.", "Two.\nThree."]), f"{OPENS}\nOne.\nTwo.\nThree.\n\n")
        self.assertEqual(closing(["One."]), f"\n\n{CLOSES}\nOne.\n\n")

    def test_nothing_of_nothing(self) -> None:
        self.assertEqual((opening([]), closing([])), ("", ""))

    def test_no_blank_line_within(self) -> None:
        self.assertEqual(opening(["One.\n\n \nTwo."]), f"{OPENS}\nOne.\nTwo.\n\n")

    def test_the_texts_are_single_lines_that_say_the_numbers(self) -> None:
        said = [
            (notices.session_banner("Qwen"), "Qwen"),
            (notices.context_notice(85_000, 80_000, 100_000), "85,000"),
            (notices.memory_notice("high", 8.4), "8 %"),
            (notices.cold_start_notice(61.2, 90_000), "61 seconds"),
            (notices.cold_start_notice(61.2, 90_000), "90,000"),
        ]
        for text, number in said:
            self.assertIn(number, text)
            self.assertEqual(len(text.splitlines()), 1)


class TakingOut(SynchronousTestCase):
    @given(answers, lines, st.sampled_from([True, False]))
    def test_what_was_put_in_is_what_goes(self, answer: str, texts: list[str], ascii_: Any) -> None:
        for notice, said in (
            (opening(texts), opening(texts) + answer),
            (closing(texts), answer + closing(texts)),
        ):
            message = {"role": "assistant", "content": said, "name": "x"}
            raw = json.dumps(message, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")
            plain = {**message, "content": answer}
            left = without_notices(raw)
            if left is None:
                self.assertEqual(answer.strip(), "", notice)
            else:
                expected = json.dumps(plain, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")
                self.assertEqual(left, expected)

    def test_behind_a_think_block(self) -> None:
        self.assertEqual(
            cleaned(f"<think>hm</think>\n\n{opening([HI])}Hello"), "<think>hm</think>\n\nHello"
        )

    def test_what_clients_strip(self) -> None:
        self.assertEqual(cleaned(("Hello" + closing([HI])).strip()), "Hello")
        self.assertIsNone(cleaned(opening([HI]).strip()))
        self.assertIsNone(cleaned(opening([HI]).rstrip("\n") + "\n"))

    def test_with_crlf(self) -> None:
        self.assertEqual(cleaned((opening([HI]) + "a\nb").replace("\n", "\r\n")), "a\r\nb")

    def test_both_ends(self) -> None:
        self.assertEqual(cleaned(opening([HI]) + "Hello" + closing([BYE])), "Hello")

    def test_parts_and_thoughts(self) -> None:
        parts = [{"type": "text", "text": opening([HI]) + "Hello"}]
        self.assertEqual(cleaned(parts), [{"type": "text", "text": "Hello"}])
        message = {"role": "assistant", "content": "x", "reasoning_content": opening([HI])}
        raw = without_notices(json.dumps(message).encode())
        self.assertEqual(json.loads(raw or b""), {**message, "reasoning_content": ""})

    def test_only_what_an_assistant_says(self) -> None:
        for role in ("user", "tool", "system"):
            raw = json.dumps({"role": role, "content": opening([HI])}).encode()
            self.assertIs(without_notices(raw), raw)

    def test_text_of_a_call_stays(self) -> None:
        arguments = json.dumps({"text": opening([HI])})
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        message = {"role": "assistant", "content": opening([HI]), "tool_calls": [call]}
        left = json.loads(without_notices(json.dumps(message).encode()) or b"")
        self.assertEqual(left, {**message, "content": ""})

    def test_a_message_of_nothing_else_is_gone(self) -> None:
        self.assertIsNone(cleaned(opening([HI])))
        self.assertIsNone(cleaned([{"type": "text", "text": opening([HI])}]))
        self.assertIsNone(cleaned(None, reasoning_content=opening([HI])))
        self.assertEqual(cleaned("", tool_calls=[], name="x"), "")

    def test_what_no_strict_reader_takes(self) -> None:
        raw = json.dumps({"role": "assistant", "content": opening([HI])}).encode()
        odd = raw.replace(b'"content"', b'"x": NaN, "content"')
        self.assertEqual(without_notices(odd), b'{"role": "assistant", "x": NaN, "content": ""}')

    def test_a_message_without_one_stays(self) -> None:
        for content in ("Hello", "[blockops", f"a {OPENS}", f"{OPENS}\n\n"):
            raw = json.dumps({"role": "assistant", "content": content}).encode()
            self.assertEqual(without_notices(raw), raw)

    def test_all_that_a_turn_may_say_at_once(self) -> None:
        texts = [
            notices.session_banner('Qwen/Qwen3-Coder \\ 30B ("fast").'),
            notices.context_notice(1_085_000, 80_000, 100_000),
            *(notices.memory_notice(kind, 8.4) for kind in ("notice", "warning", "critical")),
            notices.cold_start_notice(61.2, 0),
        ]
        self.assertEqual(cleaned(opening(texts) + "Hello" + closing(texts)), "Hello")

    def test_writers_that_escape_more(self) -> None:
        notice = opening([notices.context_notice(1, 2, 3), notices.session_banner("a/b")])
        raw = in_json(f"<think>hm</think>\n{notice}Hello")
        php = raw.replace(b"/", rb"\/")
        self.assertEqual(json.loads(without_notices(php) or b""), json.loads(in_json_of_hm))
        go = raw.replace(b"<", rb"\u003c").replace(b">", rb"\u003e")
        self.assertEqual(json.loads(without_notices(go) or b""), json.loads(in_json_of_hm))

    def test_with_what_a_think_block_begins_with(self) -> None:
        waits = opening([notices.cold_start_notice(61, 5)])
        said = f"<think>\n{waits}hm</think>\n\n{opening([HI])}Hello"
        self.assertEqual(cleaned(said), "<think>\nhm</think>\n\nHello")
        self.assertEqual(cleaned(f"hm</think>{opening([HI])}Hello"), "hm</think>Hello")
        self.assertEqual(cleaned(waits + opening([HI]) + "Hello"), "Hello")

    def test_arguments_that_are_no_string_stay(self) -> None:
        function = {"name": "write", "arguments": {"content": opening([HI]), "x": [{"text": HI}]}}
        message = {"role": "assistant", "content": opening([HI]), "tool_calls": [function]}
        for raw in (message, dict(reversed(message.items()))):
            left = json.loads(without_notices(json.dumps(raw).encode()) or b"")
            self.assertEqual(left, {**raw, "content": ""})

    def test_a_message_with_other_thoughts_stays(self) -> None:
        thoughts = [{"type": "reasoning.text", "text": "hm"}]
        self.assertEqual(cleaned(opening([HI]), reasoning_details=thoughts), "")
        self.assertEqual(cleaned(opening([HI]), refusal="No."), "")
        self.assertEqual(cleaned(opening([HI]), audio={"id": "a"}), "")


in_json_of_hm = in_json("<think>hm</think>\nHello")


class WhatClientsChange(SynchronousTestCase):
    """White space around a notice changes; what the model wrote stays all the same."""

    def test_of_a_notice_that_opens(self) -> None:
        answer = "The answer is 42.\nReally."
        for said in (
            f"{OPENS}\n{HI}\n \n{answer}",
            f"{OPENS}\n{HI}\n \t\n{answer}",
            f"{OPENS}\n{HI}\n{answer}",
            f"{OPENS} \t \n{HI}\n\n{answer}",
            f"{OPENS}\n{HI}  \n{BYE}\t\n\n{answer}",
        ):
            self.assertEqual(cleaned(said), answer, said)
            crlf = said.replace("\n", "\r\n")
            self.assertEqual(cleaned(crlf), answer.replace("\n", "\r\n"), crlf)

    def test_of_a_notice_that_closes(self) -> None:
        answer = "The answer is 42.\n\nReally."
        for said in (
            f"{answer}\n \n{CLOSES}\n{HI}\n",
            f"{answer}\n{CLOSES}\n{HI}\n{BYE}",
            f"{answer}\n\n{CLOSES}  \n{HI}\n\n\n",
            f"{answer}\n\n{CLOSES}\n{HI} \n \n ",
        ):
            self.assertEqual(cleaned(said), answer, said)
            crlf = said.replace("\n", "\r\n")
            self.assertEqual(cleaned(crlf), answer.replace("\n", "\r\n"), crlf)

    def test_a_backslash_and_an_n_are_no_newline(self) -> None:
        self.assertEqual(cleaned(f"a\\n\n{CLOSES}\n{HI}"), "a\\n")
        said = f"a\\n{CLOSES}\n{HI}"
        self.assertEqual(cleaned(said), said)


class WhatIsNotOurs(SynchronousTestCase):
    """It stays, all of it."""

    def stays(self, content: str) -> None:
        raw = in_json(content)
        self.assertIs(without_notices(raw), raw, content)

    def test_quoted(self) -> None:
        notice = f"{OPENS}\n{HI}\n\nThe answer is 42.\n"
        self.stays("".join(f"> {line}\n" for line in notice.splitlines()))
        self.stays("".join(f">{line}\n" for line in (CLOSES, HI, "")))

    def test_explained(self) -> None:
        self.stays(f"It looks like:\n```\n{OPENS}\n{HI}\n\nHere.\n```\nOK")
        self.stays(f"It looks like:\n\n{CLOSES}\n{HI}\n\nat the end.")
        self.stays(f"```\n{OPENS}\n{HI}\n\n```")
        self.stays(f"```\n\n{CLOSES}\n{HI}\n\n```")
        self.stays(f"A line that ends with {CLOSES}\n{HI}\n\n")
        self.stays(f"In the middle\n\n{OPENS}\n{HI}\n\nof it")

    def test_other_sentences(self) -> None:
        for line in (
            "Hi.",
            f"{HI} And more.",
            f" {HI}",
            "New session with Q",
            f"New session with {'Q' * 3000}.",
            BYE.replace("high", "odd"),
            BYE.replace("9", "nine"),
            f"New session with {OPENS}.",
        ):
            self.stays(f"{OPENS}\n{line}\n\nHello")
            self.stays(f"Hello\n\n{CLOSES}\n{line}\n\n")

    def test_the_lines_behind_ours(self) -> None:
        self.assertEqual(cleaned(f"{OPENS}\n{HI}\nHi.\n\nHello"), "Hi.\n\nHello")
        self.stays(f"Hello\n\n{CLOSES}\n{HI}\nHi.\n\n")

    def test_more_lines_than_a_turn_may_say(self) -> None:
        self.assertEqual(cleaned(opening([HI] * 9)), f"{HI}\n\n")
        self.stays(f"Hello{closing([HI] * 9)}")

    @given(texts)
    def test_only_sentences_go(self, text: str) -> None:
        unlike = text.replace("session", "meeting").replace("s", "z")
        self.stays(unlike)


class AnyText(SynchronousTestCase):
    """What holds even if models, clients and people write notices."""

    @given(texts, lines)
    def test_what_is_put_in_makes_no_difference(self, text: str, said: list[str]) -> None:
        plain = left_of(text)
        self.assertEqual(left_of(opening(said) + plain), plain)
        self.assertEqual(left_of(plain + closing(said)), plain)

    @given(texts)
    def test_once_is_enough(self, text: str) -> None:
        once = left_of(text)
        self.assertEqual(left_of(once), once)

    def test_a_name_is_one_line_that_can_be_found(self) -> None:
        for name, said in (
            ("a\nb\r\n\nc ", "New session with a b c."),
            (" \n", "New session."),
            (CLOSES, "New session."),
            ("a</think>", "New session."),
            ("a. b", "New session."),
            ("a.", "New session with a.."),
            ("é" * notices.MAX_NAME, f"New session with {'é' * notices.MAX_NAME}."),
            ("😀" * notices.MAX_NAME, f"New session with {'😀' * notices.MAX_NAME}."),
            ("é" * (notices.MAX_NAME + 1), "New session."),
        ):
            self.assertEqual(notices.session_banner(name), said)
            self.assertEqual(cleaned(opening([said]) + "x"), "x")


class Repetition(SynchronousTestCase):
    """
    A model in a loop: what is looked at twice takes hours here.

    :cvar size: characters; a million in tests/live/test_thorough.py
    """

    size = 200_000

    def ends(self, piece: str, end: str = "") -> str:
        return left_of(piece * (self.size // len(piece)) + end)

    def test_of_what_is_no_notice(self) -> None:
        for piece in (
            f"{OPENS}\nx",
            f"\n\n{CLOSES}\nx",
            f"{OPENS}\n{HI}x\n",
            f"\n\n{CLOSES}\n{HI}x\n",
            f"{OPENS}\n{HI} ",
            f"</think>{OPENS}\nNew session with ",
        ):
            for end in ("\r", f"\n\n{CLOSES}\nx"):
                text = piece * (self.size // len(piece)) + end
                self.assertEqual(left_of(text), text)

    def test_of_notices(self) -> None:
        self.assertEqual(self.ends(opening([HI]), "x"), "x")
        self.assertEqual(self.ends(closing([HI])), "")
        self.assertEqual(self.ends(opening([HI]), "\r"), "\r")

    def test_of_lines(self) -> None:
        for piece in (f"{HI}\n", " ", "\n", "\t", "\r", ".", "\n ", "<think>", "</think>", '"'):
            for begin in (f"{OPENS}\n", f"{OPENS}\nNew session with ", f"x\n{CLOSES}\n{HI}\n"):
                many = piece * (self.size // len(piece))
                text = f"{begin}{many}x"
                self.assertTrue(left_of(text).endswith("x"), begin)
                self.assertTrue(left_of(f"x{many}\n{begin}").startswith("x"), begin)

    def test_of_a_string_without_its_end(self) -> None:
        raw = in_json(OPENS) + rb"\"" * (self.size // 2)
        self.assertEqual(without_notices(raw), raw)
