"""The objects that the daemon builds from its settings."""

from __future__ import annotations

from pathlib import Path

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from blockops.daemon.wiring import make_traffic_log
from blockops.operations.traffic_log.log import NoTrafficLog, TrafficLog
from blockops.operations.traffic_log.records import RequestRecord
from blockops.settings.table import Settings
from tests.operations.traffic_log.fake_reactor import THREAD_TIMEOUT, FakeReactor, lines

RECORD = RequestRecord(id="r1", method="POST", path="/v1/chat/completions")


class TrafficLogTests(SynchronousTestCase):
    """`make_traffic_log`: the log that the settings describe."""

    def test_off(self):
        log = make_traffic_log(Settings(log_file=None), FakeReactor())
        self.assertIsInstance(log, NoTrafficLog)
        log.start()
        log.write(RECORD)
        self.successResultOf(log.close())
        self.assertEqual(log.lines_lost, 0)

    def test_on(self):
        reactor = FakeReactor()
        path = Path(self.mktemp()).absolute()
        settings = Settings(
            log_file=path, log_body=30, log_size=4096, log_keep=1, backend_key="hunter2"
        )
        log = make_traffic_log(settings, reactor)
        assert isinstance(log, TrafficLog)
        for _ in range(100):
            log.write(msgspec.structs.replace(RECORD, body=b"hunter2 " + b"x" * 100))
        closed = log.close()
        assert log._thread is not None
        log._thread.join(THREAD_TIMEOUT)
        reactor.run_calls()
        self.successResultOf(closed)
        self.assertEqual(lines(path)[-1]["body"], "*** " + "x" * 22)
        self.assertTrue(path.with_name(f"{path.name}.1").exists())
        self.assertFalse(path.with_name(f"{path.name}.2").exists())
