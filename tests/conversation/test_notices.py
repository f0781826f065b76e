"""Tests of notices: their text, and their removal from histories, byte for byte."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.conversation import notices
from blockops.conversation.notices import (
    LEADING_MARKER,
    TRAILING_MARKER,
    leading_block,
    remove_notices,
    trailing_block,
)


def cleaned_content(content: Any, **more: Any) -> Any:
    """Return the content of an assistant message after the removal of notices."""
    raw = remove_notices(json.dumps({"role": "assistant", "content": content, **more}).encode())
    return None if raw is None else json.loads(raw)["content"]


def assistant_json(content: str) -> bytes:
    return json.dumps({"role": "assistant", "content": content}).encode()


def cleaned_text(text: str) -> str:
    """Return `text` after the removal of notices."""
    remaining = cleaned_content(text, tool_calls=[CALL])
    assert isinstance(remaining, str)
    return remaining


#: A message with a call is never empty.
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BANNER = notices.session_banner("Q")
MEMORY_NOTICE = notices.memory_notice("high", 9)

numbers = st.integers(0, 10**9)
#: All sentences of notices.
sentences = st.one_of(
    st.text(max_size=250).map(notices.session_banner),
    st.builds(notices.context_notice, numbers, numbers, numbers),
    st.builds(
        notices.memory_notice,
        st.sampled_from(["notice", "warning", "high", "critical"]),
        st.floats(0, 100),
    ),
    st.builds(notices.prefill_notice, st.floats(0, 10**6), numbers),
)
lines = st.lists(sentences, min_size=1, max_size=8)
#: Pieces of texts in which notices are hard to recognize or to remove.
text_pieces = st.one_of(
    st.sampled_from(
        [LEADING_MARKER, TRAILING_MARKER, "[blockops ", "\n", "\n\n", "\r", "\r\n", " ", "\t", "> "]
    ),
    st.sampled_from(["<think>", "</think>", "\\", "\\n", '"', "```", ".", "</thi", "Hello", "é😀"]),
    sentences,
    st.builds(leading_block, lines),
    st.builds(trailing_block, lines),
    st.text(max_size=5),
)
texts = st.lists(text_pieces, max_size=9).map("".join)
#: Texts of models, which have never seen a sentence of a notice.
answers = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(["\n", "\r", " ", "\t", "\\", "n", '"', "a", "é😀"])).map("".join),
    st.sampled_from(["", "\n\nHello", "a\n\nb\n", 'say "hi" \\ \\n', "[blockops]", "\r\n"]),
    st.sampled_from(
        [
            LEADING_MARKER,
            TRAILING_MARKER,
            f"\n{LEADING_MARKER}\n",
            f"\n\n{TRAILING_MARKER}\n",
            f"{LEADING_MARKER}\nHi.\n\nx",
        ]
    ),
)


class BlockTests(SynchronousTestCase):
    def test_marker_lines_and_blank_line(self) -> None:
        self.assertEqual(
            leading_block(["One.", "Two.\nThree."]), f"{LEADING_MARKER}\nOne.\nTwo.\nThree.\n\n"
        )
        self.assertEqual(trailing_block(["One."]), f"\n\n{TRAILING_MARKER}\nOne.\n\n")

    def test_empty(self) -> None:
        self.assertEqual((leading_block([]), trailing_block([])), ("", ""))

    def test_blank_lines_are_dropped(self) -> None:
        self.assertEqual(leading_block(["One.\n\n \nTwo."]), f"{LEADING_MARKER}\nOne.\nTwo.\n\n")

    def test_sentences_are_single_lines_with_their_numbers(self) -> None:
        cases = [
            (notices.session_banner("Qwen"), "Qwen"),
            (notices.context_notice(85_000, 80_000, 100_000), "85,000"),
            (notices.memory_notice("high", 8.4), "8 %"),
            (notices.prefill_notice(61.2, 90_000), "61 seconds"),
            (notices.prefill_notice(61.2, 90_000), "90,000"),
        ]
        for text, number in cases:
            self.assertIn(number, text)
            self.assertEqual(len(text.splitlines()), 1)


class RemovalTests(SynchronousTestCase):
    @given(answers, lines, st.sampled_from([True, False]))
    def test_exactly_the_notice_is_removed(
        self, answer: str, texts: list[str], ascii_: Any
    ) -> None:
        for notice, text in (
            (leading_block(texts), leading_block(texts) + answer),
            (trailing_block(texts), answer + trailing_block(texts)),
        ):
            message = {"role": "assistant", "content": text, "name": "x"}
            raw = json.dumps(message, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")
            plain = {**message, "content": answer}
            remaining = remove_notices(raw)
            if remaining is None:
                self.assertEqual(answer.strip(), "", notice)
            else:
                expected = json.dumps(plain, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")
                self.assertEqual(remaining, expected)

    def test_after_a_think_block(self) -> None:
        self.assertEqual(
            cleaned_content(f"<think>hm</think>\n\n{leading_block([BANNER])}Hello"),
            "<think>hm</think>\n\nHello",
        )

    def test_stripped_by_clients(self) -> None:
        self.assertEqual(cleaned_content(("Hello" + trailing_block([BANNER])).strip()), "Hello")
        self.assertIsNone(cleaned_content(leading_block([BANNER]).strip()))
        self.assertIsNone(cleaned_content(leading_block([BANNER]).rstrip("\n") + "\n"))

    def test_with_crlf(self) -> None:
        self.assertEqual(
            cleaned_content((leading_block([BANNER]) + "a\nb").replace("\n", "\r\n")), "a\r\nb"
        )

    def test_both_ends(self) -> None:
        self.assertEqual(
            cleaned_content(leading_block([BANNER]) + "Hello" + trailing_block([MEMORY_NOTICE])),
            "Hello",
        )

    def test_parts_and_reasoning(self) -> None:
        parts = [{"type": "text", "text": leading_block([BANNER]) + "Hello"}]
        self.assertEqual(cleaned_content(parts), [{"type": "text", "text": "Hello"}])
        message = {
            "role": "assistant",
            "content": "x",
            "reasoning_content": leading_block([BANNER]),
        }
        raw = remove_notices(json.dumps(message).encode())
        self.assertEqual(json.loads(raw or b""), {**message, "reasoning_content": ""})

    def test_only_assistant_messages(self) -> None:
        for role in ("user", "tool", "system"):
            raw = json.dumps({"role": role, "content": leading_block([BANNER])}).encode()
            self.assertIs(remove_notices(raw), raw)

    def test_arguments_are_unchanged(self) -> None:
        arguments = json.dumps({"text": leading_block([BANNER])})
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        message = {"role": "assistant", "content": leading_block([BANNER]), "tool_calls": [call]}
        remaining = json.loads(remove_notices(json.dumps(message).encode()) or b"")
        self.assertEqual(remaining, {**message, "content": ""})

    def test_message_of_only_notices_is_dropped(self) -> None:
        self.assertIsNone(cleaned_content(leading_block([BANNER])))
        self.assertIsNone(cleaned_content([{"type": "text", "text": leading_block([BANNER])}]))
        self.assertIsNone(cleaned_content(None, reasoning_content=leading_block([BANNER])))
        self.assertEqual(cleaned_content("", tool_calls=[], name="x"), "")

    def test_invalid_json(self) -> None:
        raw = json.dumps({"role": "assistant", "content": leading_block([BANNER])}).encode()
        odd = raw.replace(b'"content"', b'"x": NaN, "content"')
        self.assertEqual(remove_notices(odd), b'{"role": "assistant", "x": NaN, "content": ""}')

    def test_message_without_notices_is_unchanged(self) -> None:
        for content in ("Hello", "[blockops", f"a {LEADING_MARKER}", f"{LEADING_MARKER}\n\n"):
            raw = json.dumps({"role": "assistant", "content": content}).encode()
            self.assertEqual(remove_notices(raw), raw)

    def test_all_notices_of_one_turn(self) -> None:
        texts = [
            notices.session_banner('Qwen/Qwen3-Coder \\ 30B ("fast").'),
            notices.context_notice(1_085_000, 80_000, 100_000),
            *(notices.memory_notice(kind, 8.4) for kind in ("notice", "warning", "critical")),
            notices.prefill_notice(61.2, 0),
        ]
        self.assertEqual(
            cleaned_content(leading_block(texts) + "Hello" + trailing_block(texts)), "Hello"
        )

    def test_encoders_that_escape_more(self) -> None:
        notice = leading_block([notices.context_notice(1, 2, 3), notices.session_banner("a/b")])
        raw = assistant_json(f"<think>hm</think>\n{notice}Hello")
        php = raw.replace(b"/", rb"\/")
        self.assertEqual(json.loads(remove_notices(php) or b""), json.loads(THINKING_JSON))
        go = raw.replace(b"<", rb"\u003c").replace(b">", rb"\u003e")
        self.assertEqual(json.loads(remove_notices(go) or b""), json.loads(THINKING_JSON))

    def test_inside_a_think_block(self) -> None:
        prefill = leading_block([notices.prefill_notice(61, 5)])
        text = f"<think>\n{prefill}hm</think>\n\n{leading_block([BANNER])}Hello"
        self.assertEqual(cleaned_content(text), "<think>\nhm</think>\n\nHello")
        self.assertEqual(
            cleaned_content(f"hm</think>{leading_block([BANNER])}Hello"), "hm</think>Hello"
        )
        self.assertEqual(cleaned_content(prefill + leading_block([BANNER]) + "Hello"), "Hello")

    def test_arguments_that_are_objects_are_unchanged(self) -> None:
        function = {
            "name": "write",
            "arguments": {"content": leading_block([BANNER]), "x": [{"text": BANNER}]},
        }
        message = {
            "role": "assistant",
            "content": leading_block([BANNER]),
            "tool_calls": [function],
        }
        for raw in (message, dict(reversed(message.items()))):
            remaining = json.loads(remove_notices(json.dumps(raw).encode()) or b"")
            self.assertEqual(remaining, {**raw, "content": ""})

    def test_message_with_other_content_stays(self) -> None:
        details = [{"type": "reasoning.text", "text": "hm"}]
        self.assertEqual(cleaned_content(leading_block([BANNER]), reasoning_details=details), "")
        self.assertEqual(cleaned_content(leading_block([BANNER]), refusal="No."), "")
        self.assertEqual(cleaned_content(leading_block([BANNER]), audio={"id": "a"}), "")


THINKING_JSON = assistant_json("<think>hm</think>\nHello")


class ChangedWhiteSpaceTests(SynchronousTestCase):
    """Clients change the white space around a notice; the model's text stays."""

    def test_leading_block(self) -> None:
        answer = "The answer is 42.\nReally."
        for text in (
            f"{LEADING_MARKER}\n{BANNER}\n \n{answer}",
            f"{LEADING_MARKER}\n{BANNER}\n \t\n{answer}",
            f"{LEADING_MARKER}\n{BANNER}\n{answer}",
            f"{LEADING_MARKER} \t \n{BANNER}\n\n{answer}",
            f"{LEADING_MARKER}\n{BANNER}  \n{MEMORY_NOTICE}\t\n\n{answer}",
        ):
            self.assertEqual(cleaned_content(text), answer, text)
            crlf = text.replace("\n", "\r\n")
            self.assertEqual(cleaned_content(crlf), answer.replace("\n", "\r\n"), crlf)

    def test_trailing_block(self) -> None:
        answer = "The answer is 42.\n\nReally."
        for text in (
            f"{answer}\n \n{TRAILING_MARKER}\n{BANNER}\n",
            f"{answer}\n{TRAILING_MARKER}\n{BANNER}\n{MEMORY_NOTICE}",
            f"{answer}\n\n{TRAILING_MARKER}  \n{BANNER}\n\n\n",
            f"{answer}\n\n{TRAILING_MARKER}\n{BANNER} \n \n ",
        ):
            self.assertEqual(cleaned_content(text), answer, text)
            crlf = text.replace("\n", "\r\n")
            self.assertEqual(cleaned_content(crlf), answer.replace("\n", "\r\n"), crlf)

    def test_escaped_backslash_before_n(self) -> None:
        self.assertEqual(cleaned_content(f"a\\n\n{TRAILING_MARKER}\n{BANNER}"), "a\\n")
        text = f"a\\n{TRAILING_MARKER}\n{BANNER}"
        self.assertEqual(cleaned_content(text), text)


