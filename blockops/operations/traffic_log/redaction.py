"""
Takes secrets out of what is kept for people to read.

Text is searched as text, not as JSON: bodies are cut off somewhere, come in other formats, and hold
JSON inside of JSON strings, where every quote has backslashes before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

#: What stands in a secret's place.
HIDDEN = "***"

#: Headers of requests that tell something and are never secret; all others are left out.
SHOWN_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "content-encoding",
        "content-length",
        "content-type",
        "transfer-encoding",
        "user-agent",
        "x-request-id",
        "x-session-id",
        "x-session-reset",
    }
)

#: Characters of a secret's beginning that tell nothing of it.
_TOLD = 3

# Fields whose value is a secret, however the words in them are joined. Not among them: "token",
# which in logprobs is a piece of the answer.
_NAMES = "|".join(
    word.replace(" ", "[-_ ]?")
    for word in (
        "(?:proxy )?authorization",
        "(?:x )?(?:[a-z]+ )?api key",
        "(?:access|refresh|id|auth|bearer|session) token",
        "(?:client )?secret(?: (?:access )?key)?",
        "private key",
        "(?:set )?cookie2?",
        "pass(?:word|wd|phrase)",
        "credentials?",
    )
)

# Without one of these in it, a text is not searched any further: most have none.
_TRACES = (
    *("authorization", "secret", "private", "cookie", "passw", "passphrase", "credential"),
    *(f"api{joint}key" for joint in ("", "_", "-", " ")),
    *(
        f"{word}{joint}token"
        for word in ("access", "refresh", "id", "auth", "bearer", "session")
        for joint in ("", "_", "-", " ")
    ),
)
_BEGINNINGS = ("bearer", "basic", "sk-", "hf_", "ghp_", "xox")

# Without one of these, it has none of those.
_HINTS = (
    *("authorization", "secret", "private", "cookie", "pass", "credential", "api", "token"),
    *_BEGINNINGS,
)

# A quote with its backslashes, the name, the same quote, a colon, and the value: a string up to the
# same quote, a list, an object without others inside, or a plain word. What is cut off ends it too.
_FIELD = re.compile(
    rf"""
    (?P<key> (?<!\\) (?P<quote> \\* ["'] ) (?:{_NAMES}) (?P=quote) \s* : \s* )
    (?P<value>
        (?P=quote) .*? (?: (?<!\\) (?P=quote) | \Z )
      | \[ [^\]]* (?: \] | \Z )
      | \{{ [^}}]* (?: \}} | \Z )
      | (?! null | true | false ) [^\s,"'\]}}\\]+
    )
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)

# Secrets that are known by their looks, wherever they stand.
_LOOKS = re.compile(
    r"\b(?P<kind>Bearer\s+|Basic\s+|sk-|hf_|ghp_|xox[a-z]-)(?:[A-Za-z0-9._~+/=-]{8,}|[A-Za-z0-9._~+/=-]+\Z)",
    re.IGNORECASE,
)


def may_hold_secrets(text: str) -> bool:
    """Say whether `without_secrets` could find any in a part of `text` that it is not told."""
    small = text.lower()
    return any(map(small.__contains__, _HINTS)) and any(
        map(small.__contains__, (*_TRACES, *_BEGINNINGS))
    )


def without_secrets(text: str, known: Iterable[str] = ()) -> str:
    """
    Return `text` with `***` for the values of secret fields and for what looks like a key.

    :param known: secrets that are hidden wherever they stand
    """
    for secret in known:
        text = _without_beginning(text.replace(secret, HIDDEN), secret)
    small = text.lower()
    if any(trace in small for trace in _TRACES):
        text = _FIELD.sub(_hide, text)
    if any(beginning in small for beginning in _BEGINNINGS):
        text = _LOOKS.sub(rf"\g<kind>{HIDDEN}", text)
    return text


def _without_beginning(text: str, secret: str) -> str:
    """Return `text` without what it ends with of a `secret` that was cut off."""
    for size in range(len(secret) - 1, _TOLD, -1):
        if text.endswith(secret[:size]):
            return text[:-size] + HIDDEN
    return text


def _hide(found: re.Match[str]) -> str:
    quote = found["quote"]
    return f"{found['key']}{quote}{HIDDEN}{quote}"


def shown_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return those of `headers` that may be kept, by names in small letters."""
    lowered = {name.lower(): value for name, value in headers.items()}
    return {name: value for name, value in lowered.items() if name in SHOWN_HEADERS}
