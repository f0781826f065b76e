"""
What the value of a setting may look like, and how it is read.

A kind reads text (from the command line and the environment) as well as the values of a TOML
file, so that `10`, `"10"` and `"10s"` mean the same wherever they stand.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

#: What a shell may offer behind the option's name.
Completion = Literal["nothing", "words", "files"]

_WHOLE = re.compile(r"[0-9]{1,18}", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,18})(?:([kmg])(?:ib)?)?", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18}) ?(ms|s|m|h|d)?", re.ASCII)
_CALL = re.compile(r"[A-Z]{3,10} /[!-~]*", re.ASCII)
_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?", re.ASCII
)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}", re.ASCII)
_VISIBLE = re.compile(r"[!-~]+", re.ASCII)

_BYTES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_USUAL_PORTS = {"http": 80, "https": 443}
_SWITCHES = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}

#: Timers further away than this mean a slip of the finger, and some reactors refuse them.
LONGEST = 30 * 86400.0


class Refused(ValueError):
    """
    A value is not of its kind.

    What is accepted is said by the kind, unless this says it better.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """
    One kind of value.

    :param read: value as given -> value as used; raises `Refused`
    :param accepts: what is accepted, to be read behind "give"
    :param metavar: what stands for the value in the help
    :param show: value as used -> how the help writes it
    :param words: all values there are, if they can be counted
    :param completion: what a shell may offer
    :param many: whether it is several values, each given by an option of its own
    :param blank: whether empty text is a value of its own (else it means: not set)
    """

    read: Callable[[object], Any]
    accepts: str
    metavar: str
    show: Callable[[Any], str] = str
    words: tuple[str, ...] = ()
    completion: Completion = "nothing"
    many: bool = False
    blank: bool = False


def _text(given: object) -> str:
    if not isinstance(given, str):
        raise Refused
    return given


def _integer(given: object) -> int:
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if not _WHOLE.fullmatch(text := _text(given)):
        raise Refused
    return int(text)


def whole(low: int, high: int) -> Kind:
    """Return the kind of whole numbers from `low` to `high`."""

    def read(given: object) -> int:
        if not low <= (number := _integer(given)) <= high:
            raise Refused
        return number

    return Kind(read=read, accepts=f"a whole number from {low} to {high}", metavar="NUMBER")


def _bytes(given: object) -> int:
    if not isinstance(given, str):
        return _integer(given)
    if not (found := _SIZE.fullmatch(given)):
        raise Refused
    return int(found[1]) * _BYTES[(found[2] or "").lower()]


def show_size(number: int) -> str:
    """Return a number of bytes as a person would write it: `10M`, `65536`."""
    for unit in ("g", "m"):
        if number and number % _BYTES[unit] == 0:
            return f"{number // _BYTES[unit]}{unit.upper()}"
    return str(number)


def size(low: int, high: int = 1 << 40) -> Kind:
    """Return the kind of sizes in bytes, from `low` to `high`."""

    def read(given: object) -> int:
        if not low <= (number := _bytes(given)) <= high:
            raise Refused
        return number

    accepts = f"{low} or more bytes, as a whole number or with k, M or G (64k, 10M)"
    return Kind(read=read, accepts=accepts, metavar="BYTES", show=show_size)


def _seconds(given: object) -> float:
    if isinstance(given, int | float) and not isinstance(given, bool):
        return float(given)
    if not (found := _DURATION.fullmatch(_text(given))):
        raise Refused
    return float(found[1]) * _SECONDS[found[2] or ""]


def duration(low: float = 0.001) -> Kind:
    """Return the kind of spans of time in seconds, from `low` to 30 days."""

    def read(given: object) -> float:
        # Not a number fails both comparisons.
        if not low <= (seconds := _seconds(given)) <= LONGEST:
            raise Refused
        return seconds

    accepts = f"{low:g} or more seconds, as a number or with ms, s, m, h or d, up to 30d"
    return Kind(read=read, accepts=accepts, metavar="SECONDS", show=lambda value: f"{value:g}")


def choice(*words: str) -> Kind:
    """Return the kind that is one of `words`."""

    def read(given: object) -> str:
        if given not in words:
            raise Refused
        return _text(given)

    return Kind(
        read=read,
        accepts=f"{', '.join(words[:-1])} or {words[-1]}",
        metavar="|".join(words),
        words=words,
        completion="words",
    )


def _switch(given: object) -> bool:
    if isinstance(given, bool):
        return given
    if isinstance(given, int):
        given = str(given)
    try:
        return _SWITCHES[_text(given).lower()]
    except KeyError:
        raise Refused from None


def _line(given: object) -> str:
    text = _text(given)
    if not text.isprintable():
        raise Refused
    return text


def _path(given: object) -> Path:
    text = _text(given)
    if not text or "\0" in text:
        raise Refused
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path's own raises without a home


def _path_or_off(given: object) -> Path | None:
    if given is False or given in ("", "off"):
        return None
    return _path(given)


def _key(given: object) -> str:
    # A key travels in a header; files and shells leave a newline behind it.
    key = _text(given).strip()
    if not _VISIBLE.fullmatch(key):
        raise Refused
    return key


