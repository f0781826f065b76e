"""
Feed the parser what libFuzzer makes up, guided by the branches that it reaches.

    python -m tests.fuzz.parser -max_total_time=20 CORPUS

The first bytes choose the settings and where the text is cut, the others are the text. It must come
out the same whole, in pieces and character by character; nothing may raise, no text may vanish
where there is no call, and a whole call holds a JSON object unless it was counted as malformed.

Needs `atheris`; `tests/fuzz/run` installs it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

with atheris.instrument_imports(include=["blockops.toolcalls"]):
    import blockops.toolcalls.parser  # noqa: F401 (the hook has to see it first)

from blockops.toolcalls.options import Rules
from blockops.toolcalls.tools import Offer
from tests.toolcalls.reading import SCHEMAS, Joined, say
from tests.toolcalls.test_corpus import cases

REASONS = ("stop", "length", None, "content_filter")
HOLDS = (15, 60, 200, 262_144)
HEAD = 4


def check(data: bytes) -> None:
    """Check one input."""
    if len(data) < HEAD:
        return
    settings, size, *_ = head = data[:HEAD]
    text = data[HEAD:].decode("utf-8", "replace")
    rules = Rules(
        fenced_calls=bool(settings & 1),
        reasoning="split" if settings & 2 else "keep",
        think_prefilled=bool(settings & 4),
        think_calls=bool(settings & 8),
        max_hold=HOLDS[settings >> 4 & 3],
    )
    offer = Offer(SCHEMAS, parallel=not settings & 64, translate=not settings & 128)
    reason = REASONS[head[2] % len(REASONS)]
    step = size % 13 + 1
    joined, tally = whole = say([text], offer, rules, reason)
    assert whole == say(
        [text[at : at + step] for at in range(0, len(text), step)], offer, rules, reason
    )
    assert whole == say(list(text), offer, rules, reason)
    if not joined.calls and not settings & 6:
        assert joined.content == text
    if not tally["malformed"]:
        check_calls(joined)


def check_calls(joined: Joined) -> None:
    """Check that whole calls hold JSON objects."""
    for call in joined.calls:
        try:
            meant = call.meant
        except ValueError:
            # Digits without end are JSON, but Python does not read them.
            meant = {} if len(call.arguments) > sys.get_int_max_str_digits() else None
        assert isinstance(meant, dict) == call.ended, call


def write_seeds(folder: Path) -> None:
    """Write the texts of the corpus as seeds."""
    for at, case in enumerate(cases()):
        settings = case.rules.fenced_calls | 2 * (case.rules.reasoning == "split") | 48
        seed = bytes([settings, 3, at % 2, 0]) + case.text.encode()
        (folder / f"corpus-{at}").write_bytes(seed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--seeds"]:
        write_seeds(Path(sys.argv[2]))
    else:
        atheris.Setup(sys.argv, check)
        atheris.Fuzz()
