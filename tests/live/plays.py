"""
What a backend is told to say, at random from a seed, and what a client may then see.

A play is known by its number, which the client's question carries: so the backend finds what to
say, and who has the answer knows what has to be in it.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterable, Iterator
from typing import Any

from tests.faults.reading import Judged
from tests.faults.scripts import CALL, DONE, FAULTS, TEXT, event
from tests.faults.steps import Close, Flood, HalfClose, Reset, Send, Step, Wait
from tests.faults.test_faults import OTHER_TEXT, SEEN
from tests.live.harness import question
from tests.live.wires import Wire

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": "string"}, "count": {"type": "integer"}},
            },
        },
    }
    for name in ("search", "write_file", CALL[0])
]
_WORDS = (
    "Grüße",
    "und",
    "an Call",
    "日本語",
    "👩‍💻",
    "x = {1: 2}",
    "\r\n",
    "\n\n",
    "a\tb",
    '"',
    "\\",
    "€5",
)
_MARK = re.compile(r"play (\d+)\.")
#: Nothing ends these but the client's leaving.
ENDLESS = tuple(name for name, seen in SEEN.items() if seen == (None, None))


def number_of(body: Any) -> int:
    """Return the number of the play that a request asks for."""
    found = _MARK.search(body["messages"][-1]["content"])
    assert found is not None
    return int(found[1])


class Play:
    """
    One answer.

    :param faults: how many of a hundred plays have a fault
    :ivar fault: what is wrong with it; None: nothing
    :ivar streams: a stream is asked for
    :ivar text: what the model says besides its calls
    :ivar calls: its calls, as (name, arguments)
    """

    def __init__(self, seed: int, number: int, faults: int = 40) -> None:
        self._dice = dice = random.Random(f"{seed}/{number}")
        self.number = number
        self.streams = dice.random() < 0.7
        self.fault = dice.choice(list(FAULTS)) if dice.randrange(100) < faults else None
        if self.fault is not None and not self._script():
            self.streams = True
        self.text = " ".join(dice.choices(_WORDS, k=dice.choice((0, 3, 30, 300)))).strip() + "."
        self.calls = [self._call() for _ in range(dice.choice((0, 0, 1, 3)))]

    def _call(self) -> tuple[str, Any]:
        words = " ".join(self._dice.choices(_WORDS, k=self._dice.choice((1, 20, 200))))
        values = {"text": f"<{words}>", "count": self._dice.randrange(1000)}
        return self._dice.choice(("search", "write_file")), values

    def __str__(self) -> str:
        kind = "stream" if self.streams else "whole"
        return f"play {self.number} ({kind}, {self.fault or 'no fault'})"

    @property
    def body(self) -> bytes:
        """The request that asks for it."""
        asked = question(f"play {self.number}.", tools=TOOLS, stream=self.streams)
        return json.dumps(asked).encode()

    # What the backend does.

    def script(self) -> Iterable[Step]:
        """Return what the backend does."""
        return self._well() if self.fault is None else self._script()

    def _script(self) -> Iterable[Step]:
        fault = FAULTS[self.fault or ""]
        return fault.stream if self.streams else fault.whole

    def _well(self) -> Iterator[Step]:
        body = self._stream() if self.streams else self._whole()
        kind = "text/event-stream" if self.streams else "application/json"
        framing = self._dice.choice(("chunks", "length", "close"))
        lines = ["HTTP/1.1 200 OK", f"Content-Type: {kind}"]
        if framing == "chunks":
            lines.append("Transfer-Encoding: chunked")
        elif framing == "length":
            lines.append(f"Content-Length: {len(body)}")
        yield Send("\r\n".join([*lines, "", ""]).encode())
        pause = self._dice.choice((0, 0, 0.001, 0.02))
        for piece in self._cut(body):
            yield Send(b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunks" else piece)
            yield Wait(pause)
        yield Send(b"0\r\n\r\n" if framing == "chunks" else b"")
        yield Close()

    def _cut(self, body: bytes) -> Iterator[bytes]:
        """Yield `body` in pieces, cut anywhere, not more than some hundred."""
        size = max(self._dice.choice((1, 7, 100, 5000, len(body))), len(body) // 300)
        return (body[start : start + size] for start in range(0, len(body), size))

    def _said(self) -> str:
        return self.text + "".join(f"\n{self._written(*call)}" for call in self.calls)

    def _written(self, name: str, values: dict[str, Any]) -> str:
        if self._dice.random() < 0.5:
            plain = self._dice.random() < 0.5
            called = json.dumps({"name": name, "arguments": values}, ensure_ascii=plain)
            return f"<tool_call>\n{called}\n</tool_call>"
        parameters = "".join(
            f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items()
        )
        return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"

    def _stream(self) -> bytes:
        said = self._said()
        size = max(self._dice.choice((1, 3, 20, 1000)), len(said) // 300)
        pieces = [said[start : start + size] for start in range(0, len(said), size)]
        deltas = [{"role": "assistant", "content": ""}, *({"content": one} for one in pieces)]
        return b"".join([*map(event, deltas), event({}, "stop"), DONE])

    def _whole(self) -> bytes:
        message = {"role": "assistant", "content": self._said()}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
        return json.dumps({**head, "choices": [choice]}).encode()

    # What the client may see.

    def wrong(self, seen: Judged, *, heard: bool) -> str | None:
        """
        Return what is wrong with an answer that its client did not cut; None if nothing is.

        :param heard: the backend got the request: else it may have been away, which is no fault
            of the answer's
        """
        if seen.outcome in {"nothing", "cut"}:
            return f"{self}: the answer broke off without a word"
        if seen.outcome != "whole":
            expected = self.fault is not None and self._expected() != "whole"
            return None if expected or not heard else f"{self}: {seen.outcome}, {seen.message}"
        if self.fault is not None and self._expected() != "whole":
            return f"{self}: it looks whole"
        if (seen.text, list(seen.calls)) != self._due():
            return (
                f"{self}: {seen.text[:200]!r}, {seen.calls!r:.400} instead of {self._due()!r:.600}"
            )
        return None

    def _expected(self) -> str | None:
        stream, whole = SEEN.get(self.fault or "", ("whole", "whole"))
        return stream if self.streams else whole

    def _due(self) -> tuple[str, list[tuple[str, Any]]]:
        if self.fault is None:
            return self.text, self.calls
        if self.fault == "an event of 7 MiB":
            return "x" * (7 << 20), []
        text = TEXT.replace("Grüße", "Gr\ufffd\ufffde") if self.fault in OTHER_TEXT else TEXT
        return text, [CALL]


async def perform(wire: Wire, script: Iterable[Step]) -> None:
    """Play `script` on `wire`; at its end wait until the other side leaves."""
    for step in script:
        match step:
            case Close():
                return
            case Reset():
                wire.reset()
                return
            case HalfClose():
                wire.writer.write_eof()
            case Wait(seconds):
                await asyncio.sleep(seconds)
            case _:
                await _send(wire, step)
    while await wire.reader.read(65536):
        pass


async def _send(wire: Wire, step: Step) -> None:
    match step:
        case Send(data, at_once, pause):
            size = at_once or len(data) or 1
            for start in range(0, len(data), size):
                await wire.send(data[start : start + size])
                if at_once:
                    await asyncio.sleep(pause)
        case Flood(data, pause):
            while True:
                await wire.send(data)
                await asyncio.sleep(pause)
        case _:
            raise TypeError(f"{step} is none of a backend's")