class ForeignTextTests(SynchronousTestCase):
    """Text that is not a notice stays unchanged."""

    def assert_unchanged(self, content: str) -> None:
        raw = assistant_json(content)
        self.assertIs(remove_notices(raw), raw, content)

    def test_quoted_notice(self) -> None:
        notice = f"{LEADING_MARKER}\n{BANNER}\n\nThe answer is 42.\n"
        self.assert_unchanged("".join(f"> {line}\n" for line in notice.splitlines()))
        self.assert_unchanged("".join(f">{line}\n" for line in (TRAILING_MARKER, BANNER, "")))

    def test_explained_notice(self) -> None:
        self.assert_unchanged(f"It looks like:\n```\n{LEADING_MARKER}\n{BANNER}\n\nHere.\n```\nOK")
        self.assert_unchanged(f"It looks like:\n\n{TRAILING_MARKER}\n{BANNER}\n\nat the end.")
        self.assert_unchanged(f"```\n{LEADING_MARKER}\n{BANNER}\n\n```")
        self.assert_unchanged(f"```\n\n{TRAILING_MARKER}\n{BANNER}\n\n```")
        self.assert_unchanged(f"A line that ends with {TRAILING_MARKER}\n{BANNER}\n\n")
        self.assert_unchanged(f"In the middle\n\n{LEADING_MARKER}\n{BANNER}\n\nof it")

    def test_former_sentences(self) -> None:
        for sentence in notices.FORMER_SENTENCES:
            self.assertEqual(cleaned_text(leading_block([sentence]) + "Hello"), "Hello")
            self.assertEqual(cleaned_text("Hello" + trailing_block([sentence])), "Hello")
        old = (
            "This conversation is long: about 81,234 tokens (notice at 80,000). At 100,000 the "
            + notices.FORMER_SENTENCES[0].partition(" the ")[2]
        )
        self.assertEqual(cleaned_text(leading_block([old]) + "Hello"), "Hello")

    def test_other_sentences(self) -> None:
        for line in (
            "Hi.",
            f"{BANNER} And more.",
            f" {BANNER}",
            "New session with Q",
            f"New session with {'Q' * 3000}.",
            MEMORY_NOTICE.replace("high", "odd"),
            MEMORY_NOTICE.replace("9", "nine"),
            f"New session with {LEADING_MARKER}.",
        ):
            self.assert_unchanged(f"{LEADING_MARKER}\n{line}\n\nHello")
            self.assert_unchanged(f"Hello\n\n{TRAILING_MARKER}\n{line}\n\n")

    def test_lines_after_a_notice(self) -> None:
        self.assertEqual(
            cleaned_content(f"{LEADING_MARKER}\n{BANNER}\nHi.\n\nHello"), "Hi.\n\nHello"
        )
        self.assert_unchanged(f"Hello\n\n{TRAILING_MARKER}\n{BANNER}\nHi.\n\n")

    def test_more_lines_than_a_turn_has(self) -> None:
        self.assertEqual(cleaned_content(leading_block([BANNER] * 9)), f"{BANNER}\n\n")
        self.assert_unchanged(f"Hello{trailing_block([BANNER] * 9)}")

    @given(texts)
    def test_only_sentences_are_removed(self, text: str) -> None:
        unlike = text.replace("session", "meeting").replace("s", "z")
        self.assert_unchanged(unlike)


