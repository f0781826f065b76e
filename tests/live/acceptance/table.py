"""The page that the matrix makes: its table, what it was run with, why a cell cannot work."""

from __future__ import annotations

import datetime as dt
import platform
import subprocess
from typing import TYPE_CHECKING

import blockops
from tests.live.acceptance.clients import CLIENTS
from tests.live.acceptance.known import WHY_LOST, broken
from tests.live.acceptance.matrix import ORACLE, Matrix, Row, lost
from tests.live.tools import FORMATS

if TYPE_CHECKING:
    from tests.live.acceptance.cells import Between
    from tests.live.real_backends import RealBackend

MARKS = {"j": "J", "l": "L", "x": "X"}

_HEAD = """\
# Which clients work with which servers

Made by `bash tests/live/matrix --write docs/matrix.md`, which runs all of it: in each cell a real
server with a tiny model that knows its answers by heart, a real `twistd -n blockops`, and a real
client. The client offers a tool, the model calls it, the client runs it and sends the result, the
model answers, and the client shows that answer; the agents have to write a file on disk. Each
client does so in all ways it has, in a stream and whole.

{formats}
A letter that is struck out does not work, for the reason that the note tells. That was tried, too.
The first line is of texts, not of clients: calls among text, cut off, in code, with braces, quotes
and tags inside, and what is no call; each asked for in a stream and whole, and compared with what
it means, written down by hand.
"""


def page(matrix: Matrix) -> str:
    """Return the page in Markdown."""
    formats = "".join(f"- {MARKS[mark]}: `{text}`\n" for mark, text in FORMATS.items())
    notes: list[str] = []
    parts = [_HEAD.format(formats=formats), _table(matrix, notes)]
    if notes:
        parts.append("".join(f"{at}. {note}\n" for at, note in enumerate(notes, 1)))
    parts.append(_circumstances(matrix))
    return "\n".join(parts)


def _table(matrix: Matrix, notes: list[str]) -> str:
    columns = matrix.wanted.columns()
    heads = [_column(*column) for column in columns]
    lines = [["client", *heads], ["---"] * (len(heads) + 1)]
    for who in [ORACLE, *(client.name for client in matrix.wanted.clients())]:
        rows = [_row(matrix, who, *column) for column in columns]
        if any(rows):
            name = "each text that the model knows" if who == ORACLE else _client(who)
            lines.append([name, *(_cell(row, notes) if row else "" for row in rows)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _column(backend: RealBackend, between: Between) -> str:
    return f"{backend.name} {backend.version() or 'not installed'}{between}"


def _client(name: str) -> str:
    version = next(client.version() for client in CLIENTS if client.name == name)
    return f"{name} {version or 'not installed'}"


def _row(matrix: Matrix, who: str, backend: RealBackend, between: Between) -> Row | None:
    wanted = (who, backend, between)
    return next((one for one in matrix.rows if (one.who, one.backend, one.between) == wanted), None)


def _cell(row: Row, notes: list[str]) -> str:
    if row.skipped:
        return f"not run {_note('It was not installed.', notes)}"
    if row.trouble:
        return f"**FAILED** {_note(row.trouble.splitlines()[0][:300], notes)}"
    if row.who == ORACLE:
        return _texts(row, notes)
    asked = sorted({one.key[0] for one in row.outcome.told})
    worked = row.outcome.worked
    letters = " ".join(MARKS[one] if one in worked else f"~~{MARKS[one]}~~" for one in asked)
    if not row.between.daemon:
        why = "It reads calls in text itself." if worked else "The client shows the call as text."
        return f"{letters} {_note(why, notes)}"
    whys = [one.why for one in broken(row.backend, row.who) if set(one.formats) & set(asked)]
    return " ".join([letters, *(_note(why, notes) for why in whys)])


def _texts(row: Row, notes: list[str]) -> str:
    known = lost(row.backend, row.between)
    count = f"{len(row.judged) - len(known)} of {len(row.judged)}"
    return f"{count} {_note(WHY_LOST[row.backend], notes)}" if known else count


def _note(text: str, notes: list[str]) -> str:
    if text not in notes:
        notes.append(text)
    return f"({notes.index(text) + 1})"


def _circumstances(matrix: Matrix) -> str:
    style = matrix.wanted.heartbeat_style
    beats = f", with heartbeats of the style `{style}` between all that is said" if style else ""
    cells = len(matrix.rows) - len(matrix.skipped) - len(matrix.failures)
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    return (
        f"Run on {today}{beats}: {cells} cells as they should be, {len(matrix.failures)} not, "
        f"{len(matrix.skipped)} not run, in {matrix.seconds / 60:.1f} minutes. "
        f"blockops {blockops.__version__}, Python {platform.python_version()}, "
        f"Node {node.strip()}, {platform.system()} {platform.machine()}.\n"
    )


def summary(matrix: Matrix) -> str:
    """Return the last line, as trial has it."""
    failed, skipped = len(matrix.failures), len(matrix.skipped)
    counts = {
        "skips": skipped,
        "failures": failed,
        "successes": len(matrix.rows) - failed - skipped,
    }
    said = ", ".join(f"{name}={count}" for name, count in counts.items() if count)
    return f"{'FAILED' if failed else 'PASSED'} ({said})"
