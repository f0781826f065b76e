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


lines = st.text(min_size=1, max_size=40).filter(lambda text: bool(text.strip()))
#: What models write; no model has ever seen a marker line.
answers = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "",
            "\n\nHello",
            "a\n\nb\n",
            'say "hi" \\ \\n',
            "<think>x</think>\n\ny",
            "[blockops]",
            "\r\n",
        ]
    ),
).filter(lambda text: OPENS not in text and CLOSES not in text)


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
    @given(answers, st.lists(lines, min_size=1, max_size=3), st.sampled_from([True, False]))
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
            cleaned(f"<think>hm</think>\n\n{opening(['Hi.'])}Hello"), "<think>hm</think>\n\nHello"
        )

    def test_what_clients_strip(self) -> None:
        self.assertEqual(cleaned(("Hello" + closing(["Hi."])).strip()), "Hello")
        self.assertIsNone(cleaned(opening(["Hi."]).strip()))
        self.assertIsNone(cleaned(opening(["Hi."]).rstrip("\n") + "\n"))

    def test_with_crlf(self) -> None:
        self.assertEqual(cleaned((opening(["Hi."]) + "a\nb").replace("\n", "\r\n")), "a\r\nb")

    def test_both_ends(self) -> None:
        self.assertEqual(cleaned(opening(["Hi."]) + "Hello" + closing(["Bye."])), "Hello")

    def test_parts_and_thoughts(self) -> None:
        parts = [{"type": "text", "text": opening(["Hi."]) + "Hello"}]
        self.assertEqual(cleaned(parts), [{"type": "text", "text": "Hello"}])
        message = {"role": "assistant", "content": "x", "reasoning_content": opening(["Hi."])}
        raw = without_notices(json.dumps(message).encode())
        self.assertEqual(json.loads(raw or b""), {**message, "reasoning_content": ""})

    def test_only_what_an_assistant_says(self) -> None:
        for role in ("user", "tool", "system"):
            raw = json.dumps({"role": role, "content": opening(["Hi."])}).encode()
            self.assertIs(without_notices(raw), raw)

    def test_text_of_a_call_stays(self) -> None:
        arguments = json.dumps({"text": opening(["Hi."])})
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        message = {"role": "assistant", "content": opening(["Hi."]), "tool_calls": [call]}
        left = json.loads(without_notices(json.dumps(message).encode()) or b"")
        self.assertEqual(left, {**message, "content": ""})

    def test_a_message_of_nothing_else_is_gone(self) -> None:
        self.assertIsNone(cleaned(opening(["Hi."])))
        self.assertIsNone(cleaned([{"type": "text", "text": opening(["Hi."])}]))
        self.assertIsNone(cleaned(None, reasoning_content=opening(["Hi."])))
        self.assertEqual(cleaned("", tool_calls=[], name="x"), "")

    def test_what_no_strict_reader_takes(self) -> None:
        raw = json.dumps({"role": "assistant", "content": opening(["Hi."])}).encode()
        odd = raw.replace(b'"content"', b'"x": NaN, "content"')
        self.assertEqual(without_notices(odd), b'{"role": "assistant", "x": NaN, "content": ""}')

    def test_a_message_without_one_stays(self) -> None:
        for content in ("Hello", "[blockops", f"a {OPENS}", f"{OPENS}\n\n"):
            raw = json.dumps({"role": "assistant", "content": content}).encode()
            self.assertEqual(without_notices(raw), raw)
