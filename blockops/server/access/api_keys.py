"""
The API keys that clients have to bring, read from a file.

    # One key a line, behind the name of whoever has it.
    alice: sk-3fK0...
    build-server sk-9aWq...
    sk-Zt21...

Empty lines and lines that begin with `#` say nothing; a colon behind the name is welcome. A key
alone is called after its line (`line-4`). One name may have several keys, such as the old one and
the new one while they are exchanged. `openssl rand -hex 24` makes good ones.

Only digests are kept (SHA-256): keys are long and random, so nobody guesses them from these.
"""

from __future__ import annotations

import hmac
import re
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from twisted.logger import Logger

#: Bytes of a file that may be one with keys; each request is compared with all of them.
MAX_FILE = 256 * 1024
MAX_KEYS = 1000

_NAME = re.compile(r"[!-~]{1,64}", re.ASCII)
_KEY = re.compile(r"[!-~]{1,1024}", re.ASCII)


class KeyFileError(ValueError):
    """A file holds no usable keys; the message is one line, without what stands in the file."""


class ApiKeys:
    """
    Named keys.

    :param known: the name of each and its SHA-256 digest
    """

    def __init__(self, known: tuple[tuple[str, bytes], ...]) -> None:
        self._known = known

    def __len__(self) -> int:
        return len(self._known)

    def name_of(self, key: bytes) -> str:
        """
        Return the name of `key`; empty if there is no such key.

        How long that takes tells neither which one it is nor how much of one it has.
        """
        digest = sha256(key).digest()
        found = ""
        for name, known in self._known:
            if hmac.compare_digest(digest, known):
                found = name
        return found

    @classmethod
    def parse(cls, text: str) -> ApiKeys:
        """
        Return the keys in `text`.

        :raises KeyFileError: there is none, or a line is none
        """
        names: dict[bytes, str] = {}
        for number, (name, key) in _lines(text):
            digest = sha256(key.encode()).digest()
            if names.setdefault(digest, name) != name:
                raise KeyFileError(f"line {number}: this key has another name in a line before")
        if not names:
            raise KeyFileError("there is no key in it: write one, or leave the setting away")
        if len(names) > MAX_KEYS:
            raise KeyFileError(f"more than {MAX_KEYS} keys")
        return cls(tuple((name, digest) for digest, name in names.items()))

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """
        Return the keys in the file at `path`.

        :raises KeyFileError: it cannot be read, or `parse` does not accept it
        """
        try:
            with path.open(encoding="utf-8-sig") as stream:
                text = stream.read(MAX_FILE + 1)
        except OSError as error:
            raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError:
            raise KeyFileError(f"{path} holds no text") from None
        if len(text) > MAX_FILE:
            raise KeyFileError(f"{path} is too long for a file with keys")
        try:
            return cls.parse(text)
        except KeyFileError as error:
            raise KeyFileError(f"{path}, {error}") from None


def _lines(text: str) -> Iterator[tuple[int, tuple[str, str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, _line(number, line.split())


def _line(number: int, words: list[str]) -> tuple[str, str]:
    """
    Return the name and the key in a line.

    :raises KeyFileError: there are not both, or one of them cannot be
    """
    name, key = (f"line-{number}", words[0]) if len(words) == 1 else (words[0], words[-1])
    name = name.removesuffix(":")
    if len(words) > 2:  # noqa: PLR2004 - a name and a key
        raise KeyFileError(f"line {number}: write a name and a key, or a key alone")
    if len(words) == 1 and ":" in key:
        raise KeyFileError(f"line {number}: put a space behind the name, or a name before the key")
    if not _NAME.fullmatch(name) or not _KEY.fullmatch(key):
        raise KeyFileError(f"line {number}: names and keys are of visible ASCII characters")
    return name, key


class KeyRing:
    """
    The API keys that count at present.

    :param path: the file that holds them
    :raises KeyFileError: it does not
    """

    _log = Logger()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys = ApiKeys.read(path)
        if path.stat().st_mode & stat.S_IROTH:
            self._log.warn(
                "Everybody on this machine can read the API keys in {path}: chmod 600 mends that",
                path=path,
            )

    def name_of(self, key: bytes) -> str:
        """Return the name of `key`; empty if there is no such key."""
        return self._keys.name_of(key)

    def reload(self) -> None:
        """Read the file again; where it has become a bad one, the keys stay as they are."""
        try:
            self._keys = _read_again(self._path)
        except KeyFileError as error:
            self._log.error("The API keys stay as they were: {error}", error=error)
        else:
            self._log.info(
                "Read {count} API keys from {path}", count=len(self._keys), path=self._path
            )


def _read_again(path: Path) -> ApiKeys:
    """
    Return the keys that are now in the file at `path`.

    :raises KeyFileError: there are none, or it has become a pipe: nothing would be served until
        somebody writes into it
    """
    if path.is_fifo():
        raise KeyFileError(f"{path} is a pipe, which can be read once")
    return ApiKeys.read(path)
