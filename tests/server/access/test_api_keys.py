"""The file with API keys: its lines, errors, and reload."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from blockops.server.access.api_keys import (
    MAX_FILE,
    MAX_KEYS,
    ApiKeyStore,
    KeyFileError,
    parse_keys,
    read_keys,
)

FILE = """\
# owners
alice: sk-1
bob   sk-2

  # spaces and tabs are ignored
\tbuild:\tsk:3\t
alice: sk-4
sk-5
"""


class Lines(SynchronousTestCase):
    def store(self, text: str) -> ApiKeyStore:
        path = Path(self.mktemp())
        path.write_bytes(text.encode())
        return ApiKeyStore(path)

    def test_all_forms(self) -> None:
        self.assertEqual(len(parse_keys(FILE)), 5)
        keys = self.store(FILE)
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
            self.assertEqual(keys.owner_of(key), name, key)

    def test_windows_line_ends(self) -> None:
        self.assertEqual(self.store("\r\na: k1\r\nb: k2\r\n").owner_of(b"k2"), "b")

    def test_a_repeated_key(self) -> None:
        self.assertEqual(len(parse_keys("a: k1\na: k1\n")), 1)

    def test_keys_are_not_stored(self) -> None:
        keys = self.store("alice: sk-verysecret")
        self.assertNotIn("sk-verysecret", repr(vars(keys)))

    def test_invalid_files(self) -> None:
        for text, reason in (
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
            ("a: k1\nb: k1", "line 2: this key already has another name"),
            ("\n".join(f"k{n}" for n in range(MAX_KEYS + 1)), "more than 1000"),
        ):
            error = self.assertRaises(KeyFileError, parse_keys, text)
            self.assertIn(reason, str(error))
            self.assertNotIn("k1", str(error))
            self.assertNotIn("\n", str(error))

    @given(st.text(max_size=60))
    def test_anything(self, text: str) -> None:
        try:
            owners = parse_keys(text)
        except KeyFileError as error:
            self.assertNotIn("\n", str(error))
        else:
            self.assertGreater(len(owners), 0)
            self.assertNotIn(sha256(b"").digest(), owners)


class Files(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def write(self, content: str | bytes, mode: int = 0o600) -> Path:
        self.path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.path.chmod(mode)
        return self.path

    def error_message(self) -> str:
        return str(self.assertRaises(KeyFileError, read_keys, self.path))

    def test_a_byte_order_mark(self) -> None:
        self.write(b"\xef\xbb\xbfalice: sk-1\n")
        self.assertEqual(ApiKeyStore(self.path).owner_of(b"sk-1"), "alice")

    def test_unreadable_files(self) -> None:
        self.assertIn("cannot be read: No such file", self.error_message())
        self.path.mkdir()
        self.assertIn("cannot be read: Is a directory", self.error_message())
        self.path.rmdir()
        self.write(b"\xff\xfe\x00")
        self.assertIn("not a UTF-8 text file", self.error_message())
        self.write("#" * (MAX_FILE + 1))
        self.assertIn("too long", self.error_message())
        self.write("#" * MAX_FILE)
        self.assertIn("no key", self.error_message())
        self.assertIn(str(self.path), self.error_message())

    def test_a_world_readable_file(self) -> None:
        for mode, warnings in ((0o600, 0), (0o640, 0), (0o644, 1), (0o604, 1)):
            self.write("alice: sk-1", mode)
            with capturedLogs() as logs:
                store = ApiKeyStore(self.path)
                store.reload()
            warning_events = [each for each in logs if each["log_level"] is LogLevel.warn]
            self.assertEqual(len(warning_events), warnings, oct(mode))

    def test_reload(self) -> None:
        store = ApiKeyStore(self.write("alice: sk-1"))
        self.write("bob: sk-2")
        self.assertEqual(store.owner_of(b"sk-1"), "alice")
        store.reload()
        self.assertEqual((store.owner_of(b"sk-1"), store.owner_of(b"sk-2")), ("", "bob"))

    def test_reload_of_an_invalid_file(self) -> None:
        store = ApiKeyStore(self.write("alice: sk-1"))
        for content in ("", "a b c", "# all gone"):
            self.write(content)
            with capturedLogs() as logs:
                store.reload()
            (event,) = logs
            self.assertIs(event["log_level"], LogLevel.error)
            self.assertIn(str(self.path), str(event["error"]))
        self.path.unlink()
        store.reload()
        self.assertEqual(store.owner_of(b"sk-1"), "alice")

    def test_reload_of_a_pipe(self) -> None:
        store = ApiKeyStore(self.write("alice: sk-1"))
        self.path.unlink()
        os.mkfifo(self.path)
        with capturedLogs() as logs:
            store.reload()
        self.assertIn("pipe", str(logs[0]["error"]))
        self.assertEqual(store.owner_of(b"sk-1"), "alice")