class AnyTextTests(SynchronousTestCase):
    """Properties that hold even if models, clients and users write notices themselves."""

    @given(texts, lines)
    def test_added_notices_make_no_difference(self, text: str, added: list[str]) -> None:
        plain = cleaned_text(text)
        self.assertEqual(cleaned_text(leading_block(added) + plain), plain)
        self.assertEqual(cleaned_text(plain + trailing_block(added)), plain)

    @given(texts)
    def test_removal_is_idempotent(self, text: str) -> None:
        cleaned = cleaned_text(text)
        self.assertEqual(cleaned_text(cleaned), cleaned)

    def test_names_in_the_banner(self) -> None:
        for name, banner in (
            ("a\nb\r\n\nc ", "New session with a b c."),
            (" \n", "New session."),
            (TRAILING_MARKER, "New session."),
            ("a</think>", "New session."),
            ("a. b", "New session."),
            ("a.", "New session with a.."),
            ("é" * notices.MAX_MODEL_NAME, f"New session with {'é' * notices.MAX_MODEL_NAME}."),
            ("😀" * notices.MAX_MODEL_NAME, f"New session with {'😀' * notices.MAX_MODEL_NAME}."),
            ("é" * (notices.MAX_MODEL_NAME + 1), "New session."),
        ):
            self.assertEqual(notices.session_banner(name), banner)
            self.assertEqual(cleaned_content(leading_block([banner]) + "x"), "x")


