"""How values are parsed, at their bounds."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Literal

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta
from twisted.trial.unittest import SynchronousTestCase

from blockops.settings import types
from blockops.settings.table import TABLE
from blockops.settings.types import InvalidValue

SIZE_OR_ZERO = Annotated[int, Meta(ge=0, le=types.MAX_SIZE), types.BYTES]


class BackendUrlTests(SynchronousTestCase):
    """URLs of backends."""

    def test_accepted(self) -> None:
        for text, value in (
            ("http://127.0.0.1:8082", "http://127.0.0.1:8082"),
            ("http://127.0.0.1:8082/", "http://127.0.0.1:8082"),
            ("http://127.0.0.1:8082/v1", "http://127.0.0.1:8082"),
            ("http://127.0.0.1:8082/v1/", "http://127.0.0.1:8082"),
            ("HTTPS://llm.lan", "https://llm.lan"),
            ("https://llm.lan/serving/v1", "https://llm.lan/serving"),
            ("https://llm.lan/v1/models/qwen", "https://llm.lan/v1/models/qwen"),
            ("http://llm.lan/dev1", "http://llm.lan/dev1"),
            ("http://[::1]:8082/v1", "http://[::1]:8082"),
            ("demo", "demo"),
        ):
            self.assertEqual(types.BACKEND.parse(text), value)

    def test_rejected(self) -> None:
        for text in (
            "",
            "127.0.0.1:8082",
            "localhost",
            "ftp://host",
            "http://",
            "http:///v1",
            "http://:80",
            "http://host:99999",
            "http://host:0",
            "http://host:port",
            "http://[::1",
            "http://me@host",
            "http://host?x=1",
            "http://host/?",
            "http://host/#top",
            "http://ho st",
            "http://host\n",
            "http://hóst",
            "Demo",
        ):
            self.assertRaises(InvalidValue, types.BACKEND.parse, text)


class ValueTypeTests(SynchronousTestCase):
    """Numbers, sizes, durations and the other types, at their bounds."""

    def test_aliases(self) -> None:
        for value, aliases in (
            ("q=Qwen/Qwen3 l=x=y", {"q": "Qwen/Qwen3", "l": "x=y"}),
            (("q=Qwen 3 8B", " l = x "), {"q": "Qwen 3 8B", "l": "x"}),
            ({"q": "Qwen 3"}, {"q": "Qwen 3"}),
            ({}, {}),
        ):
            self.assertEqual(types.ALIASES.parse(value), aliases)
        self.assertEqual(types.ALIASES.to_text({"q": "a", "l": "b"}), "q=a l=b")
        invalid: list[object] = ["q", "=x", "q=", ["q=a", "q=b"], {"q": 7}, {7: "q"}, 7, "a=b b=c"]
        for bad in invalid:
            self.assertRaises(InvalidValue, types.ALIASES.parse, bad)

    def test_sizes(self) -> None:
        value_type = types.value_type(SIZE_OR_ZERO)
        for text, number in (
            ("0", 0),
            ("64k", 65536),
            ("64K", 65536),
            ("64KiB", 65536),
            ("64kib", 65536),
            ("10M", 10 << 20),
            ("1GiB", 1 << 30),
        ):
            self.assertEqual(value_type.parse(text), number)
        for text in ("", "k", "1.5M", "1 M", "10MB", "10b", "-1", "+1", "1_000", "٣", "2000G"):
            self.assertRaises(InvalidValue, value_type.parse, text)

    def test_durations(self) -> None:
        value_type = types.value_type(types.SecondsOrZero)
        for text, seconds in (
            ("0", 0.0),
            ("10", 10.0),
            ("1.5", 1.5),
            (".5", 0.5),
            ("250ms", 0.25),
            ("10s", 10.0),
            ("10 s", 10.0),
            ("5m", 300.0),
            ("2h", 7200.0),
            ("30d", 30 * 86400.0),
        ):
            self.assertEqual(value_type.parse(text), seconds)
        for text in ("", "s", "-1", "+1", "1e3", "inf", "nan", "1_0", "1.", "1M", "٣", "31d"):
            self.assertRaises(InvalidValue, value_type.parse, text)

    def test_integers(self) -> None:
        value_type = types.value_type(Annotated[int, Meta(ge=0, le=100)])
        for text in ("", " 1", "1 ", "+1", "-1", "1.0", "1_0", "0x1", "٣", "101", "9" * 5000):
            self.assertRaises(InvalidValue, value_type.parse, text)
        self.assertEqual([value_type.parse(text) for text in ("0", "007", "100")], [0, 7, 100])

    def test_addresses(self) -> None:
        self.assertEqual(types.ADDRESS.parse("localhost"), "127.0.0.1")
        for text in ("", "127.1", "256.0.0.1", "::g", "[::1]", "host", "127.0.0.1:80"):
            self.assertRaises(InvalidValue, types.ADDRESS.parse, text)

    def test_log_file(self) -> None:
        for off in ("", "off", False):
            self.assertIsNone(types.FILE_OR_OFF.parse(off))
        self.assertEqual(types.FILE_OR_OFF.parse("~/x.log"), Path("~/x.log").expanduser())

    def test_key(self) -> None:
        self.assertEqual(types.KEY.parse(" sk-x\n"), "sk-x")
        for text in ("", " ", "a b", "a\nb", "clé", "a\0"):
            self.assertRaises(InvalidValue, types.KEY.parse, text)

    @given(st.integers(min_value=0, max_value=1 << 40))
    def test_formatted_sizes_are_parsed_back(self, number: int) -> None:
        value_type = types.value_type(SIZE_OR_ZERO)
        self.assertEqual(value_type.parse(types.format_size(number)), number)

    @given(st.text() | st.integers() | st.floats() | st.none() | st.lists(st.text()))
    def test_any_value_is_parsed_or_rejected(self, value: object) -> None:
        for value_type in {each.value_type for each in TABLE}:
            with contextlib.suppress(InvalidValue):
                value_type.parse(value)

    def test_choice_describes_all_its_values(self) -> None:
        value_type = types.value_type(Literal["a", "b", "c"])
        self.assertEqual(value_type.accepts, "a, b or c")
        self.assertEqual(value_type.metavar, "a|b|c")
