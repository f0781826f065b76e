"""
The recorded walk: the functions of blockops through which a request and each kind of chunk pass.

    python benchmarks/walk.py                  the numbers
    python benchmarks/walk.py --verbose        ... and each call, indented by its depth
    python benchmarks/walk.py --check          exit with 1 if a number is above its bound

A profile hook records the calls of our functions, in order, in a daemon in memory with real HTTP
parsers on both sides (`tests/world.py`). The walk of a request leads from the first byte of a small
streaming chat with one tool, on the client's socket, to the connect to the backend. The chat is the
first one of a new session; an earlier one of another session has warmed the daemon. The walk of a
chunk leads from the backend's socket to the client's.

Printed are the calls (`functions`), the different functions among them (`distinct`), how often a
call is in another file than the one before it (`file changes`), and the number of files. A
comprehension is a part of its function, and a coroutine that is resumed was called before: neither
is counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import blockops
from benchmarks.figures import table
from tests.world import DONE, Client, World, chat, chunk

REQUEST, PROSE = "request, to the connect", "chunk of prose"
#: Bounds of the walk of a request: the numbers have to be lower.
MAX_FUNCTIONS, MAX_FILE_CHANGES = 160, 60
#: Upper bound of the functions that a chunk of prose passes through.
MAX_CHUNK_FUNCTIONS = 10

_PACKAGE = f"{Path(blockops.__file__).parent}/"
_COMPREHENSIONS = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})

#: The reactor's method that ends the walk of a request.
_CONNECT = "connectTCP"

_CALL_BEGIN = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "'
_USAGE = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
_USAGE_CHUNK = f"data: {json.dumps({'id': 'chatcmpl-1', 'choices': [], 'usage': _USAGE})}\n\n"

#: Each kind of chunk: the chunks before it, and the recorded one.
_ROLE = chunk(role="assistant", content="")
_TEXT = (_ROLE, chunk("The"), chunk(" ferry"))
CHUNKS: dict[str, tuple[Sequence[str], str]] = {
    "chunk with the role": ((), _ROLE),
    "first text": ((_ROLE,), chunk("The")),
    PROSE: (_TEXT, chunk(" leaves")),
    "text that may begin a call": (_TEXT, chunk("<tool")),
    "text that ends this doubt": ((*_TEXT, chunk("<tool")), chunk(" shed>")),
    "a call's name": (_TEXT, chunk(_CALL_BEGIN)),
    "a call's arguments": ((*_TEXT, chunk(_CALL_BEGIN), chunk("New")), chunk(" York")),
    "reasoning": ((_ROLE, chunk(reasoning="Let")), chunk(reasoning=" me")),
    "finish reason": (_TEXT, chunk(finish="stop")),
    "usage": ((*_TEXT, chunk(finish="stop")), _USAGE_CHUNK),
    "[DONE]": ((*_TEXT, chunk(finish="stop")), DONE),
}


class WalkError(Exception):
    """What was to be recorded did not happen."""


class Step(NamedTuple):
    """
    One call.

    :param file: its path in the package
    :param depth: the number of our functions on the stack above it
    """

    file: str
    function: str
    depth: int


@dataclass
class Walk:
    """The calls of our functions, in order."""

    steps: list[Step] = field(default_factory=list)

    @property
    def functions(self) -> int:
        return len(self.steps)

    @property
    def distinct(self) -> int:
        return len({(step.file, step.function) for step in self.steps})

    @property
    def file_changes(self) -> int:
        return sum(one.file != other.file for one, other in pairwise(self.steps))

    @property
    def files(self) -> int:
        return len({step.file for step in self.steps})


class Recorder:
    """
    Records a walk while it is used as a context.

    :param ends_at: name of a function that ends the walk before its `with` block ends
    :ivar walk: the calls so far
    """

    def __init__(self, ends_at: str | None = None) -> None:
        self.walk = Walk()
        self._ends_at = ends_at
        # They are kept so that no other frame gets the identity of one that has ended.
        self._frames: set[FrameType] = set()

    def __enter__(self) -> Walk:
        sys.setprofile(self._on_event)
        return self.walk

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        self._frames.clear()

    def _on_event(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or frame in self._frames:
            return
        if code.co_name == self._ends_at:
            sys.setprofile(None)
        elif code.co_filename.startswith(_PACKAGE) and code.co_name not in _COMPREHENSIONS:
            self._frames.add(frame)
            file = code.co_filename.removeprefix(_PACKAGE)
            self.walk.steps.append(Step(file, code.co_qualname, _depth(frame)))


def _depth(frame: FrameType) -> int:
    depth, caller = 0, frame.f_back
    while caller is not None:
        depth += caller.f_code.co_filename.startswith(_PACKAGE)
        caller = caller.f_back
    return depth


def _send_chat(client: Client, text: str) -> None:
    """Send a chat of a new session."""
    client.post("/v1/chat/completions", chat(messages=[{"role": "user", "content": text}]))


def _warm_world() -> World:
    """Return a daemon that has served a chat."""
    world = World()
    _send_chat(world.client(), "Hello")
    backend = world.backend()
    backend.begin_stream()
    backend.stream(*_TEXT, chunk(finish="stop"), _USAGE_CHUNK, DONE)
    backend.end_stream()
    world.pass_time(1)
    return world


def request_walk() -> Walk:
    """
    Return the walk of a request.

    :raises WalkError: the request did not lead to a connection
    """
    world = _warm_world()
    client, attempts = world.client(), world.connection_attempts()
    with Recorder(ends_at=_CONNECT) as walk:
        _send_chat(client, "When does the ferry leave?")
    if world.connection_attempts() == attempts:
        raise WalkError("the request did not lead to a connection")
    return walk


def chunk_walk(before: Sequence[str], recorded: str) -> Walk:
    """
    Return the walk of a chunk.

    :param before: the chunks that the backend sends before it
    :raises WalkError: the stream failed
    """
    world = _warm_world()
    client = world.client()
    _send_chat(client, "When does the ferry leave?")
    backend = world.backend()
    backend.begin_stream()
    backend.stream(*before)
    with Recorder() as walk:
        backend.stream(recorded)
    if client.wire.aborted or b'"error"' in client.received():
        raise WalkError(f"the stream failed: {client.received()!r}")
    return walk


def all_walks() -> dict[str, Walk]:
    """Return the walk of a request and of each kind of chunk, by their names."""
    chunks = {name: chunk_walk(before, recorded) for name, (before, recorded) in CHUNKS.items()}
    return {REQUEST: request_walk(), **chunks}


def find_violations(walks: dict[str, Walk]) -> Iterator[str]:
    """Yield a description of each number above its bound."""
    request, prose = walks[REQUEST], walks[PROSE]
    if request.functions >= MAX_FUNCTIONS:
        yield f"{REQUEST}: {request.functions} functions, not under {MAX_FUNCTIONS}"
    if request.file_changes >= MAX_FILE_CHANGES:
        yield f"{REQUEST}: {request.file_changes} file changes, not under {MAX_FILE_CHANGES}"
    if prose.functions > MAX_CHUNK_FUNCTIONS:
        yield f"{PROSE}: {prose.functions} functions, more than {MAX_CHUNK_FUNCTIONS}"


def walks_table(walks: dict[str, Walk], *, markdown: bool) -> str:
    heads = ["walk", "functions", "distinct", "file changes", "files"]
    rows = []
    for name, walk in walks.items():
        numbers = (walk.functions, walk.distinct, walk.file_changes, walk.files)
        rows.append([name, *map(str, numbers)])
    return table(heads, rows, markdown=markdown)


def walk_text(name: str, walk: Walk) -> str:
    """Return the calls of a walk, a line for each: the file where it changes, and the function."""
    lines, file = [f"{name}:"], ""
    for step in walk.steps:
        shown = step.file if step.file != file else ""
        lines.append(f"  {shown:44}{'  ' * step.depth}{step.function}")
        file = step.file
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--verbose", action="store_true", help="print each call, too")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bound is exceeded")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    options = parser.parse_args()
    walks = all_walks()
    if options.verbose:
        for name, walk in walks.items():
            print(walk_text(name, walk))
    print(walks_table(walks, markdown=options.markdown))
    violations = list(find_violations(walks)) if options.check else []
    for violation in violations:
        print("over the bound:", violation)
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
