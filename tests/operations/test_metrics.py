"""What is counted, and where that is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString
from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.report import STRUCTURED
from blockops.operations.metrics import BUCKETS, MOST_EVENTS, Metrics
from blockops.operations.traffic_log.records import ResponseRecord
from tests.world import DONE, Client, World, chat, chunk

USAGE = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}


FORMATS = ("json", "xml", "line", STRUCTURED)

Samples = dict[tuple[str, frozenset[str]], float]


def scraped(client: Client) -> Samples:
    """Return each sample that `client` was told: by its name and its labels' values."""
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(client.body().decode())
        for sample in family.samples
    }


class Case(SynchronousTestCase):
    world: World

    def metrics(self) -> Samples:
        client = self.world.client()
        client.get("/metrics", Authorization="Bearer sk-one")
        self.assertEqual(client.status(), 200)
        return scraped(client)

    def count(self, name: str, *labels: str) -> float:
        return self.metrics().get((f"blockops_{name}", frozenset(labels)), 0.0)

    def streamed(self, *events: str, **fields: Any) -> Client:
        client, backend = self.world.ask(**fields)
        backend.begin_stream()
        backend.stream(*events, DONE)
        self.world.reactor.advance(0)
        return client


class Counting(Case):
    def setUp(self) -> None:
        self.world = World(max_concurrent=1, cors_origin=("*",))

    def test_the_format(self) -> None:
        client = self.world.client()
        client.get("/metrics")
        self.assertIn("text/plain; version=", client.headers()["content-type"])
        self.assertIn(b"# TYPE blockops_requests_total counter\n", client.body())
        self.assertIn(b"# TYPE blockops_request_seconds histogram\n", client.body())
        for line in client.body().decode().splitlines():
            self.assertTrue(line.startswith(("#", "blockops_", "process_")), line)
        self.assertNotIn(b"_created", client.body())

    def test_a_stream(self) -> None:
        call = '<tool_call>{"name": "unheard_of", "arguments": {}}</tool_call>'
        usage = '{"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 7}}'
        client, backend = self.world.ask()
        self.world.pass_time(3)
        backend.begin_stream()
        backend.stream(chunk(call, role="assistant"), chunk(finish="stop"))
        backend.stream(f"data: {usage}\n\n", DONE)
        told = self.metrics()
        for name, labels, value in (
            ("requests_total", ("chat", "200", "done"), 1),
            ("tokens_total", ("prompt",), 100),
            ("tokens_total", ("completion",), 7),
            ("calls_total", ("json",), 1),
            ("parser_events_total", ("unknown_name",), 1),
            ("backend_events_total", (), 3),
            ("client_bytes_total", (), len(client.body())),
            ("request_seconds_count", ("chat",), 1),
            ("request_seconds_sum", ("chat",), 3),
            ("request_seconds_bucket", ("chat", "2.5"), 0),
            ("request_seconds_bucket", ("chat", "5.0"), 1),
            ("first_byte_seconds_sum", ("chat",), 3),
            ("queue_seconds_sum", ("chat",), 0),
            ("requests_running", (), 0),
        ):
            got = told.get((f"blockops_{name}", frozenset(labels)))
            self.assertEqual(got, value, (name, labels))
        self.assertGreater(told["blockops_backend_bytes_total", frozenset()], 100)

    def test_calls_by_their_format(self) -> None:
        ours = (
            '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>',
            "<tool_call><function=get_weather></function></tool_call>",
            'TOOL_CALL: {"name": "get_weather", "arguments": {}}',
        )
        for call in ours:
            self.streamed(chunk(call, role="assistant"), chunk(finish="stop"))
        function = {"name": "get_weather", "arguments": "{}"}
        structured = [{"index": 0, "id": "c", "type": "function", "function": function}]
        self.streamed(chunk(role="assistant", tool_calls=structured), chunk(finish="tool_calls"))
        told = {each: self.count("calls_total", each) for each in FORMATS}
        self.assertEqual(told, {"json": 2, "xml": 1, "line": 1, "structured": 1})
        self.assertEqual(self.world.traffic.responses()[0].formats, {"json": 1})

    def test_each_route(self) -> None:
        for method, target, status, route in (
            ("POST", "/v1/completions", "400", "completions"),
            ("GET", "/health", "200", "health"),
            ("GET", "/metrics", "200", "metrics"),
            ("GET", "/nowhere", "404", "none"),
            ("GET", "/secret/of/a/client", "404", "none"),
            ("DELETE", "/health", "405", "none"),
        ):
            before = self.count("requests_total", route, status, self.outcome(status))
            client = self.world.client()
            client.request(method, target, b"no" if method == "POST" else None)
            after = self.count("requests_total", route, status, self.outcome(status))
            self.assertEqual(after - before, 2 if route == "metrics" else 1, target)
        for target, route in (("/v1/embeddings", "relayed"), ("/v1/models/m", "model")):
            self.world.client().get(target)
            self.world.backend().answer(b"{}")
            self.assertEqual(self.count("requests_total", route, "200", "done"), 1)
        self.assertNotIn("secret", str(self.metrics()))

    def outcome(self, status: str) -> str:
        return "done" if status == "200" else "failed"

    def test_statuses_that_a_backend_makes_up(self) -> None:
        self.world.client().get("/v1/x")
        self.world.backend().answer(b"{}", "299 Fine")
        self.assertEqual(self.count("requests_total", "relayed", "2xx", "done"), 1)

    def test_heartbeats(self) -> None:
        self.world = World(heartbeat=10)
        client, backend = self.world.ask()
        self.world.pass_time(25)
        backend.begin_stream()
        backend.stream(DONE)
        self.assertEqual(client.body().count(b": heartbeat"), 2)
        self.assertEqual(self.count("heartbeats_total"), 2)
        # Whole answers have none, unless they are asked for.
        self.world.ask(stream=False)
        self.world.pass_time(25)
        self.world.backend().answer({})
        self.assertEqual(self.count("heartbeats_total"), 2)

    def test_a_client_that_leaves(self) -> None:
        client, _ = self.world.ask()
        client.leave()
        self.world.reactor.advance(0)
        self.assertEqual(self.count("requests_total", "chat", "none", "client left"), 1)
        self.assertEqual(self.count("first_byte_seconds_count", "chat"), 0)

    def test_what_never_becomes_a_request(self) -> None:
        client = self.world.client()
        client.send("nonsense\r\n\r\n")
        self.assertEqual(self.count("requests_total", "none", "400", "failed"), 1)

    def test_how_it_is_now(self) -> None:
        self.world.ask()
        waiting = self.world.client()
        waiting.post("/v1/chat/completions", chat())
        told = self.metrics()
        for name, value in (
            ("requests_running", 1),
            ("requests_waiting", 1),
            ("connections", 3),
            ("sessions", 1),
            ("circuit_closed", 1),
            ("circuit_opened_total", 0),
            ("log_lines_lost_total", 0),
            ("prompts_cut_total", 0),
            ("caches_purged_total", 0),
            ("purges_failed_total", 0),
            ("purges_skipped_total", 0),
        ):
            self.assertEqual(told[f"blockops_{name}", frozenset()], value, name)
        ratio = told["blockops_memory_available_ratio", frozenset()]
        self.assertTrue(0 < ratio < 1, ratio)
        self.assertGreater(told["process_resident_memory_bytes", frozenset()], 1 << 20)
        self.assertGreater(told["process_open_fds", frozenset()], 1)

    def test_everything_that_health_tells_as_a_number(self) -> None:
        health = self.world.client()
        health.get("/health")
        numbers = [each for each in health.json().values() if isinstance(each, int | float)]
        now = len(list(Metrics(health.json)._now()))
        # Besides, the circuit's word.
        self.assertEqual(now, len(numbers) + 1)

    def test_no_client_can_make_up_a_label(self) -> None:
        for number in range(20):
            client = self.world.client()
            client.get(f"/v1/models/made-up-{number}", X_Session_Id=f"made-up-{number}")
            self.world.backend().answer({"data": []}, f"{460 + number} Made up")
        told = self.metrics()
        self.assertNotIn("made-up", str(told))
        labels = set().union(*(each for name, each in told if name == "blockops_requests_total"))
        self.assertEqual(labels, {"4xx", "model", "failed"})


