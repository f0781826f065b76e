"""The table of what clients see of a backend's faults, over real sockets."""

from __future__ import annotations

from twisted.internet.defer import TimeoutError  # noqa: A004
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import TestCase

from tests.faults.client import request
from tests.faults.daemon import CLOCK, House
from tests.faults.reading import Judged, judge
from tests.faults.scripts import FAULTS, Script
from tests.faults.steps import Send
from tests.faults.test_faults import SEEN
from tests.live.harness import LONG
from tests.world import chat


class OverSockets(TestCase):
    """Where ends are FIN and RST, and pieces come as they may."""

    skip = LONG
    timeout = 300

    def setUp(self) -> None:
        self.script: Script = ()
        self.house = House(
            self,
            lambda _: self.script,
            # Long enough for a busy machine, short enough for those who wait for them.
            first_byte_timeout=1.5,
            idle_timeout=1.0,
            max_answer=1 << 20,
        )

    async def see(self, script: Script, *, stream: bool, patience: float = 20.0) -> Judged:
        """Let a client ask, and the backend play `script`; return what the client makes of it."""
        self.script = script
        client = await self.house.client()
        client.play([Send(request(chat(stream=stream), Connection="close"))])
        client.over.addTimeout(patience, CLOCK)
        try:
            await client.over
        except TimeoutError:
            client.reset()
        await self.house.empty()
        return judge(bytes(client.received), closed=True)

    async def check(self, name: str, *, stream: bool) -> None:
        expected = SEEN[name][0 if stream else 1]
        script = FAULTS[name].stream if stream else FAULTS[name].whole
        with capturedLogs() as events:
            judged = await self.see(script, stream=stream)
        what = f"{name}, {'stream' if stream else 'whole'}"
        self.assertEqual(judged.outcome, expected, f"{what}: {judged.message}")
        record = self.house.traffic.responses()[-1]
        self.assertEqual(record.outcome, "done" if judged.outcome == "whole" else "failed", what)
        lines = [each for each in events if each["log_namespace"].startswith("blockops")]
        self.assertEqual(lines, [], what)
        for event in events:
            self.assertLess(event["log_level"], LogLevel.error, what)

    async def test_the_table(self) -> None:
        for name, (stream, whole) in SEEN.items():
            if stream is not None:
                await self.check(name, stream=True)
            if whole is not None:
                await self.check(name, stream=False)

    async def test_what_goes_on_for_ever(self) -> None:
        fault = FAULTS["comments without end"]
        for stream, script in ((True, fault.stream), (False, fault.whole)):
            judged = await self.see(script, stream=stream, patience=2.5)
            self.assertIn(judged.outcome, {"cut", "nothing"})
            self.assertEqual(self.house.traffic.responses()[-1].outcome, "client left")
