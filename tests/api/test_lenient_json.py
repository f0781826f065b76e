"""JSON that strict readers refuse becomes JSON that they take."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.lenient_json import Mender, clean_text, dumps, is_strict, loads


def chunk(**delta: Any) -> bytes:
    """Return a chunk whose strings are escaped, halves of surrogate pairs too."""
    return json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()


class MendTests(SynchronousTestCase):
    def mended(self, data: bytes, mender: Mender | None = None) -> Any:
        return json.loads((mender or Mender()).mend(data))

    def test_what_is_strict_stays(self) -> None:
        for data in (
            b'{"a":1.50,"b":-0,"c":[null,true,"\xc3\xa9"],"d":12345678901234567890}',
            b"[]",
        ):
            self.assertEqual(Mender().mend(data), data)

    def test_no_numbers(self) -> None:
        """JSON has no word for them, and null is what others write."""
        data = b'{"a": NaN, "b": -Infinity, "c": 1e400, "d": 1}'
        self.assertEqual(self.mended(data), {"a": None, "b": None, "c": None, "d": 1})

    def test_control_characters(self) -> None:
        self.assertEqual(self.mended(b'{"a": "b\nc\td\x00"}'), {"a": "b\nc\td\x00"})

    def test_bytes_that_are_no_text(self) -> None:
        self.assertEqual(self.mended(b'{"a": "\xff\xe2\x82"}'), {"a": "\ufffd\ufffd"})

    def test_huge_numbers(self) -> None:
        digits = b"1" * 5000
        self.assertEqual(Mender().mend(b'{"a":%s}' % digits), b'{"a":null}')

    def test_no_json(self) -> None:
        for data in (b"", b"{", b"nope", b'{"a": 1} x', b"[" * 100_000, b'{"a":' * 100_000):
            self.assertRaises(ValueError, Mender().mend, data)

    def test_deep_but_no_deeper(self) -> None:
        """Whatever is read can be written, or is refused."""
        for depth in range(100, 1200, 20):
            try:
                Mender().mend(b'{"choices":[' + b"[" * depth + b"]" * depth + b"]}")
            except ValueError:
                continue

    def test_odd_choices(self) -> None:
        for data in (
            b'{"choices":null}',
            b'{"choices":[1]}',
            b'{"choices":[{"delta":null}]}',
            b"[1]",
        ):
            self.assertEqual(Mender().mend(data), data)


class SurrogateTests(SynchronousTestCase):
    """Halves of surrogate pairs, as tokens that end in the middle of an emoji make them."""

    def joined(self, mender: Mender, *contents: Any, **names: Any) -> list[Any]:
        return [json.loads(mender.mend(chunk(content=c)))["choices"][0]["delta"] for c in contents]

    def test_pair_cut_over_two_deltas(self) -> None:
        mender = Mender()
        first, second = self.joined(mender, "a\ud83d", "\ude42b")
        self.assertEqual((first["content"], second["content"]), ("a", "🙂b"))
        self.assertEqual(mender.pending, {})

    def test_delta_between(self) -> None:
        """A delta without text lets the half wait on."""
        mender = Mender()
        self.joined(mender, "\ud83d")
        mender.mend(b'{"choices":[{"index":0,"delta":{"role":"assistant"}}]}')
        mender.mend(b'{"choices":[{"index":1,"delta":{"content":"other"}}]}')
        self.assertEqual(self.joined(mender, "\ude42"), [{"content": "🙂"}])

    def test_halves_that_stay_alone(self) -> None:
        mender = Mender()
        said = self.joined(mender, "\ude42", "a\ud83d", "b", "\ud83dx", "\ud83d", "\ud83d\ude42")
        content = "".join(delta["content"] for delta in said)
        self.assertEqual(content, "\ufffda\ufffdb\ufffdx\ufffd🙂")

    def test_wherever_it_stands_in_the_delta(self) -> None:
        mender = Mender()
        arguments = [
            {
                "tool_calls": [{"index": 1, "function": {"arguments": half}}],
                "reasoning_content": half,
            }
            for half in ("\ud83d", "\ude42")
        ]
        first, second = (
            json.loads(mender.mend(chunk(**delta)))["choices"][0]["delta"] for delta in arguments
        )
        self.assertEqual(first["reasoning_content"], "")
        self.assertEqual(second["reasoning_content"], "🙂")
        self.assertEqual(second["tool_calls"][0]["function"]["arguments"], "🙂")

    def test_each_choice_has_its_own(self) -> None:
        mender = Mender()
        for index in (0, 1):
            mender.mend(b'{"choices":[{"index":%d,"text":"\\ud83d"}]}' % index)
        self.assertEqual(len(mender.pending), 2)
        mended = mender.mend(b'{"choices":[{"index":1,"text":"\\ude42"},{"index":0,"text":"x"}]}')
        texts = [choice["text"] for choice in json.loads(mended)["choices"]]
        self.assertEqual(texts, ["🙂", "\ufffdx"])

    def test_no_more_than_so_many_wait(self) -> None:
        mender = Mender()
        for index in range(2000):
            mended = mender.mend(b'{"choices":[{"index":%d,"text":"\\ud83d"}]}' % index)
        self.assertEqual(json.loads(mended)["choices"][0]["text"], "\ufffd")
        self.assertEqual(len(mender.pending), 1024)

    def test_beside_the_delta(self) -> None:
        mended = Mender().mend(b'{"choices":[{"logprobs":{"token":"\\ud83d"}}],"\\ud83d":1}')
        self.assertEqual(
            mended.decode(), '{"choices":[{"logprobs":{"token":"\ufffd"}}],"\ufffd":1}'
        )

    @given(st.lists(st.text(st.sampled_from("a\ud83d\ude42é"))))
    def test_no_text_is_lost(self, contents: list[str]) -> None:
        """What leaves, joined, is what came, joined, its lonely halves replaced."""
        mender = Mender()
        said = "".join(delta["content"] for delta in self.joined(mender, *contents))
        whole = "".join(contents).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        half = "".join(mender.pending.values())
        self.assertEqual(len(said + half), len(clean_text(paired("".join(contents)))))
        self.assertEqual(said, clean_text(paired("".join(contents)))[: len(said)], whole)


def paired(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


class ValueTests(SynchronousTestCase):
    def test_strict(self) -> None:
        self.assertTrue(is_strict(b'{"a": "\xc3\xa9"}'))
        for data in (
            b"",
            b"{",
            b'{"a": NaN}',
            b'"\\ud83d"',
            b'"\n"',
            b"\xff",
            b'"\xff"',
            b"[" * 100_000,
        ):
            self.assertFalse(is_strict(data))

    @given(
        st.recursive(
            st.none() | st.booleans() | st.text(),
            lambda v: st.lists(v) | st.dictionaries(st.text(), v),
        )
    )
    def test_round_trip(self, value: Any) -> None:
        self.assertEqual(json.loads(dumps(loads(json.dumps(value).encode()))), value)

    def test_clean_text(self) -> None:
        self.assertEqual(clean_text("a\ud83d\U0001f642\udc00"), "a\ufffd\U0001f642\ufffd")
