"""
Random scenarios from a seed: a backend's response, and the outcomes that a client may see.

The client's request carries the number of its scenario. From it the backend derives its response,
and the test the expected outcome.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterable, Iterator
from typing import Any

from tests.faults.responses import Verdict
from tests.faults.scripts import CALL, DONE, FAULTS, TEXT, event
from tests.faults.steps import Close, Flood, HalfClose, Reset, Send, Step, Wait
from tests.faults.test_faults import EXPECTED_OUTCOMES, TESTED_SEPARATELY
from tests.live.asyncio_http import Connection
from tests.live.harness import chat_body

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
_MARK = re.compile(r"scenario (\d+)\.")
#: These faults last until the client disconnects.
ENDLESS_FAULTS = tuple(
    name for name, outcomes in EXPECTED_OUTCOMES.items() if outcomes == (None, None)
)


def scenario_number(body: Any) -> int:
    """Return the number of the scenario in a chat request."""
    found = _MARK.search(body["messages"][-1]["content"])
    assert found is not None
    return int(found[1])


class Scenario:
    """
    One request and its response.

    :param fault_percentage: percentage of scenarios that have a fault
    :ivar fault: the name of the fault in `FAULTS`, or None
    :ivar is_streaming: True if the request asks for a stream
    :ivar text: the model's text without its calls
    :ivar calls: the model's calls, as (name, arguments)
    """

    def __init__(self, seed: int, number: int, fault_percentage: int = 40) -> None:
        self._dice = dice = random.Random(f"{seed}/{number}")
        self.number = number
        self.is_streaming = dice.random() < 0.7
        self.fault = dice.choice(list(FAULTS)) if dice.randrange(100) < fault_percentage else None
        if self.fault is not None and not self._fault_script():
            self.is_streaming = True
        self.text = " ".join(dice.choices(_WORDS, k=dice.choice((0, 3, 30, 300)))).strip() + "."
        self.calls = [self._call() for _ in range(dice.choice((0, 0, 1, 3)))]

    def _call(self) -> tuple[str, Any]:
        words = " ".join(self._dice.choices(_WORDS, k=self._dice.choice((1, 20, 200))))
        values = {"text": f"<{words}>", "count": self._dice.randrange(1000)}
        return self._dice.choice(("search", "write_file")), values

    def __str__(self) -> str:
        mode = "stream" if self.is_streaming else "non-streaming"
        return f"scenario {self.number} ({mode}, {self.fault or 'no fault'})"

    @property
    def body(self) -> bytes:
        """The body of the chat request."""
        request = chat_body(f"scenario {self.number}.", tools=TOOLS, stream=self.is_streaming)
        return json.dumps(request).encode()

    # The backend's response.

    def script(self) -> Iterable[Step]:
        """Return the steps of the backend's response."""
        return self._good_script() if self.fault is None else self._fault_script()

    def _fault_script(self) -> Iterable[Step]:
        fault = FAULTS[self.fault or ""]
        return fault.stream if self.is_streaming else fault.non_streaming

    def _good_script(self) -> Iterator[Step]:
        body = self._stream_body() if self.is_streaming else self._json_body()
        content_type = "text/event-stream" if self.is_streaming else "application/json"
        framing = self._dice.choice(("chunks", "length", "close"))
        lines = ["HTTP/1.1 200 OK", f"Content-Type: {content_type}"]
        if framing == "chunks":
            lines.append("Transfer-Encoding: chunked")
        elif framing == "length":
            lines.append(f"Content-Length: {len(body)}")
        yield Send("\r\n".join([*lines, "", ""]).encode())
        pause = self._dice.choice((0, 0, 0.001, 0.02))
        for piece in self._split(body):
            yield Send(b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunks" else piece)
            yield Wait(pause)
        yield Send(b"0\r\n\r\n" if framing == "chunks" else b"")
        yield Close()

    def _split(self, body: bytes) -> Iterator[bytes]:
        """Yield `body` in at most about 300 pieces of a random size."""
        size = max(self._dice.choice((1, 7, 100, 5000, len(body))), len(body) // 300)
        return (body[start : start + size] for start in range(0, len(body), size))

    def _model_text(self) -> str:
        return self.text + "".join(f"\n{self._call_text(*call)}" for call in self.calls)

    def _call_text(self, name: str, values: dict[str, Any]) -> str:
        if self._dice.random() < 0.5:
            is_ascii = self._dice.random() < 0.5
            call = json.dumps({"name": name, "arguments": values}, ensure_ascii=is_ascii)
            return f"<tool_call>\n{call}\n</tool_call>"
        parameters = "".join(
            f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items()
        )
        return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"

    def _stream_body(self) -> bytes:
        text = self._model_text()
        size = max(self._dice.choice((1, 3, 20, 1000)), len(text) // 300)
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        deltas = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces)]
        return b"".join([*map(event, deltas), event({}, "stop"), DONE])

    def _json_body(self) -> bytes:
        message = {"role": "assistant", "content": self._model_text()}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
        return json.dumps({**head, "choices": [choice]}).encode()

    # The client's outcome.

    def find_problem(self, verdict: Verdict, *, reached_backend: bool) -> str | None:
        """
        Return the problem with a response that its client received to the end, or None.

        :param reached_backend: True if the backend received the request; otherwise the backend may
            have been stopped, and an error is correct
        """
        if verdict.outcome in {"no response", "truncated"}:
            return f"{self}: the response was truncated without an error"
        if verdict.outcome != "complete":
            is_error_expected = self.fault is not None and self._expected_outcome() != "complete"
            if is_error_expected or not reached_backend:
                return None
            return f"{self}: {verdict.outcome}, {verdict.message}"
        if self.fault is not None and self._expected_outcome() != "complete":
            return f"{self}: it looks complete"
        expected = self._expected_contents()
        if (verdict.text, list(verdict.calls)) != expected:
            received = f"{verdict.text[:200]!r}, {verdict.calls!r:.400}"
            return f"{self}: {received} instead of {expected!r:.600}"
        return None

    def _expected_outcome(self) -> str | None:
        outcomes = EXPECTED_OUTCOMES.get(self.fault or "", ("complete", "complete"))
        return outcomes[0 if self.is_streaming else 1]

    def _expected_contents(self) -> tuple[str, list[tuple[str, Any]]]:
        if self.fault is None:
            return self.text, self.calls
        if self.fault == "an event of 7 MiB":
            return "x" * (7 << 20), []
        text = TEXT.replace("Grüße", "Gr\ufffd\ufffde") if self.fault in TESTED_SEPARATELY else TEXT
        return text, [CALL]


async def play_script(connection: Connection, script: Iterable[Step]) -> None:
    """Play `script` on `connection`; after the last step wait until the peer disconnects."""
    for step in script:
        match step:
            case Close():
                return
            case Reset():
                connection.reset()
                return
            case HalfClose():
                connection.writer.write_eof()
            case Wait(seconds):
                await asyncio.sleep(seconds)
            case _:
                await _send_step(connection, step)
    while await connection.reader.read(65536):
        pass


async def _send_step(connection: Connection, step: Step) -> None:
    match step:
        case Send(data, piece_size, pause):
            size = piece_size or len(data) or 1
            for start in range(0, len(data), size):
                await connection.send(data[start : start + size])
                if piece_size:
                    await asyncio.sleep(pause)
        case Flood(data, pause):
            while True:
                await connection.send(data)
                await asyncio.sleep(pause)
        case _:
            raise TypeError(f"{step} is not a step of a backend")
