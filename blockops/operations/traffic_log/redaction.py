"""
Masks secrets in the texts of the traffic log.

Bodies are searched as text, not as JSON: they may be truncated or in other formats, and may contain
JSON inside JSON strings, where each quote is preceded by backslashes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

#: Replaces a secret.
MASK = "***"

#: Request headers that are useful and never contain credentials. Others are not logged.
LOGGABLE_HEADERS = frozenset(
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

#: Characters of a truncated secret that are not masked, since so few reveal nothing.
MAX_VISIBLE_PREFIX = 3

_TOKEN_KINDS = ("access", "refresh", "id", "auth", "bearer", "session")

# Names of fields with a secret value, for any way of joining the words. "token" is not among them:
# in logprobs it is a part of the answer.
_SECRET_FIELDS = "|".join(
    word.replace(" ", "[-_ ]?")
    for word in (
        "(?:proxy )?authorization",
        "(?:x )?(?:[a-z]+ )?api key",
        f"(?:{'|'.join(_TOKEN_KINDS)}) token",
        "(?:client )?secret(?: (?:access )?key)?",
        "private key",
        "(?:set )?cookie2?",
        "pass(?:word|wd|phrase)",
        "credentials?",
    )
)

# A lowercase text without these has no secret field or, respectively, no credential. Each begins
# with a literal, for which `re` searches fast: all of them take a tenth of the time of `_FIELD`.
_FIELD_TRACES = [
    re.compile(trace)
    for trace in (
        *("authorization", "secret", "private", "cookie", "pass(?:w|phrase)", "credential"),
        "api[-_ ]?key",
        # Most bodies have fields such as "max_tokens".
        f"token(?:{'|'.join(f'(?<={kind}token)|(?<={kind}[-_ ]token)' for kind in _TOKEN_KINDS)})",
    )
]
_CREDENTIAL_TRACES = [
    re.compile(trace) for trace in ("bearer", "basic", "sk-", "hf_", "ghp_", "xox")
]

# A quote with its backslashes, the name, the same quote, a colon, and the value: a string up to the
# same quote, a list, an object without nested objects, or a plain word. The end of a truncated text
# ends the value too.
_FIELD = re.compile(
    rf"""
    (?P<key> (?<!\\) (?P<quote> \\* ["'] ) (?:{_SECRET_FIELDS}) (?P=quote) \s* : \s* )
    (?P<value>
        (?P=quote) .*? (?: (?<!\\) (?P=quote) | \Z )
      | \[ [^\]]* (?: \] | \Z )
      | \{{ [^}}]* (?: \}} | \Z )
      | (?! null | true | false ) [^\s,"'\]}}\\]+
    )
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)

# Credentials with a recognisable form, anywhere in a text.
_CREDENTIAL = re.compile(
    r"\b(?P<kind>Bearer\s+|Basic\s+|sk-|hf_|ghp_|xox[a-z]-)(?:[A-Za-z0-9._~+/=-]{8,}|[A-Za-z0-9._~+/=-]+\Z)",
    re.IGNORECASE,
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` with masks for `secrets`, the values of secret fields, and texts like a key."""
    for secret in secrets:
        text = _redact_truncated_end(text.replace(secret, MASK), secret)
    lowered = text.lower()
    if any(trace.search(lowered) for trace in _FIELD_TRACES):
        text = _FIELD.sub(rf"\g<key>\g<quote>{MASK}\g<quote>", text)
    if any(trace.search(lowered) for trace in _CREDENTIAL_TRACES):
        text = _CREDENTIAL.sub(rf"\g<kind>{MASK}", text)
    return text


def _redact_truncated_end(text: str, secret: str) -> str:
    """Mask the beginning of `secret` at the end of a truncated text."""
    for size in range(len(secret) - 1, MAX_VISIBLE_PREFIX, -1):
        if text.endswith(secret[:size]):
            return text[:-size] + MASK
    return text


def loggable_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of `LOGGABLE_HEADERS`, with lowercase names."""
    lowered = {name.lower(): value for name, value in headers.items()}
    return {name: value for name, value in lowered.items() if name in LOGGABLE_HEADERS}
