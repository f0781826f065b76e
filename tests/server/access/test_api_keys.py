"""The file with API keys: its lines, what is wrong with some, and how it is read again."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from blockops.server.access.api_keys import MAX_FILE, MAX_KEYS, ApiKeys, KeyFileError, KeyRing

FILE = """\
# who may
alice: sk-1
bob   sk-2

  # spaces and tabs mean nothing
\tbuild:\tsk:3\t
alice: sk-4
sk-5
"""


class Lines(SynchronousTestCase):
    def test_each_form(self) -> None:
        keys = ApiKeys.parse(FILE)
        self.assertEqual(len(keys), 5)
        for key, name in (
            (b"sk-1", "alice"),
            (b"sk-2", "bob"),
            (b"sk:3", "build"),
            (b"sk-4", "alice"),
            (b"sk-5", "line-8"),
            (b"sk-6", ""),
            (b"sk-", ""),
            (b"sk-11", ""),
            (b"SK-1", ""),
            (b"alice", ""),
            (b"", ""),
            (b"\xff", ""),
        ):
            self.assertEqual(keys.name_of(key), name, key)

    def test_line_ends_of_others(self) -> None:
        self.assertEqual(ApiKeys.parse("\r\na: k1\r\nb: k2\r\n").name_of(b"k2"), "b")

    def test_the_same_twice(self) -> None:
        self.assertEqual(len(ApiKeys.parse("a: k1\na: k1\n")), 1)

    def test_no_key_is_kept(self) -> None:
        keys = ApiKeys.parse("alice: sk-verysecret")
        self.assertNotIn("sk-verysecret", repr(vars(keys)))

    def test_what_is_wrong(self) -> None:
        for text, why in (
            ("", "no key"),
            ("# alice: sk-1\n\n", "no key"),
            ("a: k1\nb c k2", "line 2: write a name and a key"),
            ("alice:sk-1", "line 1: put a space"),
            ("alice:", "line 1: put a space"),
            ("alice: schlüssel", "line 1: names and keys"),
            ("jürgen: key", "line 1: names and keys"),
            (": key", "line 1: names and keys"),
            ("n" * 65 + " key", "line 1: names and keys"),
            ("a " + "k" * 1025, "line 1: names and keys"),
            ("a: k1\nb: k1", "line 2: this key has another name"),
            ("\n".join(f"k{n}" for n in range(MAX_KEYS + 1)), "more than 1000"),
        ):
            error = self.assertRaises(KeyFileError, ApiKeys.parse, text)
            self.assertIn(why, str(error))
            self.assertNotIn("k1", str(error))
            self.assertNotIn("\n", str(error))

    @given(st.text(max_size=60))
    def test_anything(self, text: str) -> None:
        try:
            keys = ApiKeys.parse(text)
        except KeyFileError as error:
            self.assertNotIn("\n", str(error))
        else:
            self.assertGreater(len(keys), 0)
            self.assertEqual(keys.name_of(b""), "")


class Files(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def write(self, content: str | bytes, mode: int = 0o600) -> Path:
        self.path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.path.chmod(mode)
        return self.path

    def refusal(self) -> str:
        return str(self.assertRaises(KeyFileError, ApiKeys.read, self.path))

    def test_a_byte_order_mark(self) -> None:
        self.write(b"\xef\xbb\xbfalice: sk-1\n")
        self.assertEqual(ApiKeys.read(self.path).name_of(b"sk-1"), "alice")

    def test_what_cannot_be_read(self) -> None:
        self.assertIn("cannot be read: No such file", self.refusal())
        self.path.mkdir()
        self.assertIn("cannot be read: Is a directory", self.refusal())
        self.path.rmdir()
        self.write(b"\xff\xfe\x00")
        self.assertIn("holds no text", self.refusal())
        self.write("#" * (MAX_FILE + 1))
        self.assertIn("too long", self.refusal())
        self.write("#" * MAX_FILE)
        self.assertIn("no key", self.refusal())
        self.assertIn(str(self.path), self.refusal())

    def test_a_file_that_others_can_read(self) -> None:
        for mode, warnings in ((0o600, 0), (0o640, 0), (0o644, 1), (0o604, 1)):
            self.write("alice: sk-1", mode)
            with capturedLogs() as logs:
                ring = KeyRing(self.path)
                ring.reload()
            warned = [each for each in logs if each["log_level"] is LogLevel.warn]
            self.assertEqual(len(warned), warnings, oct(mode))

    def test_read_again(self) -> None:
        ring = KeyRing(self.write("alice: sk-1"))
        self.write("bob: sk-2")
        self.assertEqual(ring.name_of(b"sk-1"), "alice")
        ring.reload()
        self.assertEqual((ring.name_of(b"sk-1"), ring.name_of(b"sk-2")), ("", "bob"))

    def test_a_file_that_has_become_bad(self) -> None:
        ring = KeyRing(self.write("alice: sk-1"))
        for content in ("", "a b c", "# all gone"):
            self.write(content)
            with capturedLogs() as logs:
                ring.reload()
            (told,) = logs
            self.assertIs(told["log_level"], LogLevel.error)
            self.assertIn(str(self.path), str(told["error"]))
        self.path.unlink()
        ring.reload()
        self.assertEqual(ring.name_of(b"sk-1"), "alice")

    def test_a_pipe_is_not_waited_for(self) -> None:
        ring = KeyRing(self.write("alice: sk-1"))
        self.path.unlink()
        os.mkfifo(self.path)
        with capturedLogs() as logs:
            ring.reload()
        self.assertIn("pipe", str(logs[0]["error"]))
        self.assertEqual(ring.name_of(b"sk-1"), "alice")