class RepetitionTests(SynchronousTestCase):
    """
    A model in a loop: an algorithm that examines text twice takes hours here.

    :cvar size: characters of a text; a million in tests/live/test_thorough.py
    """

    size = 200_000

    def remove_from_repeated(self, piece: str, end: str = "") -> str:
        return cleaned_text(piece * (self.size // len(piece)) + end)

    def test_almost_notices(self) -> None:
        for piece in (
            f"{LEADING_MARKER}\nx",
            f"\n\n{TRAILING_MARKER}\nx",
            f"{LEADING_MARKER}\n{BANNER}x\n",
            f"\n\n{TRAILING_MARKER}\n{BANNER}x\n",
            f"{LEADING_MARKER}\n{BANNER} ",
            f"</think>{LEADING_MARKER}\nNew session with ",
        ):
            for end in ("\r", f"\n\n{TRAILING_MARKER}\nx"):
                text = piece * (self.size // len(piece)) + end
                self.assertEqual(cleaned_text(text), text)

    def test_notices(self) -> None:
        self.assertEqual(self.remove_from_repeated(leading_block([BANNER]), "x"), "x")
        self.assertEqual(self.remove_from_repeated(trailing_block([BANNER])), "")
        self.assertEqual(self.remove_from_repeated(leading_block([BANNER]), "\r"), "\r")

    def test_lines(self) -> None:
        for piece in (f"{BANNER}\n", " ", "\n", "\t", "\r", ".", "\n ", "<think>", "</think>", '"'):
            for begin in (
                f"{LEADING_MARKER}\n",
                f"{LEADING_MARKER}\nNew session with ",
                f"x\n{TRAILING_MARKER}\n{BANNER}\n",
            ):
                many = piece * (self.size // len(piece))
                text = f"{begin}{many}x"
                self.assertTrue(cleaned_text(text).endswith("x"), begin)
                self.assertTrue(cleaned_text(f"x{many}\n{begin}").startswith("x"), begin)

    def test_unterminated_string(self) -> None:
        raw = assistant_json(LEADING_MARKER) + rb"\"" * (self.size // 2)
        self.assertEqual(remove_notices(raw), raw)
