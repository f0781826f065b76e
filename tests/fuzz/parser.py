"""
Feed the parser the input of libFuzzer, which is guided by the branches that it reaches.

    python -m tests.fuzz.parser -max_total_time=20 CORPUS

The first bytes select the settings and the length of the pieces; the others are the text. The
output must be the same whole, in pieces and character by character. Nothing may raise, no text may
be lost if there is no call, and a finished call contains a JSON object unless it was counted as
malformed.

Needs `atheris`; `tests/fuzz/run` installs it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

with atheris.instrument_imports(include=["blockops.toolcalls"]):
    import blockops.toolcalls.parser  # noqa: F401 (the hook must instrument it before any other import)

from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.tools import OfferedTools
from tests.toolcalls.reading import SCHEMAS, ParserOutput, parse_pieces
from tests.toolcalls.test_corpus import cases

REASONS = ("stop", "length", None, "content_filter")
MAX_HOLDS = (15, 60, 200, 262_144)
SETTINGS_LENGTH = 4


def check(data: bytes) -> None:
    """Parse one input and check the output."""
    if len(data) < SETTINGS_LENGTH:
        return
    flags, length, reason_index, _ = data[:SETTINGS_LENGTH]
    text = data[SETTINGS_LENGTH:].decode("utf-8", "replace")
    options = TranslationOptions(
        fenced_calls=bool(flags & 1),
        reasoning="split" if flags & 2 else "keep",
        think_prefilled=bool(flags & 4),
        think_calls=bool(flags & 8),
        max_hold=MAX_HOLDS[flags >> 4 & 3],
    )
    tools = OfferedTools(SCHEMAS, parallel=not flags & 64, may_translate=not flags & 128)
    reason = REASONS[reason_index % len(REASONS)]
    step = length % 13 + 1
    output, counters = expected = parse_pieces([text], tools, options, reason)
    assert expected == parse_pieces(
        [text[at : at + step] for at in range(0, len(text), step)], tools, options, reason
    )
    assert expected == parse_pieces(list(text), tools, options, reason)
    if not output.calls and not flags & 6:
        assert output.content == text
    if not counters["malformed"]:
        check_calls(output)


def check_calls(output: ParserOutput) -> None:
    """Check that the arguments of finished calls, and of no others, are JSON objects."""
    for call in output.calls:
        try:
            arguments = call.parsed_arguments
        except ValueError:
            # Python rejects integers of thousands of digits, which are valid JSON.
            arguments = {} if len(call.arguments) > sys.get_int_max_str_digits() else None
        assert isinstance(arguments, dict) == call.is_finished, call


def write_seeds(folder: Path) -> None:
    """Write the texts of the corpus to `folder`, as seeds of libFuzzer."""
    for number, case in enumerate(cases()):
        flags = case.options.fenced_calls | 2 * (case.options.reasoning == "split") | 48
        seed = bytes([flags, 3, number % 2, 0]) + case.text.encode()
        (folder / f"corpus-{number}").write_bytes(seed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--seeds"]:
        write_seeds(Path(sys.argv[2]))
    else:
        atheris.Setup(sys.argv, check)
        atheris.Fuzz()
