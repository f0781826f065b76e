"""What was found out about a backend, in words, with the settings that fit."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable

import msgspec

from blockops.operations.traffic_log.redaction import HIDDEN

#: Columns of a line.
WIDTH = 100
#: Columns of the topics, before what is said of them.
_INDENT = 10


# What moves a terminal's cursor, or worse.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """
    One thing that was found out.

    :param topic: what it is about
    :param verdict: the outcome in a word or two, which programs may rely on
    :param text: the outcome in a sentence or two, for people
    :param options: options of blockops that fit it, each with its value
    :param hint: what could be changed at the backend; empty for nothing
    """

    topic: str
    verdict: str
    text: str
    options: tuple[str, ...] = ()
    hint: str = ""

    def presentable(self, key: str | None) -> Finding:
        """Return it without the backend's key, and without what a terminal would obey."""
        return msgspec.structs.replace(
            self,
            verdict=presentable(self.verdict, key),
            text=presentable(self.text, key),
        )


def presentable(text: str, key: str | None) -> str:
    """
    Return what a backend says as it may stand on a terminal.

    :param key: the backend's, which refusals like to repeat
    """
    told = text.replace(key, HIDDEN) if key else text
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", told)


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found out about one backend."""

    backend: str
    findings: tuple[Finding, ...]

    @property
    def command(self) -> str:
        """Return the command line that fits the backend."""
        options = [option for finding in self.findings for option in finding.options]
        return shlex.join(["twistd", "-n", "blockops", f"--backend={self.backend}", *options])

    def written(self) -> str:
        """Return it for people to read."""
        hints = [finding.hint for finding in self.findings if finding.hint]
        parts = [f"{self.backend}\n", *_table(self.findings), "\nStart blockops with\n"]
        parts.append(f"  {self.command}\n")
        if hints:
            parts.append("\nAt the backend\n")
            parts += [_filled(hint, "  - ", "    ") for hint in hints]
        return "".join(parts)

    def json(self) -> bytes:
        """Return it for programs to read."""
        told = {**msgspec.to_builtins(self), "command": self.command}
        return msgspec.json.format(msgspec.json.encode(told)) + b"\n"


def _table(findings: Iterable[Finding]) -> Iterable[str]:
    for each in findings:
        yield _filled(each.text, f"  {each.topic:{_INDENT}}", " " * (_INDENT + 2))


def _filled(text: str, first: str, others: str) -> str:
    lines = textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{lines}\n"