def _address(given: object) -> str:
    text = _text(given)
    if text == "localhost":
        return "127.0.0.1"
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise Refused from None
    return text


def _backend(given: object) -> str:
    text = _text(given)
    if text == "demo":
        return text
    try:
        url = urlsplit(text)
        whole_url = bool(url.hostname) and url.port != 0
    except ValueError:
        raise Refused from None
    if not whole_url or not _VISIBLE.fullmatch(text) or url.scheme not in ("http", "https"):
        raise Refused
    if "@" in url.netloc or set("?#") & set(text):
        raise Refused("an address without a user, a query and a fragment")
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/').removesuffix('/v1').rstrip('/')}"


def _pattern(given: object) -> re.Pattern[str]:
    text = given.pattern if isinstance(given, re.Pattern) else given
    try:
        pattern = re.compile(_text(text))
    except (re.error, RecursionError) as error:
        raise Refused(f"a regular expression ({error})") from None
    if pattern.match(""):
        raise Refused("a regular expression that does not match every message")
    return pattern


def _call(given: object) -> str:
    if given is False:
        return "off"
    text = _text(given)
    if text not in ("auto", "off") and not _CALL.fullmatch(text):
        raise Refused
    return text


def _several(given: object) -> tuple[str, ...]:
    if isinstance(given, str):
        given = given.split() or [""]
    if not isinstance(given, list | tuple):
        raise Refused
    texts = tuple(_text(each).strip() for each in given)
    if not all(texts):
        raise Refused
    return texts


def _origin(text: str) -> str:
    """Return an origin as browsers write it: https://html.spec.whatwg.org, "origin"."""
    if text == "*":
        return text
    found = _ORIGIN.fullmatch(text.lower())
    if not found:
        raise Refused
    scheme, host, port = found.groups()
    usual = port is None or int(port) == _USUAL_PORTS.get(scheme)
    return f"{scheme}://{host}" if usual else f"{scheme}://{host}:{int(port)}"


def _host(text: str) -> str:
    if text != "*" and not _HOST.fullmatch(text):
        raise Refused
    return text.lower().rstrip(".")


def _names(given: object) -> dict[str, str]:
    if isinstance(given, dict):
        pairs = list(given.items())
    else:
        pairs = [_text(each).partition("=")[::2] for each in _several(given)]
    names = {_line(short).strip(): _line(real).strip() for short, real in pairs}
    if not all(names) or not all(names.values()) or len(names) < len(pairs):
        raise Refused
    if names.keys() & set(names.values()):
        raise Refused("short names that are no real names")
    return names


def _show_names(names: dict[str, str]) -> str:
    return " ".join(f"{short}={real}" for short, real in names.items())


SWITCH = Kind(
    read=_switch,
    accepts="1, true, yes, on, 0, false, no or off",
    metavar="",
    show=lambda value: "on" if value else "off",
    words=("on", "off"),
    completion="words",
)

TEXT = Kind(read=_line, accepts="text on one line", metavar="TEXT", blank=True)

WORD = Kind(read=_key, accepts="one word", metavar="NAME")

FILE = Kind(read=_path, accepts="the path of a file", metavar="FILE", completion="files")

FILE_OR_OFF = Kind(
    read=_path_or_off,
    accepts="the path of a file, or off",
    metavar="FILE|off",
    completion="files",
    blank=True,
)

KEY = Kind(read=_key, accepts="visible ASCII characters without spaces", metavar="")

ADDRESS = Kind(
    read=_address,
    accepts="an IP address of this machine (0.0.0.0 or :: for all)",
    metavar="ADDRESS",
)

BACKEND = Kind(
    read=_backend, accepts="http://HOST:PORT, https://HOST:PORT or demo", metavar="URL|demo"
)

PATTERN = Kind(
    read=_pattern,
    accepts="a regular expression",
    metavar="REGEX",
    show=lambda value: str(value.pattern),
)

CALL = Kind(
    read=_call,
    accepts="auto, off, or a method and a path such as POST /flush_cache",
    metavar="auto|off|CALL",
)

ENDPOINTS = Kind(
    read=_several,
    accepts="Twisted endpoint strings such as tcp:8080 or unix:/run/blockops.sock",
    metavar="ENDPOINT",
    show=" ".join,
    many=True,
)

ORIGINS = Kind(
    read=lambda given: tuple(map(_origin, _several(given))),
    accepts="origins as browsers send them, https://HOST or http://HOST:PORT, or *",
    metavar="ORIGIN|*",
    show=" ".join,
    many=True,
)

HOSTS = Kind(
    read=lambda given: tuple(map(_host, _several(given))),
    accepts="names of hosts without a port, or *",
    metavar="NAME|*",
    show=" ".join,
    many=True,
)

NAMES = Kind(
    read=_names,
    accepts="a short name, = and the name of a model, such as qwen=Qwen/Qwen3-8B, each name once",
    metavar="SHORT=NAME",
    show=_show_names,
    many=True,
)
