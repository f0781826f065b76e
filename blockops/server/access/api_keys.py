"""
The API keys that clients need, read from a file.

    # One key a line, after the name of its owner.
    alice: sk-3fK0...
    build-server sk-9aWq...
    sk-Zt21...

Empty lines and lines that begin with `#` are ignored; a colon after the name is optional. A key
without a name is named after its line (`line-4`). One name may have several keys, such as the old
and the new one during a rotation. `openssl rand -hex 24` makes a good key.

Only SHA-256 digests are kept. The keys are long and random, so they cannot be guessed from these.
"""

from __future__ import annotations

import hmac
import re
import stat
from hashlib import sha256
from pathlib import Path

from twisted.logger import Logger

#: Upper bounds for the characters of the file, and for its keys: each request is compared with all.
MAX_FILE = 256 * 1024
MAX_KEYS = 1000

_NAME = re.compile(r"[!-~]{1,64}", re.ASCII)
_KEY = re.compile(r"[!-~]{1,1024}", re.ASCII)


class KeyFileError(ValueError):
    """The file has no usable keys. The message is one line, and quotes nothing from the file."""


def parse_keys(text: str) -> dict[bytes, str]:
    """
    Return the owner of each key in `text`, the content of a file, by the key's SHA-256 digest.

    :raises KeyFileError: there are no keys, too many, or an invalid line
    """
    owners: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, key = _parse_line(number, line.split())
        if owners.setdefault(sha256(key.encode()).digest(), name) != name:
            raise KeyFileError(
                f"line {number}: this key already has another name; remove one of the two lines"
            )
    if not owners:
        raise KeyFileError("there is no key in it: add one, or remove --api-keys-file")
    if len(owners) > MAX_KEYS:
        raise KeyFileError(f"there are more than {MAX_KEYS} keys in it")
    return owners


def read_keys(path: Path) -> dict[bytes, str]:
    """Do the same as `parse_keys` for a file; `KeyFileError` also if it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            text = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise KeyFileError(f"{path} is not a UTF-8 text file") from None
    if len(text) > MAX_FILE:
        raise KeyFileError(
            f"{path} is too long for a file with keys: it has more than {MAX_FILE} characters"
        )
    try:
        return parse_keys(text)
    except KeyFileError as error:
        raise KeyFileError(f"{path}, {error}") from None


def _parse_line(number: int, words: list[str]) -> tuple[str, str]:
    """Return the name and the key in a line; `KeyFileError` if it has another form."""
    name, key = (f"line-{number}", words[0]) if len(words) == 1 else (words[0], words[-1])
    name = name.removesuffix(":")
    if len(words) > 2:  # noqa: PLR2004 - a name and a key
        raise KeyFileError(f"line {number}: write a name and a key, or a key alone")
    if len(words) == 1 and ":" in key:
        raise KeyFileError(f"line {number}: put a space after the colon, or a name before the key")
    if not _NAME.fullmatch(name) or not _KEY.fullmatch(key):
        raise KeyFileError(
            f"line {number}: names and keys are visible ASCII characters, at most 64 in a name and"
            " 1024 in a key"
        )
    return name, key


class ApiKeyStore:
    """The API keys that are valid at present; `KeyFileError` if the file has no usable ones."""

    _log = Logger()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._owners = read_keys(path)
        if path.stat().st_mode & stat.S_IROTH:
            self._log.warn(
                "All users of this machine can read the API keys in {path}: run chmod 600 on it",
                path=path,
            )

    def owner_of(self, key: bytes) -> str:
        """
        Return the name of the owner of `key`, or "" if the key is unknown.

        The time does not depend on which key it is, or on how much of a key is right.
        """
        digest = sha256(key).digest()
        owner = ""
        for known, name in self._owners.items():
            if hmac.compare_digest(digest, known):
                owner = name
        return owner

    def reload(self) -> None:
        """Read the file again. If it has no usable keys, log that and keep the present keys."""
        try:
            if self._path.is_fifo():
                # Reading would block the reactor until another process writes into the pipe.
                raise KeyFileError(  # noqa: TRY301 - logged below, like any failure
                    f"{self._path} is a pipe, which can be read only once: restart blockops"
                )
            self._owners = read_keys(self._path)
        except KeyFileError as error:
            self._log.error("The API keys are unchanged: {error}", error=error)
        else:
            self._log.info(
                "Read {count} API keys from {path}", count=len(self._owners), path=self._path
            )
