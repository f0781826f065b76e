"""
The types of settings: how a value is written, parsed and shown.

A type parses text (from the command line and the environment) as well as the values of a TOML file,
so that `10`, `"10"` and `"10s"` have the same meaning in every source. `value_type` derives it from
a setting's annotation.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

#: The kind of values that a shell completes after the option's name.
Completion = Literal["nothing", "choices", "files"]

_HTTP_CALL = re.compile(r"[A-Z]{3,10} /[!-~]*", re.ASCII)
_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?", re.ASCII
)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}", re.ASCII)
_VISIBLE = re.compile(r"[!-~]+", re.ASCII)

_SWITCHES = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}

#: Seconds. A longer time is a typing error, and some reactors reject such timers.
MAX_DURATION = 30 * 86400.0

#: Bytes. A larger size is a typing error.
MAX_SIZE = 1 << 40


class InvalidValue(ValueError):
    """A value is not of its type; the message, unless empty, replaces `ValueType.accepts`."""


@dataclass(frozen=True, kw_only=True)
class ValueType:
    """
    One type of setting.

    :param parse: maps a value from a source to the value in `Settings`; raises `InvalidValue`
    :param accepts: describes the accepted values, for messages that end with "give ..."
    :param to_text: maps the value in `Settings` to its form in the help
    :param is_repeatable: each occurrence on the command line adds a value
    :param may_be_empty: an empty environment variable is a value; otherwise it counts as unset
    """

    parse: Callable[[object], Any]
    accepts: str
    metavar: str
    to_text: Callable[[Any], str] = str
    choices: tuple[str, ...] = ()
    completion: Completion = "nothing"
    is_repeatable: bool = False
    may_be_empty: bool = False


@dataclass(frozen=True, kw_only=True)
class Notation:
    """
    How numbers with a unit are written.

    :param pattern: matches a number (first group) and its unit (second group, or None)
    :param units: unit in lower case -> factor
    :param accepts: `ValueType.accepts`, with `{low}` and `{high}` for the bounds
    """

    pattern: re.Pattern[str]
    units: Mapping[str, float]
    accepts: str
    metavar: str
    to_text: Callable[[Any], str] = str


def format_size(number: int) -> str:
    """Return a number of bytes with the largest unit that divides it: `10M`, `65536`."""
    for unit in ("g", "m"):
        if number and number % BYTES.units[unit] == 0:
            return f"{number // BYTES.units[unit]}{unit.upper()}"
    return str(number)


WHOLE_NUMBER = Notation(
    pattern=re.compile(r"([0-9]{1,18})()", re.ASCII),
    units={"": 1},
    accepts="a whole number from {low} to {high}",
    metavar="NUMBER",
)

BYTES = Notation(
    pattern=re.compile(r"([0-9]{1,18})(?:([kmg])(?:ib)?)?", re.ASCII | re.IGNORECASE),
    units={"": 1, "k": 1024, "m": 1024**2, "g": 1024**3},
    accepts="{low} or more bytes, as a whole number or with k, M or G (64k, 10M)",
    metavar="BYTES",
    to_text=format_size,
)

SECONDS = Notation(
    pattern=re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18}) ?(ms|s|m|h|d)?", re.ASCII),
    units={"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0},
    accepts="{low:g} or more seconds, as a number or with ms, s, m, h or d, up to 30d",
    metavar="SECONDS",
    to_text="{:g}".format,
)

Size = Annotated[int, Meta(ge=1024, le=MAX_SIZE), BYTES]
Seconds = Annotated[float, Meta(ge=0.001, le=MAX_DURATION), SECONDS]
SecondsOrZero = Annotated[float, Meta(ge=0, le=MAX_DURATION), SECONDS]


def value_type(annotation: Any) -> ValueType:
    """
    Return the type that `annotation` declares.

    It is `bool`, a `Literal` of texts, `Annotated[..., ValueType]`, or a number with its range:
    `Annotated[int or float, Meta(ge=..., le=...), Notation]`, without a notation for whole numbers;
    also such a number `| None`.
    """
    if annotation is bool:
        return SWITCH
    if get_origin(annotation) is Literal:
        return _choice(get_args(annotation))
    if type(None) in get_args(annotation):
        annotation = get_args(annotation)[0]
    _, declared, *notation = get_args(annotation)
    if isinstance(declared, ValueType):
        return declared
    return _number(annotation, declared, *notation)


def _number(annotation: Any, bounds: Meta, notation: Notation = WHOLE_NUMBER) -> ValueType:
    number_type = get_args(annotation)[0]

    def parse(value: object) -> Any:
        if isinstance(value, str):
            if not (found := notation.pattern.fullmatch(value)):
                raise InvalidValue
            value = number_type(found[1]) * notation.units[(found[2] or "").lower()]
        try:
            return msgspec.convert(value, annotation)
        except msgspec.ValidationError:
            raise InvalidValue from None

    return ValueType(
        parse=parse,
        accepts=notation.accepts.format(low=bounds.ge, high=bounds.le),
        metavar=notation.metavar,
        to_text=notation.to_text,
    )


def _choice(choices: tuple[str, ...]) -> ValueType:
    def parse(value: object) -> str:
        if value not in choices:
            raise InvalidValue
        return _as_text(value)

    return ValueType(
        parse=parse,
        accepts=f"{', '.join(choices[:-1])} or {choices[-1]}",
        metavar="|".join(choices),
        choices=choices,
        completion="choices",
    )


def _as_text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidValue
    return value


def _parse_switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value) if isinstance(value, int) else _as_text(value)
    switch = _SWITCHES.get(text.lower())
    if switch is None:
        raise InvalidValue
    return switch


def _parse_line(value: object) -> str:
    text = _as_text(value)
    if not text.isprintable():
        raise InvalidValue
    return text


def _parse_path(value: object) -> Path:
    text = _as_text(value)
    if not text or "\0" in text:
        raise InvalidValue
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path's own raises without a home


def _parse_path_or_off(value: object) -> Path | None:
    if value is False or value in ("", "off"):
        return None
    return _parse_path(value)


def _parse_key(value: object) -> str:
    # A key is sent in a header; files and shells append a newline.
    key = _as_text(value).strip()
    if not _VISIBLE.fullmatch(key):
        raise InvalidValue
    return key


def _parse_address(value: object) -> str:
    text = _as_text(value)
    if text == "localhost":
        return "127.0.0.1"
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise InvalidValue from None
    return text


def _parse_backend(value: object) -> str:
    """Return a base URL without a slash or `/v1` at its end, or `demo`."""
    text = _as_text(value)
    if text == "demo":
        return text
    try:
        url = urlsplit(text)
        has_host = bool(url.hostname) and url.port != 0
    except ValueError:
        raise InvalidValue from None
    if not has_host or not _VISIBLE.fullmatch(text) or url.scheme not in ("http", "https"):
        raise InvalidValue
    if "@" in url.netloc or set("?#") & set(text):
        raise InvalidValue("a URL without a user, a query or a fragment")
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/').removesuffix('/v1').rstrip('/')}"


def _parse_pattern(value: object) -> re.Pattern[str]:
    text = value.pattern if isinstance(value, re.Pattern) else value
    try:
        pattern = re.compile(_as_text(text))
    except (re.error, RecursionError) as error:
        raise InvalidValue(f"a regular expression ({error})") from None
    if pattern.match(""):  # then every message would reset its session
        raise InvalidValue("a regular expression that does not match every message")
    return pattern


def _parse_http_call(value: object) -> str:
    if value is False:
        return "off"
    text = _as_text(value)
    if text not in ("auto", "off") and not _HTTP_CALL.fullmatch(text):
        raise InvalidValue
    return text


def _parse_list(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split() or [""]
    if not isinstance(value, list | tuple):
        raise InvalidValue
    texts = tuple(_as_text(each).strip() for each in value)
    if not all(texts):
        raise InvalidValue
    return texts


def _parse_origin(text: str) -> str:
    """Return an origin as browsers serialize it (https://html.spec.whatwg.org, "origin")."""
    if text == "*":
        return text
    found = _ORIGIN.fullmatch(text.lower())
    if not found:
        raise InvalidValue
    scheme, host, port = found.groups()
    is_default = port is None or int(port) == {"http": 80, "https": 443}.get(scheme)
    return f"{scheme}://{host}" if is_default else f"{scheme}://{host}:{int(port)}"


def _parse_host(text: str) -> str:
    if text != "*" and not _HOST.fullmatch(text):
        raise InvalidValue
    return text.lower().rstrip(".")


def _parse_aliases(value: object) -> dict[str, str]:
    """Return each short name -> its model, from a TOML table or from `SHORT=NAME` texts."""
    if isinstance(value, dict):
        pairs = list(value.items())
    else:
        pairs = [_as_text(each).partition("=")[::2] for each in _parse_list(value)]
    aliases = {_parse_line(short).strip(): _parse_line(name).strip() for short, name in pairs}
    if not all(aliases) or not all(aliases.values()) or len(aliases) < len(pairs):
        raise InvalidValue
    if aliases.keys() & set(aliases.values()):
        raise InvalidValue("short names that are not also the name of a model")
    return aliases


SWITCH = ValueType(
    parse=_parse_switch,
    accepts="1, true, yes, on, 0, false, no or off",
    metavar="",
    to_text=lambda value: "on" if value else "off",
    choices=("on", "off"),
    completion="choices",
)

TEXT = ValueType(parse=_parse_line, accepts="text on one line", metavar="TEXT", may_be_empty=True)
WORD = ValueType(parse=_parse_key, accepts="one word", metavar="NAME")
KEY = ValueType(parse=_parse_key, accepts="visible ASCII characters without spaces", metavar="")

FILE = ValueType(
    parse=_parse_path, accepts="the path of a file", metavar="FILE", completion="files"
)

FILE_OR_OFF = ValueType(
    parse=_parse_path_or_off,
    accepts="the path of a file, or off",
    metavar="FILE|off",
    completion="files",
    may_be_empty=True,
)

ADDRESS = ValueType(
    parse=_parse_address,
    accepts="an IP address of this machine (0.0.0.0 or :: for all)",
    metavar="ADDRESS",
)

BACKEND = ValueType(
    parse=_parse_backend, accepts="http://HOST:PORT, https://HOST:PORT or demo", metavar="URL|demo"
)

PATTERN = ValueType(
    parse=_parse_pattern,
    accepts="a regular expression",
    metavar="REGEX",
    to_text=lambda value: str(value.pattern),
)

HTTP_CALL = ValueType(
    parse=_parse_http_call,
    accepts="auto, off, or a method and a path such as POST /flush_cache",
    metavar="auto|off|CALL",
)

ENDPOINTS = ValueType(
    parse=_parse_list,
    accepts="Twisted endpoint strings such as tcp:8080 or unix:/run/blockops.sock",
    metavar="ENDPOINT",
    to_text=" ".join,
    is_repeatable=True,
)

ORIGINS = ValueType(
    parse=lambda value: tuple(map(_parse_origin, _parse_list(value))),
    accepts="origins as browsers send them, https://HOST or http://HOST:PORT, or *",
    metavar="ORIGIN|*",
    to_text=" ".join,
    is_repeatable=True,
)

HOSTS = ValueType(
    parse=lambda value: tuple(map(_parse_host, _parse_list(value))),
    accepts="host names without a port, or *",
    metavar="NAME|*",
    to_text=" ".join,
    is_repeatable=True,
)

ALIASES = ValueType(
    parse=_parse_aliases,
    accepts="a short name, = and the name of a model, such as qwen=Qwen/Qwen3-8B, each name once",
    metavar="SHORT=NAME",
    to_text=lambda aliases: " ".join(f"{short}={name}" for short, name in aliases.items()),
    is_repeatable=True,
)
