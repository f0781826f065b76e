"""An unreachable backend: retries, rejections by the circuit breaker, and recovery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.error import DNSLookupError, TimeoutError  # noqa: A004
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from blockops.errors import ApiError
from blockops.upstream.backend import backoff_delays
from blockops.upstream.circuit_breaker import CircuitBreaker, State
from blockops.upstream.client import ConnectError
from tests.faults.client import encode_request
from tests.faults.daemon import CLOCK, RunningDaemon, wait_until
from tests.faults.responses import judge
from tests.faults.scripts import good_response
from tests.faults.steps import Send
from tests.world import DONE, IDLE, Client, World, chat, chunk

ONCE = {"circuit_after": 1, "connect_retries": 0}


class StateTests(SynchronousTestCase):
    """The state table of `blockops.upstream.circuit_breaker`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.rejections: list[ApiError] = []
        self.breaker = self.make()

    def make(self, failure_threshold: int = 2) -> CircuitBreaker:
        return CircuitBreaker(
            self.clock,
            failure_threshold=failure_threshold,
            reset_timeout=5,
            reject_waiting=self.reject_waiting,
        )

    def reject_waiting(self, make_error: Callable[[], ApiError]) -> None:
        self.rejections.append(make_error())

    def request(self, failure: Exception | None = None) -> None:
        """Run a guarded request, which ends with `failure` or succeeds."""
        try:
            with self.breaker.guard():
                if failure is not None:
                    raise failure
        except ApiError as error:
            if error is not failure:
                raise

    def fail(self, times: int = 1) -> None:  # type: ignore[override]
        for _ in range(times):
            self.request(ConnectError(502, "It is down."))

    def rejection(self) -> ApiError:
        return cast("ApiError", self.assertRaises(ApiError, self.breaker.check))

    def test_opens_after_consecutive_failures(self) -> None:
        self.fail()
        self.assertIs(self.breaker.state, State.CLOSED)
        self.breaker.check()
        self.fail()
        self.assertIs(self.breaker.state, State.OPEN)
        error = self.rejection()
        self.assertEqual(
            (error.status, error.code, error.type, error.retry_after),
            (503, "backend_unreachable", "server_error", 5),
        )
        self.assertEqual(
            error.message,
            "It is down. It has been unreachable since 1970-01-01T00:00:00+00:00. Retry in 5 "
            "seconds.",
        )

    def test_a_connection_resets_the_count(self) -> None:
        for outcome in (None, ApiError(502, "It failed after the connection.")):
            self.fail()
            self.request(outcome)
        self.fail()
        self.assertIs(self.breaker.state, State.CLOSED)

    def test_other_exceptions_do_not_reset_the_count(self) -> None:
        self.fail()
        self.assertRaises(KeyError, self.request, KeyError())
        self.fail()
        self.assertIs(self.breaker.state, State.OPEN)

    def test_a_threshold_of_zero_never_opens(self) -> None:
        self.breaker = self.make(failure_threshold=0)
        self.fail(1000)
        self.breaker.check()

    def test_queued_requests_are_rejected(self) -> None:
        self.fail(2)
        self.assertEqual([error.status for error in self.rejections], [503])

    def test_no_request_passes_before_the_reset_timeout(self) -> None:
        self.fail(2)
        self.clock.advance(4.5)
        self.assertEqual(self.rejection().retry_after, 1)
        self.assertRaises(ApiError, self.request)
        self.clock.advance(0.5)
        self.breaker.check()
        self.assertIs(self.breaker.state, State.OPEN)
        self.request()
        self.assertIs(self.breaker.state, State.CLOSED)

    def test_one_trial_at_a_time(self) -> None:
        self.fail(2)
        self.clock.advance(5)
        with self.breaker.guard():
            self.assertIs(self.breaker.state, State.HALF_OPEN)
            self.assertRaises(ApiError, self.request)
            self.assertEqual(self.rejection().retry_after, 1)
            self.breaker.record_connection()
            self.request()
        self.assertIs(self.breaker.state, State.CLOSED)

    def test_a_trial_that_fails(self) -> None:
        self.fail(2)
        self.clock.advance(5)
        self.fail()
        self.assertEqual(self.rejection().retry_after, 5)
        self.assertEqual(len(self.rejections), 2)
        self.clock.advance(5)
        self.breaker.check()

    def test_after_a_cancelled_trial_the_next_request_is_the_trial(self) -> None:
        self.fail(2)
        self.clock.advance(5)
        self.assertRaises(KeyError, self.request, KeyError())
        self.breaker.check()
        self.fail()
        self.assertIs(self.breaker.state, State.OPEN)
        self.rejection()

    def test_requests_that_started_before_it_opened(self) -> None:
        with self.breaker.guard():
            self.fail(2)
        self.assertIs(self.breaker.state, State.CLOSED)
        with self.assertRaises(ConnectError), self.breaker.guard():
            self.fail(2)
            self.clock.advance(4)
            raise ConnectError(502, "It is still down.")
        self.assertEqual(self.rejection().retry_after, 1)

    def test_a_failure_of_another_request_during_a_trial(self) -> None:
        with self.assertRaises(ConnectError), self.breaker.guard():
            self.fail(2)
            self.clock.advance(5)
            trial = self.breaker.guard()
            trial.__enter__()
            raise ConnectError(502, "It started before.")
        self.assertIs(self.breaker.state, State.HALF_OPEN)
        trial.__exit__(None, None, None)
        self.assertIs(self.breaker.state, State.CLOSED)

    def test_one_log_line_for_opening_and_one_for_closing(self) -> None:
        with capturedLogs() as events:
            self.fail(2)
            for _ in range(3):
                self.clock.advance(5)
                self.fail()
            self.clock.advance(5)
            self.request()
            self.request()
        opened, closed = [event["log_format"].format(**event) for event in events]
        self.assertEqual(
            opened,
            "It is down. After 2 consecutive failures, requests are rejected until the backend is"
            " reachable again.",
        )
        self.assertEqual(closed, "The backend is reachable again, after 20 seconds")

    def test_status(self) -> None:
        def expected(state: str, opened: int, seconds: int | None) -> dict[str, object]:
            return {
                "circuit": state,
                "circuit_opened": opened,
                "backend_unreachable_seconds": seconds,
            }

        self.assertEqual(self.breaker.status(), expected("closed", 0, None))
        self.fail()
        self.clock.advance(1)
        self.assertEqual(self.breaker.status(), expected("closed", 0, None))
        self.fail()
        self.clock.advance(5)
        self.assertEqual(self.breaker.status(), expected("open", 1, 6))
        with self.breaker.guard():
            self.assertEqual(self.breaker.status(), expected("half-open", 1, 6))
        self.assertEqual(self.breaker.status(), expected("closed", 1, None))


