"""The metrics: their values, their labels, and access to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.report import STRUCTURED
from blockops.operations.metrics import BUCKETS, MAX_EVENTS, Metrics, StatusCollector
from blockops.operations.traffic_log.records import ResponseRecord
from tests.world import DONE, Client, World, chat, chunk

USAGE = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}

FORMATS = ("json", "xml", "line", STRUCTURED)

Samples = dict[tuple[str, frozenset[str]], float]


def parse_samples(client: Client) -> Samples:
    """Return the samples in the response to `client`, by name and label values."""
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(client.body().decode())
        for sample in family.samples
    }


class MetricsTestCase(SynchronousTestCase):
    world: World

    def metrics(self) -> Samples:
        client = self.world.client()
        client.get("/metrics", Authorization="Bearer sk-one")
        self.assertEqual(client.status(), 200)
        return parse_samples(client)

    def count(self, name: str, *labels: str) -> float:
        return self.metrics().get((f"blockops_{name}", frozenset(labels)), 0.0)

    def stream(self, *events: str, **fields: Any) -> Client:
        client, backend = self.world.start_chat(**fields)
        backend.begin_stream()
        backend.stream(*events, DONE)
        self.world.reactor.advance(0)
        return client


class CounterTests(MetricsTestCase):
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
        client, backend = self.world.start_chat()
        self.world.pass_time(3)
        backend.begin_stream()
        backend.stream(chunk(call, role="assistant"), chunk(finish="stop"))
        backend.stream(f"data: {usage}\n\n", DONE)
        self.world.reactor.advance(0)
        samples = self.metrics()
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
            sample = samples.get((f"blockops_{name}", frozenset(labels)))
            self.assertEqual(sample, value, (name, labels))
        self.assertGreater(samples["blockops_backend_bytes_total", frozenset()], 100)

    def test_calls_by_dialect(self) -> None:
        texts = (
            '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>',
            "<tool_call><function=get_weather></function></tool_call>",
            'TOOL_CALL: {"name": "get_weather", "arguments": {}}',
        )
        for call in texts:
            self.stream(chunk(call, role="assistant"), chunk(finish="stop"))
        function = {"name": "get_weather", "arguments": "{}"}
        structured = [{"index": 0, "id": "c", "type": "function", "function": function}]
        self.stream(chunk(role="assistant", tool_calls=structured), chunk(finish="tool_calls"))
        calls = {name: self.count("calls_total", name) for name in FORMATS}
        self.assertEqual(calls, {"json": 2, "xml": 1, "line": 1, "structured": 1})
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
            self.world.backend().respond(b"{}")
            self.assertEqual(self.count("requests_total", route, "200", "done"), 1)
        self.assertNotIn("secret", str(self.metrics()))

    def outcome(self, status: str) -> str:
        return "done" if status == "200" else "failed"

    def test_unregistered_statuses(self) -> None:
        self.world.client().get("/v1/x")
        self.world.backend().respond(b"{}", "299 Fine")
        self.assertEqual(self.count("requests_total", "relayed", "2xx", "done"), 1)

    def test_heartbeats(self) -> None:
        self.world = World(heartbeat=10)
        client, backend = self.world.start_chat()
        self.world.pass_time(25)
        backend.begin_stream()
        backend.stream(DONE)
        self.world.reactor.advance(0)
        self.assertEqual(client.body().count(b": heartbeat"), 2)
        self.assertEqual(self.count("heartbeats_total"), 2)
        # Non-streaming responses have none by default.
        self.world.start_chat(stream=False)
        self.world.pass_time(25)
        self.world.backend().respond({})
        self.assertEqual(self.count("heartbeats_total"), 2)

    def test_a_disconnect(self) -> None:
        client, _ = self.world.start_chat()
        client.disconnect()
        self.world.reactor.advance(0)
        self.assertEqual(self.count("requests_total", "chat", "none", "client left"), 1)
        self.assertEqual(self.count("first_byte_seconds_count", "chat"), 0)

    def test_input_that_is_no_request(self) -> None:
        client = self.world.client()
        client.send("nonsense\r\n\r\n")
        self.assertEqual(self.count("requests_total", "none", "400", "failed"), 1)

    def test_current_state(self) -> None:
        self.world.start_chat()
        waiting = self.world.client()
        waiting.post("/v1/chat/completions", chat())
        samples = self.metrics()
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
            self.assertEqual(samples[f"blockops_{name}", frozenset()], value, name)
        ratio = samples["blockops_memory_available_ratio", frozenset()]
        self.assertTrue(0 < ratio < 1, ratio)
        self.assertGreater(samples["process_resident_memory_bytes", frozenset()], 1 << 20)
        self.assertGreater(samples["process_open_fds", frozenset()], 1)

    def test_each_number_in_health_is_a_metric(self) -> None:
        health = self.world.client()
        health.get("/health")
        numbers = [value for value in health.json().values() if isinstance(value, int | float)]
        families = list(StatusCollector(health.json).collect())
        # The state of the circuit breaker is a metric too, but no number.
        self.assertEqual(len(families), len(numbers) + 1)

    def test_clients_cannot_create_labels(self) -> None:
        for number in range(20):
            client = self.world.client()
            client.get(f"/v1/models/made-up-{number}", X_Session_Id=f"made-up-{number}")
            self.world.backend().respond({"data": []}, f"{460 + number} Made up")
        samples = self.metrics()
        self.assertNotIn("made-up", str(samples))
        labels = set().union(*(each for name, each in samples if name == "blockops_requests_total"))
        self.assertEqual(labels, {"4xx", "model", "failed"})


class ApiKeyTests(MetricsTestCase):
    def setUp(self) -> None:
        path = Path(self.mktemp())
        path.write_text("alice: sk-one\nbob: sk-two")
        self.settings = {"api_keys_file": path}
        self.world = World(**self.settings)

    def test_by_name_of_the_key(self) -> None:
        client = self.world.client()
        body = chat(stream=False)
        client.post("/v1/chat/completions", body, Authorization="Bearer sk-two")
        answer = {"choices": [{"index": 0, "message": {"content": "Hi"}}], "usage": USAGE}
        self.world.backend().respond(answer)
        samples = self.metrics()
        self.assertEqual(samples["blockops_key_requests_total", frozenset({"bob"})], 1)
        self.assertEqual(samples["blockops_key_tokens_total", frozenset({"bob", "prompt"})], 100)
        self.assertEqual(samples["blockops_key_tokens_total", frozenset({"bob", "completion"})], 7)
        self.assertNotIn("sk-", str(samples))

    def test_no_metrics_without_a_key(self) -> None:
        for headers in ({}, {"Authorization": "Bearer sk-o"}):
            client = self.world.client()
            client.get("/metrics", **headers)
            self.assertEqual(client.status(), 401)
        self.assertEqual(self.count("requests_total", "none", "401", "failed"), 2)


class UnusualValueTests(SynchronousTestCase):
    """Unusual values from backends and from dialects of plugins."""

    def metrics(self, records: list[ResponseRecord]) -> list[Metric]:
        metrics = Metrics(dict)
        for record in records:
            metrics.request_finished("chat", record, heartbeats=0, api_key_owner="", report=None)
        return list(text_string_to_metric_families(metrics.render().decode()))

    @given(
        st.dictionaries(
            st.sampled_from(["prompt_tokens", "completion_tokens"]),
            st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.floats(),
        )
    )
    def test_usage(self, usage: dict[str, Any]) -> None:
        for family in self.metrics([ResponseRecord(id="1", usage=usage)]):
            for sample in family.samples:
                if sample.name == "blockops_tokens_total":
                    self.assertGreaterEqual(sample.value, 0)

    def test_usage_out_of_range(self) -> None:
        families = self.metrics([ResponseRecord(id="1", usage={"prompt_tokens": 10**400})])
        samples = {each.name: each.samples for each in families}
        self.assertEqual(samples["blockops_tokens"], [])

    def test_many_events(self) -> None:
        names = [
            "Bad name",
            "x" * 50,
            *(f"event_{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(200)),
        ]
        families = self.metrics([ResponseRecord(id="1", tally={name: 1}) for name in names])
        counted = {
            sample.labels["event"]: sample.value
            for family in families
            for sample in family.samples
            if sample.name == "blockops_parser_events_total"
        }
        self.assertLessEqual(len(counted), MAX_EVENTS + 1)
        self.assertEqual(sum(counted.values()), len(names))
        self.assertNotIn("Bad name", counted)

    def test_the_bounds_of_buckets(self) -> None:
        for end in BUCKETS:
            families = self.metrics([ResponseRecord(id="1", last_byte_ms=1000 * end)])
            counts = {
                sample.labels["le"]: sample.value
                for family in families
                for sample in family.samples
                if sample.name == "blockops_request_seconds_bucket"
            }
            self.assertEqual(sum(counts.values()), len(BUCKETS) - BUCKETS.index(end) + 1)
            self.assertEqual(counts[str(float(end))], 1)


class AdminListenTests(MetricsTestCase):
    def setUp(self) -> None:
        path = Path(self.mktemp())
        path.write_text("alice: sk-one")
        self.keys = path
        self.world = World(admin_listen=("tcp:9:interface=127.0.0.1",))

    def get(self, target: str, to: str = "127.0.0.1", **headers: str) -> Client:
        address = IPv4Address("TCP", "192.0.2.1", 50000)
        client = Client(self.world.reactor, self.world.daemon.status_site.buildProtocol(address))
        client.wire.hostAddr = IPv4Address("TCP", to, 9)
        client.get(target, **headers)
        return client

    def test_the_address(self) -> None:
        ports = [(port, interface) for port, _, _, interface in self.world.reactor.tcpServers]
        self.assertEqual(ports, [(8080, "127.0.0.1"), (9, "127.0.0.1")])

    def test_status_routes(self) -> None:
        self.assertEqual(self.get("/metrics").status(), 200)
        self.assertIn("running", self.get("/health").json())
        ready = self.get("/ready")
        self.world.backend().respond(b"{}")
        self.assertEqual(ready.status(), 200)

    def test_no_other_routes(self) -> None:
        for target in (
            "/",
            "/v1/models",
            "/v1/chat/completions",
            "/metrics/x",
            "/health/x",
            "/x/y",
        ):
            client = self.get(target)
            self.assertEqual(client.status(), 404, target)
            self.assertIn("This address serves only /metrics", client.error()["message"])
        client = self.get("/health")
        client.wire.clear()
        client.post("/v1/chat/completions", chat())
        self.assertEqual(client.status(), 404)
        self.assertEqual(self.world.connection_attempts(), 0)

    def test_no_details_on_the_client_address(self) -> None:
        for settings in ({}, {"api_keys_file": self.keys}):
            self.world = World(admin_listen=("tcp:9:interface=127.0.0.1",), **settings)
            client = self.world.client()
            client.get("/metrics", Authorization="Bearer sk-one")
            self.assertEqual(client.status(), 404)
            client = self.world.client()
            client.get("/health", Authorization="Bearer sk-one")
            self.assertEqual(set(client.json()), {"status", "version"})

    def test_no_key_on_loopback(self) -> None:
        self.world = World(admin_listen=("tcp:9:interface=127.0.0.1",), api_keys_file=self.keys)
        self.assertEqual(self.get("/metrics").status(), 200)
        self.assertIn("running", self.get("/health").json())
        self.assertEqual(self.get("/metrics", to="192.168.1.5").status(), 401)
        with_key = self.get("/metrics", to="192.168.1.5", Authorization="Bearer sk-one")
        self.assertEqual(with_key.status(), 200)

    def test_no_details_without_a_key_on_a_public_address(self) -> None:
        self.world = World(admin_listen=("tcp:9",), api_keys_file=self.keys)
        self.assertEqual(set(self.get("/health", to="192.168.1.5").json()), {"status", "version"})

    def test_cross_origin_requests_are_rejected(self) -> None:
        self.assertEqual(self.get("/metrics", Origin="http://evil.example").status(), 403)
        client = self.get("/x")
        client.wire.clear()
        client.send("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        self.assertEqual(client.error()["code"], "host_not_allowed")

    def test_closes_with_the_daemon(self) -> None:
        idle = self.get("/health")
        stopped = self.world.stop()
        self.world.reactor.pump([0, 0, 0])
        self.assertTrue(idle.wire.closed)
        self.assertTrue(stopped())
        self.assertEqual(self.world.reactor.getDelayedCalls(), [])
