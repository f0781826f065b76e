"""Writes docs/matrix.md: the table, the notes about known failures, and the versions of the run."""

from __future__ import annotations

import datetime as dt
import platform
import subprocess
from typing import TYPE_CHECKING

import blockops
from tests.live.acceptance.clients import CLIENTS
from tests.live.acceptance.known_failures import LOSS_REASONS, known_failures
from tests.live.acceptance.matrix import ORACLE, Matrix, Row, lost_texts
from tests.live.tiny_model import DIALECTS

if TYPE_CHECKING:
    from tests.live.acceptance.cells import ProxySetup
    from tests.live.real_backends import RealBackend

MARKS = {"j": "J", "l": "L", "x": "X"}

_INTRODUCTION = """\
# Which clients work with which servers

Written by `bash tests/live/matrix --write docs/matrix.md`, which runs every cell: a real server
with a tiny model that has memorized its answers, a real `twistd -n blockops`, and a real client.
The client offers a tool, the model calls it, the client runs it and sends the result, the model
answers, and the client shows that answer; the agents must write a file on disk. Each client does
this in all its ways, streaming and non-streaming. A letter stands for the dialect of the calls:

{dialects}
A struck-out letter does not work, for the reason in its note; it was tried, too. The first row
tests texts instead of clients: calls within text, truncated, in code, with braces, quotes and tags
inside, and texts that are not calls. Each is requested as a stream and as a non-streaming response,
and compared with its meaning, which is written by hand.
"""


def page(matrix: Matrix) -> str:
    """Return the page in Markdown."""
    dialects = "".join(f"- {MARKS[mark]}: `{text}`\n" for mark, text in DIALECTS.items())
    notes: list[str] = []
    parts = [_INTRODUCTION.format(dialects=dialects), _table(matrix, notes)]
    if notes:
        parts.append("".join(f"{number}. {note}\n" for number, note in enumerate(notes, 1)))
    parts.append(_run_details(matrix))
    return "\n".join(parts)


def _table(matrix: Matrix, notes: list[str]) -> str:
    columns = matrix.selection.columns()
    heads = [_column_head(*column) for column in columns]
    lines = [["client", *heads], ["---"] * (len(heads) + 1)]
    for client_name in [ORACLE, *(client.name for client in matrix.selection.clients())]:
        rows = [_find_row(matrix, client_name, *column) for column in columns]
        if any(rows):
            is_oracle = client_name == ORACLE
            name = "each memorized text" if is_oracle else _client_with_version(client_name)
            lines.append([name, *(_format_cell(row, notes) if row else "" for row in rows)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _column_head(backend: RealBackend, setup: ProxySetup) -> str:
    return f"{backend.name} {backend.version() or 'not installed'}{setup}"


def _client_with_version(name: str) -> str:
    version = next(client.version() for client in CLIENTS if client.name == name)
    return f"{name} {version or 'not installed'}"


def _find_row(
    matrix: Matrix, client_name: str, backend: RealBackend, setup: ProxySetup
) -> Row | None:
    key = (client_name, backend, setup)
    return next(
        (each for each in matrix.rows if (each.client_name, each.backend, each.setup) == key), None
    )


def _format_cell(row: Row, notes: list[str]) -> str:
    if row.skip_reason:
        return f"not run {_reference('Not installed.', notes)}"
    if row.problem:
        return f"**FAILED** {_reference(row.problem.splitlines()[0][:300], notes)}"
    if row.client_name == ORACLE:
        return _format_oracle(row, notes)
    requested = sorted({each.key[0] for each in row.outcome.results})
    working = row.outcome.working_dialects
    letters = " ".join(
        MARKS[each] if each in working else f"~~{MARKS[each]}~~" for each in requested
    )
    if not row.setup.has_daemon:
        reason = (
            "The client parses calls in text." if working else "The client shows the call as text."
        )
        return f"{letters} {_reference(reason, notes)}"
    reasons = [
        each.reason
        for each in known_failures(row.backend, row.client_name)
        if set(each.dialects) & set(requested)
    ]
    return " ".join([letters, *(_reference(reason, notes) for reason in reasons)])


def _format_oracle(row: Row, notes: list[str]) -> str:
    known = lost_texts(row.backend, row.setup)
    count = f"{len(row.verdicts) - len(known)} of {len(row.verdicts)}"
    return f"{count} {_reference(LOSS_REASONS[row.backend], notes)}" if known else count


def _reference(text: str, notes: list[str]) -> str:
    if text not in notes:
        notes.append(text)
    return f"({notes.index(text) + 1})"


def _run_details(matrix: Matrix) -> str:
    style = matrix.selection.heartbeat_style
    heartbeats = f", with heartbeats of the style `{style}` in all pauses" if style else ""
    passed = len(matrix.rows) - len(matrix.skipped) - len(matrix.failures)
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    return (
        f"Run on {today}{heartbeats}: {passed} cells passed, {len(matrix.failures)} failed, "
        f"{len(matrix.skipped)} not run, in {matrix.seconds / 60:.1f} minutes. "
        f"blockops {blockops.__version__}, Python {platform.python_version()}, "
        f"Node {node.strip()}, {platform.system()} {platform.machine()}.\n"
    )


def summary(matrix: Matrix) -> str:
    """Return the last line of the output, in trial's format."""
    failed, skipped = len(matrix.failures), len(matrix.skipped)
    counts = {
        "skips": skipped,
        "failures": failed,
        "successes": len(matrix.rows) - failed - skipped,
    }
    counted = ", ".join(f"{name}={count}" for name, count in counts.items() if count)
    return f"{'FAILED' if failed else 'PASSED'} ({counted})"
