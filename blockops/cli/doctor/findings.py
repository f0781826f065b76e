"""The report: one finding a topic, and the settings of blockops that fit the backend."""

from __future__ import annotations

import re
import shlex
import textwrap

import msgspec

from blockops.operations.traffic_log.redaction import MASK

WIDTH = 100
#: Columns of the topic, before its text; the longest topic is `disconnect`.
_TOPIC_WIDTH = 12

#: Control characters, which can move a terminal's cursor or change its state.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The result for one topic."""

    topic: str
    verdict: str  # a word or two; programs may rely on it
    text: str  # for people
    options: tuple[str, ...] = ()  # the options of blockops that fit, each with its value
    hint: str = ""  # a possible change to the backend

    def sanitized(self, key: str | None) -> Finding:
        """Return the finding with its verdict and text sanitized (see `sanitize`)."""
        return msgspec.structs.replace(
            self, verdict=sanitize(self.verdict, key), text=sanitize(self.text, key)
        )


def sanitize(text: str, key: str | None) -> str:
    """Replace control characters, and mask the backend's key: error responses often quote it."""
    masked = text.replace(key, MASK) if key else text
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", masked)


class DiagnosisReport(msgspec.Struct, frozen=True, kw_only=True):
    """All findings about one backend."""

    backend: str
    findings: tuple[Finding, ...]

    @property
    def command(self) -> str:
        """Return the command that starts blockops with the settings that fit the backend."""
        options = [option for finding in self.findings for option in finding.options]
        return shlex.join(["twistd", "-n", "blockops", f"--backend={self.backend}", *options])

    def as_text(self) -> str:
        """Return the report for people."""
        hints = [finding.hint for finding in self.findings if finding.hint]
        parts = [f"{self.backend}\n"]
        indent = " " * (_TOPIC_WIDTH + 2)
        parts += [
            _fill(each.text, f"  {each.topic:{_TOPIC_WIDTH}}", indent) for each in self.findings
        ]
        parts.append(f"\nStart blockops with\n  {self.command}\n")
        if hints:
            parts.append("\nAt the backend\n")
            parts += [_fill(hint, "  - ", "    ") for hint in hints]
        return "".join(parts)

    def as_json(self) -> bytes:
        """Return the report as indented JSON."""
        report = {**msgspec.to_builtins(self), "command": self.command}
        return msgspec.json.format(msgspec.json.encode(report)) + b"\n"


def _fill(text: str, first: str, others: str) -> str:
    lines = textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{lines}\n"