class Keys(Case):
    def setUp(self) -> None:
        path = Path(self.mktemp())
        path.write_text("alice: sk-one\nbob: sk-two")
        self.settings = {"api_keys_file": path}
        self.world = World(**self.settings)

    def test_by_the_names_of_keys(self) -> None:
        client = self.world.client()
        body = chat(stream=False)
        client.post("/v1/chat/completions", body, Authorization="Bearer sk-two")
        answer = {"choices": [{"index": 0, "message": {"content": "Hi"}}], "usage": USAGE}
        self.world.backend().answer(answer)
        told = self.metrics()
        self.assertEqual(told["blockops_key_requests_total", frozenset({"bob"})], 1)
        self.assertEqual(told["blockops_key_tokens_total", frozenset({"bob", "prompt"})], 100)
        self.assertEqual(told["blockops_key_tokens_total", frozenset({"bob", "completion"})], 7)
        self.assertNotIn("sk-", str(told))

    def test_strangers_are_told_nothing(self) -> None:
        for headers in ({}, {"Authorization": "Bearer sk-o"}):
            client = self.world.client()
            client.get("/metrics", **headers)
            self.assertEqual(client.status(), 401)
        self.assertEqual(self.count("requests_total", "none", "401", "failed"), 2)


class Odd(SynchronousTestCase):
    """What comes from backends and from formats of others."""

    def metrics(self, records: list[ResponseRecord]) -> Metrics:
        metrics = Metrics(dict)
        world = World()
        ended: list[Any] = []
        world.daemon.gateway._metrics.ended = (  # type: ignore[method-assign]
            lambda *given: ended.append(given[1])
        )
        world.client().get("/health")
        for record in records:
            metrics.ended("chat", ended[0], record)
        return metrics

    @given(
        st.dictionaries(
            st.sampled_from(["prompt_tokens", "completion_tokens"]),
            st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.floats(),
        )
    )
    def test_usage(self, usage: dict[str, Any]) -> None:
        metrics = self.metrics([ResponseRecord(id="1", usage=usage)])
        for family in metrics.collect():
            for sample in family.samples:
                if sample.name == "blockops_tokens_total":
                    self.assertGreaterEqual(sample.value, 0)

    def test_usage_that_no_gauge_can_show(self) -> None:
        metrics = self.metrics([ResponseRecord(id="1", usage={"prompt_tokens": 10**400})])
        self.assertNotIn(b"blockops_tokens_total{", generate_latest(metrics._registry))

    def test_many_events(self) -> None:
        names = [
            "Bad name",
            "x" * 50,
            *(f"event_{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(200)),
        ]
        metrics = self.metrics([ResponseRecord(id="1", tally={name: 1}) for name in names])
        counted = {
            sample.labels["event"]: sample.value
            for family in metrics.collect()
            for sample in family.samples
            if sample.name == "blockops_parser_events_total"
        }
        self.assertLessEqual(len(counted), MOST_EVENTS + 1)
        self.assertEqual(sum(counted.values()), len(names))
        self.assertNotIn("Bad name", counted)

    def test_at_the_ends_of_buckets(self) -> None:
        for end in BUCKETS:
            metrics = self.metrics([ResponseRecord(id="1", last_byte_ms=1000 * end)])
            counts = {
                sample.labels["le"]: sample.value
                for family in metrics.collect()
                for sample in family.samples
                if sample.name == "blockops_request_seconds_bucket"
            }
            self.assertEqual(sum(counts.values()), len(BUCKETS) - BUCKETS.index(end) + 1)
            self.assertEqual(counts[floatToGoString(end)], 1)


class OnAPortOfItsOwn(Case):
    def setUp(self) -> None:
        path = Path(self.mktemp())
        path.write_text("alice: sk-one")
        self.keys = path
        self.world = World(admin_listen=("tcp:9:interface=127.0.0.1",))

    def got(self, target: str, to: str = "127.0.0.1", **headers: str) -> Client:
        address = IPv4Address("TCP", "192.0.2.1", 50000)
        client = Client(self.world.reactor, self.world.daemon.status_site.buildProtocol(address))
        client.wire.hostAddr = IPv4Address("TCP", to, 9)
        client.get(target, **headers)
        return client

    def test_where_it_is(self) -> None:
        ports = [(port, interface) for port, _, _, interface in self.world.reactor.tcpServers]
        self.assertEqual(ports, [(8080, "127.0.0.1"), (9, "127.0.0.1")])

    def test_everything_is_told_there(self) -> None:
        self.assertEqual(self.got("/metrics").status(), 200)
        self.assertIn("running", self.got("/health").json())
        ready = self.got("/ready")
        self.world.backend().answer(b"{}")
        self.assertEqual(ready.status(), 200)

    def test_and_nothing_else(self) -> None:
        for target in ("/", "/v1/models", "/v1/chat/completions", "/metrics/x", "/x/y"):
            client = self.got(target)
            self.assertEqual(client.status(), 404, target)
            self.assertIn("/metrics", client.error()["message"])
        client = self.got("/health")
        client.wire.clear()
        client.post("/v1/chat/completions", chat())
        self.assertEqual(client.status(), 404)
        self.assertEqual(self.world.connecting(), 0)

    def test_little_is_told_elsewhere(self) -> None:
        for settings in ({}, {"api_keys_file": self.keys}):
            self.world = World(admin_listen=("tcp:9:interface=127.0.0.1",), **settings)
            client = self.world.client()
            client.get("/metrics", Authorization="Bearer sk-one")
            self.assertEqual(client.status(), 404)
            client = self.world.client()
            client.get("/health", Authorization="Bearer sk-one")
            self.assertEqual(set(client.json()), {"status", "version"})

    def test_programs_of_this_machine_need_no_key(self) -> None:
        self.world = World(admin_listen=("tcp:9:interface=127.0.0.1",), api_keys_file=self.keys)
        self.assertEqual(self.got("/metrics").status(), 200)
        self.assertIn("running", self.got("/health").json())
        self.assertEqual(self.got("/metrics", to="192.168.1.5").status(), 401)
        fine = self.got("/metrics", to="192.168.1.5", Authorization="Bearer sk-one")
        self.assertEqual(fine.status(), 200)

    def test_where_others_reach_it_health_says_little_without_a_key(self) -> None:
        self.world = World(admin_listen=("tcp:9",), api_keys_file=self.keys)
        self.assertEqual(set(self.got("/health", to="192.168.1.5").json()), {"status", "version"})

    def test_pages_may_not_look(self) -> None:
        self.assertEqual(self.got("/metrics", Origin="http://evil.example").status(), 403)
        client = self.got("/x")
        client.wire.clear()
        client.send("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        self.assertEqual(client.error()["code"], "host_not_allowed")

    def test_it_closes_with_the_daemon(self) -> None:
        idle = self.got("/health")
        stopped = self.world.stop()
        self.world.reactor.pump([0, 0, 0])
        self.assertTrue(idle.wire.closed)
        self.assertTrue(stopped())
        self.assertEqual(self.world.reactor.getDelayedCalls(), [])
