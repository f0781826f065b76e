"""The table of responses that clients receive for each fault of a backend, over real sockets."""

from __future__ import annotations

from twisted.internet.defer import TimeoutError  # noqa: A004
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import TestCase

from tests.faults.client import encode_request
from tests.faults.daemon import CLOCK, RunningDaemon
from tests.faults.responses import Verdict, judge
from tests.faults.scripts import FAULTS, Script
from tests.faults.steps import Send
from tests.faults.test_faults import EXPECTED_OUTCOMES
from tests.live.harness import SKIP_UNLESS_LIVE
from tests.world import chat


class SocketTests(TestCase):
    """With real FIN and RST, and with pieces of any size."""

    skip = SKIP_UNLESS_LIVE
    timeout = 300

    def setUp(self) -> None:
        self.script: Script = ()
        self.fixture = RunningDaemon(
            self,
            lambda _: self.script,
            # Long enough for a busy machine, short enough for a quick test.
            first_byte_timeout=1.5,
            idle_timeout=1.0,
            max_answer=1 << 20,
        )

    async def play_fault(
        self, script: Script, *, stream: bool, timeout_seconds: float = 20.0
    ) -> Verdict:
        """Send a chat request, play `script` as the backend, and return the client's view."""
        self.script = script
        client = await self.fixture.connect()
        client.play([Send(encode_request(chat(stream=stream), Connection="close"))])
        client.when_closed.addTimeout(timeout_seconds, CLOCK)
        try:
            await client.when_closed
        except TimeoutError:
            client.reset()
        await self.fixture.wait_until_idle()
        return judge(bytes(client.received), closed=True)

    async def check(self, name: str, *, stream: bool) -> None:
        expected = EXPECTED_OUTCOMES[name][0 if stream else 1]
        script = FAULTS[name].stream if stream else FAULTS[name].non_streaming
        with capturedLogs() as events:
            verdict = await self.play_fault(script, stream=stream)
        label = f"{name}, {'stream' if stream else 'non-streaming'}"
        self.assertEqual(verdict.outcome, expected, f"{label}: {verdict.message}")
        record = self.fixture.traffic.responses()[-1]
        self.assertEqual(
            record.outcome, "done" if verdict.outcome == "complete" else "failed", label
        )
        lines = [each for each in events if each["log_namespace"].startswith("blockops")]
        self.assertEqual(lines, [], label)
        for event in events:
            self.assertLess(event["log_level"], LogLevel.error, label)

    async def test_the_table(self) -> None:
        for name, (stream, non_streaming) in EXPECTED_OUTCOMES.items():
            if stream is not None:
                await self.check(name, stream=True)
            if non_streaming is not None:
                await self.check(name, stream=False)

    async def test_endless_comments(self) -> None:
        fault = FAULTS["endless comments"]
        for stream, script in ((True, fault.stream), (False, fault.non_streaming)):
            verdict = await self.play_fault(script, stream=stream, timeout_seconds=2.5)
            self.assertIn(verdict.outcome, {"truncated", "no response"})
            self.assertEqual(self.fixture.traffic.responses()[-1].outcome, "client left")
