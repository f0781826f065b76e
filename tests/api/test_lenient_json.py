"""JSON that strict parsers reject becomes JSON that they accept."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.lenient_json import JsonRepairer, dumps, is_strict, loads
from blockops.errors import replace_surrogates


def chunk(**delta: Any) -> bytes:
    """Return a chunk with escaped strings, which may contain halves of surrogate pairs."""
    return json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()


class RepairTests(SynchronousTestCase):
    def repair(self, data: bytes) -> Any:
        return json.loads(JsonRepairer().repair(data))

    def test_strict_json_is_unchanged(self) -> None:
        for data in (
            b'{"a":1.50,"b":-0,"c":[null,true,"\xc3\xa9"],"d":12345678901234567890}',
            b"[]",
        ):
            self.assertEqual(JsonRepairer().repair(data), data)

    def test_numbers_outside_of_json(self) -> None:
        """JSON cannot express them; other programs write null."""
        data = b'{"a": NaN, "b": -Infinity, "c": 1e400, "d": 1}'
        self.assertEqual(self.repair(data), {"a": None, "b": None, "c": None, "d": 1})

    def test_control_characters(self) -> None:
        self.assertEqual(self.repair(b'{"a": "b\nc\td\x00"}'), {"a": "b\nc\td\x00"})

    def test_invalid_utf8(self) -> None:
        self.assertEqual(self.repair(b'{"a": "\xff\xe2\x82"}'), {"a": "\ufffd\ufffd"})

    def test_huge_numbers(self) -> None:
        digits = b"1" * 5000
        self.assertEqual(JsonRepairer().repair(b'{"a":%s}' % digits), b'{"a":null}')

    def test_not_json(self) -> None:
        for data in (b"", b"{", b"nope", b'{"a": 1} x', b"[" * 100_000, b'{"a":' * 100_000):
            self.assertRaises(ValueError, JsonRepairer().repair, data)

    def test_depth(self) -> None:
        """A value that can be parsed can also be encoded, or is rejected."""
        for depth in range(100, 1200, 20):
            try:
                JsonRepairer().repair(b'{"choices":[' + b"[" * depth + b"]" * depth + b"]}")
            except ValueError:
                continue

    def test_odd_choices(self) -> None:
        for data in (
            b'{"choices":null}',
            b'{"choices":[1]}',
            b'{"choices":[{"delta":null}]}',
            b"[1]",
        ):
            self.assertEqual(JsonRepairer().repair(data), data)


class SurrogateTests(SynchronousTestCase):
    """Halves of surrogate pairs: tokens may end in the middle of an emoji."""

    def deltas(self, repairer: JsonRepairer, *contents: Any) -> list[Any]:
        """Return the repaired deltas of chunks with these contents."""
        return [
            json.loads(repairer.repair(chunk(content=c)))["choices"][0]["delta"] for c in contents
        ]

    def test_pair_split_across_two_deltas(self) -> None:
        repairer = JsonRepairer()
        first, second = self.deltas(repairer, "a\ud83d", "\ude42b")
        self.assertEqual((first["content"], second["content"]), ("a", "🙂b"))
        self.assertEqual(repairer.pending, {})

    def test_delta_between(self) -> None:
        """The half stays pending during a delta without text."""
        repairer = JsonRepairer()
        self.deltas(repairer, "\ud83d")
        repairer.repair(b'{"choices":[{"index":0,"delta":{"role":"assistant"}}]}')
        repairer.repair(b'{"choices":[{"index":1,"delta":{"content":"other"}}]}')
        self.assertEqual(self.deltas(repairer, "\ude42"), [{"content": "🙂"}])

    def test_unpaired_halves(self) -> None:
        repairer = JsonRepairer()
        deltas = self.deltas(
            repairer, "\ude42", "a\ud83d", "b", "\ud83dx", "\ud83d", "\ud83d\ude42"
        )
        content = "".join(delta["content"] for delta in deltas)
        self.assertEqual(content, "\ufffda\ufffdb\ufffdx\ufffd🙂")

    def test_every_field_of_the_delta(self) -> None:
        repairer = JsonRepairer()
        arguments = [
            {
                "tool_calls": [{"index": 1, "function": {"arguments": half}}],
                "reasoning_content": half,
            }
            for half in ("\ud83d", "\ude42")
        ]
        first, second = (
            json.loads(repairer.repair(chunk(**delta)))["choices"][0]["delta"]
            for delta in arguments
        )
        self.assertEqual(first["reasoning_content"], "")
        self.assertEqual(second["reasoning_content"], "🙂")
        self.assertEqual(second["tool_calls"][0]["function"]["arguments"], "🙂")

    def test_each_choice_has_its_own_halves(self) -> None:
        repairer = JsonRepairer()
        for index in (0, 1):
            repairer.repair(b'{"choices":[{"index":%d,"text":"\\ud83d"}]}' % index)
        self.assertEqual(len(repairer.pending), 2)
        repaired = repairer.repair(
            b'{"choices":[{"index":1,"text":"\\ude42"},{"index":0,"text":"x"}]}'
        )
        texts = [choice["text"] for choice in json.loads(repaired)["choices"]]
        self.assertEqual(texts, ["🙂", "\ufffdx"])

    def test_half_at_the_end(self) -> None:
        """The finished choice, or the chunk of `flush`, has U+FFFD in the field of the half."""
        for half, end in (
            ('"text":"a\\ud83d"', {"text": "\ufffd"}),
            ('"delta":{"content":"a\\ud83d"}', {"delta": {"content": "\ufffd"}}),
            ('"delta":{"tool_calls":[{"x":"a\\ud83d"}]}', {}),
            ('"text":["a\\ud83d"]', {}),
        ):
            chunk = f'{{"choices":[{{"index":3,{half}}}]}}'.encode()
            repairer = JsonRepairer()
            repairer.repair(chunk)
            self.assertEqual(repairer.flush(), [{"index": 3, "finish_reason": None, **end}])
            self.assertEqual(repairer.flush(), [])
            repairer.repair(chunk)
            finish = b'{"choices":[{"index":3,"finish_reason":"stop"}]}'
            (choice,) = json.loads(repairer.repair(finish))["choices"]
            self.assertEqual(choice, {"index": 3, "finish_reason": "stop", **end})

    def test_limit_of_pending_halves(self) -> None:
        repairer = JsonRepairer()
        for index in range(2000):
            repaired = repairer.repair(b'{"choices":[{"index":%d,"text":"\\ud83d"}]}' % index)
        self.assertEqual(json.loads(repaired)["choices"][0]["text"], "\ufffd")
        self.assertEqual(len(repairer.pending), 1024)

    def test_outside_of_the_delta(self) -> None:
        repaired = JsonRepairer().repair(
            b'{"choices":[{"logprobs":{"token":"\\ud83d"}}],"\\ud83d":1}'
        )
        self.assertEqual(
            repaired.decode(), '{"choices":[{"logprobs":{"token":"\ufffd"}}],"\ufffd":1}'
        )

    @given(st.lists(st.text(st.sampled_from("a\ud83d\ude42é"))))
    def test_no_text_is_lost(self, contents: list[str]) -> None:
        """The joined output is the joined input with its unpaired halves replaced."""
        repairer = JsonRepairer()
        output = "".join(delta["content"] for delta in self.deltas(repairer, *contents))
        whole = "".join(contents).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        half = "".join(repairer.pending.values())
        self.assertEqual(len(output + half), len(replace_surrogates(join_pairs("".join(contents)))))
        self.assertEqual(
            output, replace_surrogates(join_pairs("".join(contents)))[: len(output)], whole
        )


def join_pairs(text: str) -> str:
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

    def test_replace_surrogates(self) -> None:
        self.assertEqual(replace_surrogates("a\ud83d\U0001f642\udc00"), "a\ufffd\U0001f642\ufffd")