class RetryTests(SynchronousTestCase):
    """Requests while the backend restarts."""

    def post(self, world: World, **fields: Any) -> Client:
        client = world.client()
        client.post("/v1/chat/completions", chat(**fields))
        return client

    def test_the_backend_is_back_in_time(self) -> None:
        world = World()
        client = self.post(world)
        for backoff_time in (0.5, 1.0):
            attempts = world.connection_attempts()
            world.refuse_connection()
            world.pass_time(backoff_time - 0.25, step=0.25)
            self.assertEqual(world.connection_attempts(), attempts)
            world.pass_time(0.25, step=0.25)
            self.assertEqual(world.connection_attempts(), attempts + 1)
        backend = world.backend()
        backend.begin_stream()
        backend.stream(chunk("hello", role="assistant"), chunk(finish="stop"), DONE)
        world.reactor.advance(0)
        self.assertEqual(client.events()[-1], "[DONE]")
        self.assertEqual(world.load(), IDLE)

    def test_the_backend_is_not_back_in_time(self) -> None:
        world = World()
        client = self.post(world)
        for _ in range(3):
            self.assertEqual(client.status(), 0)
            world.refuse_connection()
            world.pass_time(2)
        self.assertEqual((client.status(), client.error()["code"]), (502, "backend_unreachable"))
        self.assertEqual(world.connection_attempts(), 3)
        self.assertEqual(world.load(), IDLE)

    def test_no_retries(self) -> None:
        world = World(connect_retries=0)
        client = self.post(world)
        world.refuse_connection()
        self.assertEqual(client.status(), 502)

    def test_a_failed_name_resolution_is_retried(self) -> None:
        world = World()
        self.post(world)
        world.refuse_connection(reason=DNSLookupError())
        world.pass_time(1)
        self.assertEqual(world.connection_attempts(), 2)

    def test_a_connect_timeout_is_not_retried(self) -> None:
        world = World()
        client = self.post(world)
        world.refuse_connection(reason=TimeoutError())
        self.assertEqual(client.status(), 504)
        world.pass_time(5)
        self.assertEqual(world.connection_attempts(), 1)

    def test_a_request_that_may_have_reached_the_backend_is_not_retried(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.disconnect()
        world.pass_time(5)
        self.assertEqual(client.status(), 502)
        self.assertEqual(world.connection_attempts(), 1)

    def test_a_disconnect_ends_the_retries(self) -> None:
        world = World()
        client = self.post(world)
        world.refuse_connection()
        client.disconnect()
        world.pass_time(5)
        self.assertEqual(world.connection_attempts(), 1)
        self.assertEqual(world.load(), IDLE)

    def test_the_first_byte_timeout_ends_the_retries(self) -> None:
        world = World(connect_retries=100, first_byte_timeout=10, circuit_after=0)
        client = self.post(world, stream=False)
        while not client.status():
            world.refuse_connection()
            world.pass_time(4)
        self.assertEqual(client.status(), 504)
        self.assertEqual(client.error()["code"], "backend_timeout")
        self.assertEqual(world.load(), IDLE)

    def test_heartbeats_during_retries(self) -> None:
        world = World(connect_retries=5, heartbeat=2, circuit_after=0)
        client = self.post(world)
        for _ in range(3):
            world.refuse_connection()
            world.pass_time(2)
        self.assertIn(b": heartbeat", client.body())

    def test_streamed_uploads(self) -> None:
        world = World()
        client = world.client()
        client.post("/v1/embeddings", {"input": "hello"})
        world.refuse_connection()
        world.pass_time(0.5)
        backend = world.backend()
        self.assertEqual(backend.request_json(), {"input": "hello"})
        backend.respond({"data": []})
        self.assertEqual(client.status(), 200)

    def test_backoff_grows_to_its_maximum(self) -> None:
        self.assertEqual(list(backoff_delays(6)), [0.5, 1.0, 2.0, 4.0, 4.0, 4.0])


class RejectionTests(SynchronousTestCase):
    """Requests to a backend that stays unreachable."""

    def post(self, world: World) -> Client:
        client = world.client()
        client.post("/v1/chat/completions", chat())
        return client

    def opened(self, **settings: Any) -> World:
        world = World(**{**ONCE, **settings})
        self.post(world)
        world.refuse_connection()
        return world

    def circuit(self, world: World) -> tuple[str, int]:
        client = world.client()
        client.get("/health")
        return client.json()["circuit"], client.json()["circuit_opened"]

    def assert_rejected(self, client: Client) -> None:
        self.assertEqual(client.status(), 503)
        self.assertEqual(client.error()["code"], "backend_unreachable")
        self.assertIn("since 1970-", client.error()["message"])
        self.assertGreater(int(client.headers()["retry-after"]), 0)

    def test_without_an_attempt_to_connect(self) -> None:
        world = self.opened()
        for target in ("chat/completions", "completions", "embeddings"):
            client = world.client()
            client.post(f"/v1/{target}", {"prompt": "hi", **chat()})
            self.assert_rejected(client)
        client = world.client()
        client.get("/v1/models")
        self.assert_rejected(client)
        self.assertEqual(world.connection_attempts(), 1)
        self.assertEqual(self.circuit(world), ("open", 1))
        self.assertEqual(world.load(), IDLE)

    def test_the_request_that_opens_it_is_rejected_too(self) -> None:
        world = World(circuit_after=2, connect_retries=2)
        client = self.post(world)
        world.refuse_connection()
        world.pass_time(1)
        world.refuse_connection()
        self.assert_rejected(client)

    def test_a_request_in_backoff_is_rejected_when_it_opens(self) -> None:
        world = World(circuit_after=2, connect_retries=2)
        clients = [self.post(world), self.post(world)]
        world.refuse_connection(0)
        world.refuse_connection(1)
        world.pass_time(1)
        for client in clients:
            self.assert_rejected(client)
        self.assertEqual(world.connection_attempts(), 2)

    def test_by_default_the_second_request_opens_it(self) -> None:
        world = World()
        for status in (502, 503):
            client = self.post(world)
            while not client.status():
                world.refuse_connection()
                world.pass_time(2)
            self.assertEqual(client.status(), status)
        self.assertEqual(world.connection_attempts(), 5)

    def test_queued_requests_are_rejected(self) -> None:
        world = World(**ONCE, max_concurrent=2)
        stream, backend = world.start_chat()
        backend.begin_stream()
        failing = self.post(world)
        waiting = [self.post(world) for _ in range(3)]
        world.refuse_connection()
        self.assertEqual(failing.status(), 502)
        for client in waiting:
            self.assert_rejected(client)
        backend.stream(chunk("on", role="assistant"), chunk(finish="stop"), DONE)
        world.reactor.advance(0)
        self.assertEqual(stream.events()[-1], "[DONE]")
        self.assertEqual(world.load(), IDLE)

    def test_closes_when_the_trial_is_connected(self) -> None:
        world = self.opened()
        world.pass_time(5)
        self.post(world)
        self.assertEqual(self.circuit(world), ("half-open", 1))
        self.assert_rejected(self.post(world))
        world.backend()
        self.assertEqual(self.circuit(world), ("closed", 1))
        self.post(world)
        self.assertEqual(world.connection_attempts(), 3)

    def test_a_cancelled_trial(self) -> None:
        world = self.opened()
        world.pass_time(5)
        for _ in range(2):
            client = self.post(world)
            self.assertEqual(self.circuit(world), ("half-open", 1))
            client.disconnect()
            world.reactor.advance(0)
            self.assertEqual(self.circuit(world), ("open", 1))
        self.assertEqual(world.connection_attempts(), 3)

    def test_disconnects_are_no_failures(self) -> None:
        world = World(circuit_after=2, connect_retries=0)
        for _ in range(5):
            self.post(world).disconnect()
            world.reactor.advance(0)
        self.assertEqual(self.circuit(world), ("closed", 0))

    def test_error_responses_are_no_failures(self) -> None:
        world = World(**ONCE)
        for status in ("503 Loading", "404 Not Found"):
            client, backend = world.start_chat()
            backend.respond(b"no", status)
            self.assertEqual(client.status(), int(status[:3]))
        client, backend = world.start_chat()
        backend.disconnect()
        self.assertEqual(client.status(), 502)
        self.assertEqual(self.circuit(world), ("closed", 0))

    def test_probes_are_no_failures(self) -> None:
        world = World(**ONCE)
        client = world.client()
        client.get("/ready")
        world.refuse_connection()
        self.assertEqual((client.status(), client.error()["code"]), (503, "backend_unreachable"))
        self.assertEqual(self.circuit(world), ("closed", 0))
        client = world.client()
        client.post("/v1/chat/completions", chat(messages=[{"role": "user", "content": "/new"}]))
        world.refuse_connection()
        self.assertEqual(client.status(), 200)
        self.assertEqual(world.connection_attempts(), 2)
        self.assertEqual(self.circuit(world), ("closed", 0))

    def test_ready_reports_the_time_of_the_first_failure(self) -> None:
        world = self.opened()
        client = world.client()
        client.get("/ready")
        self.assert_rejected(client)
        self.assertIn("Is it running", client.error()["message"])
        self.assertEqual(world.connection_attempts(), 1)

    def test_ready_probes_after_the_reset_timeout(self) -> None:
        """Otherwise a load balancer that waits for `/ready` would send no request for a trial."""
        world = self.opened()
        world.pass_time(5)
        client = world.client()
        client.get("/ready")
        world.backend().respond({"data": []})
        self.assertEqual(client.status(), 200)
        self.assertEqual(self.circuit(world), ("closed", 1))

    def test_ready_is_no_trial(self) -> None:
        world = self.opened()
        world.pass_time(5)
        ready = world.client()
        ready.get("/ready")
        self.post(world)
        self.assertEqual(world.connection_attempts(), 3)
        self.assertEqual(self.circuit(world), ("half-open", 1))
        world.refuse_connection(1)
        self.assertEqual(ready.status(), 503)
        self.assertEqual(self.circuit(world), ("half-open", 1))


class SocketTests(TestCase):
    """A backend that restarts, over real sockets."""

    timeout = 60

    async def test_no_request_fails(self) -> None:
        # More retries than by default, for a busy machine.
        settings = {"connect_retries": 8, "circuit_after": 100}
        house = RunningDaemon(
            self, lambda request_: good_response(request_.is_streaming), **settings
        )
        await house.pause_backend()
        clients = [await house.connect() for _ in range(3)]
        for stream, client in zip((True, False, True), clients, strict=True):
            client.play([Send(encode_request(chat(stream=stream), Connection="close"))])
        await wait_until(lambda: len(house.daemon.in_flight) == 3)
        house.resume_backend()
        for client in clients:
            await client.when_closed
            self.assertEqual(judge(bytes(client.received), closed=True).outcome, "complete")
        await house.wait_until_idle()

    async def test_recovery_after_rejections(self) -> None:
        house = RunningDaemon(
            self,
            lambda request_: good_response(request_.is_streaming),
            circuit_pause=0.3,
            circuit_after=1,
        )
        await house.pause_backend()
        outcomes = []
        for is_running in (False, False, True):
            if is_running:
                house.resume_backend()
                await deferLater(CLOCK, 0.4)
            client = await house.connect()
            client.play([Send(encode_request(chat(), Connection="close"))])
            await client.when_closed
            outcomes.append(judge(bytes(client.received), closed=True).outcome)
        self.assertEqual(outcomes, [*2 * ["503 backend_unreachable"], "complete"])
        await house.wait_until_idle()
