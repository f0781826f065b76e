"""A backend that is out of reach: what it costs those who ask, and how it comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.error import DNSLookupError, TimeoutError  # noqa: A004
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from blockops.errors import ApiError
from blockops.upstream.backend import pauses
from blockops.upstream.circuit_breaker import Circuit, State
from blockops.upstream.client import Unreached
from tests.faults.client import request
from tests.faults.daemon import CLOCK, House, until
from tests.faults.reading import judge
from tests.faults.scripts import well
from tests.faults.steps import Send
from tests.world import DONE, NOTHING_LEFT, Client, World, chat, chunk

ONCE = {"circuit_after": 1, "connect_retries": 0}


class Table(SynchronousTestCase):
    """The states, one by one."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.dismissed: list[ApiError] = []
        self.circuit = self.make()

    def make(self, after: int = 2) -> Circuit:
        return Circuit(self.clock, after=after, pause=5, dismiss=self.dismiss)

    def dismiss(self, verdict: Callable[[], ApiError]) -> None:
        self.dismissed.append(verdict())

    def try_once(self, failure: Exception | None = None) -> None:
        """Ask the backend, as a request does; `failure` is how that ends."""
        try:
            with self.circuit.attempt():
                if failure is not None:
                    raise failure
        except ApiError as error:
            if error is not failure:
                raise

    def fail(self, times: int = 1) -> None:  # type: ignore[override]
        for _ in range(times):
            self.try_once(Unreached(502, "Nobody there."))

    def refusal(self) -> ApiError:
        return cast("ApiError", self.assertRaises(ApiError, self.circuit.check))

    def test_it_opens_after_so_many_failures_in_a_row(self) -> None:
        self.fail()
        self.assertIs(self.circuit.state, State.CLOSED)
        self.circuit.check()
        self.fail()
        self.assertIs(self.circuit.state, State.OPEN)
        error = self.refusal()
        self.assertEqual(
            (error.status, error.code, error.type, error.retry_after),
            (503, "backend_unreachable", "server_error", 5),
        )
        self.assertEqual(
            error.message,
            "Nobody there. It is out of reach since 1970-01-01T00:00:00+00:00. Ask again in 5 "
            "seconds.",
        )

    def test_a_connection_breaks_the_row(self) -> None:
        for good in (None, ApiError(502, "It went away later.")):
            self.fail()
            self.try_once(good)
        self.fail()
        self.assertIs(self.circuit.state, State.CLOSED)

    def test_other_ends_say_nothing(self) -> None:
        self.fail()
        self.assertRaises(KeyError, self.try_once, KeyError())
        self.fail()
        self.assertIs(self.circuit.state, State.OPEN)

    def test_never(self) -> None:
        self.circuit = self.make(after=0)
        self.fail(1000)
        self.circuit.check()

    def test_all_who_wait_are_told(self) -> None:
        self.fail(2)
        self.assertEqual([error.status for error in self.dismissed], [503])

    def test_nothing_is_tried_before_the_pause_is_over(self) -> None:
        self.fail(2)
        self.clock.advance(4.5)
        self.assertEqual(self.refusal().retry_after, 1)
        self.assertRaises(ApiError, self.try_once)
        self.clock.advance(0.5)
        self.circuit.check()
        self.assertIs(self.circuit.state, State.OPEN)
        self.try_once()
        self.assertIs(self.circuit.state, State.CLOSED)

    def test_one_tries_for_all(self) -> None:
        self.fail(2)
        self.clock.advance(5)
        with self.circuit.attempt():
            self.assertIs(self.circuit.state, State.TRYING)
            self.assertRaises(ApiError, self.try_once)
            self.assertEqual(self.refusal().retry_after, 1)
            self.circuit.connected()
            self.try_once()
        self.assertIs(self.circuit.state, State.CLOSED)

    def test_a_trial_that_fails(self) -> None:
        self.fail(2)
        self.clock.advance(5)
        self.fail()
        self.assertEqual(self.refusal().retry_after, 5)
        self.assertEqual(len(self.dismissed), 2)
        self.clock.advance(5)
        self.circuit.check()

    def test_a_trial_that_is_given_up_is_anothers(self) -> None:
        self.fail(2)
        self.clock.advance(5)
        self.assertRaises(KeyError, self.try_once, KeyError())
        self.circuit.check()
        self.fail()
        self.assertIs(self.circuit.state, State.OPEN)
        self.refusal()

    def test_those_that_began_before(self) -> None:
        with self.circuit.attempt():
            self.fail(2)
        self.assertIs(self.circuit.state, State.CLOSED)
        with self.assertRaises(Unreached), self.circuit.attempt():
            self.fail(2)
            self.clock.advance(4)
            raise Unreached(502, "It too.")
        self.assertEqual(self.refusal().retry_after, 1)

    def test_it_is_no_trial_that_fails_while_another_is(self) -> None:
        with self.assertRaises(Unreached), self.circuit.attempt():
            self.fail(2)
            self.clock.advance(5)
            trial = self.circuit.attempt()
            trial.__enter__()
            raise Unreached(502, "It began before.")
        self.assertIs(self.circuit.state, State.TRYING)
        trial.__exit__(None, None, None)
        self.assertIs(self.circuit.state, State.CLOSED)

    def test_one_line_when_it_opens_and_one_when_it_closes(self) -> None:
        with capturedLogs() as events:
            self.fail(2)
            for _ in range(3):
                self.clock.advance(5)
                self.fail()
            self.clock.advance(5)
            self.try_once()
            self.try_once()
        opened, closed = [event["log_format"].format(**event) for event in events]
        self.assertEqual(
            opened,
            "Nobody there. After 2 attempts in a row, requests are refused until it can be reached"
            " again.",
        )
        self.assertEqual(closed, "The backend can be reached again, after 20 seconds")

    def test_vitals(self) -> None:
        def told(state: str, opened: int, seconds: int | None) -> dict[str, object]:
            return {
                "circuit": state,
                "circuit_opened": opened,
                "backend_unreachable_seconds": seconds,
            }

        self.assertEqual(self.circuit.vitals(), told("closed", 0, None))
        self.fail()
        self.clock.advance(1)
        self.assertEqual(self.circuit.vitals(), told("closed", 0, None))
        self.fail()
        self.clock.advance(5)
        self.assertEqual(self.circuit.vitals(), told("open", 1, 6))
        with self.circuit.attempt():
            self.assertEqual(self.circuit.vitals(), told("half-open", 1, 6))
        self.assertEqual(self.circuit.vitals(), told("closed", 1, None))


class Retries(SynchronousTestCase):
    """Requests whose backend is being restarted."""

    def ask(self, world: World, **fields: Any) -> Client:
        client = world.client()
        client.post("/v1/chat/completions", chat(**fields))
        return client

    def test_a_backend_that_is_back_in_time(self) -> None:
        world = World()
        client = self.ask(world)
        for pause in (0.5, 1.0):
            tried = world.connecting()
            world.refuse()
            world.pass_time(pause - 0.25, step=0.25)
            self.assertEqual(world.connecting(), tried)
            world.pass_time(0.25, step=0.25)
            self.assertEqual(world.connecting(), tried + 1)
        backend = world.backend()
        backend.begin_stream()
        backend.stream(chunk("hello", role="assistant"), chunk(finish="stop"), DONE)
        world.reactor.advance(0)
        self.assertEqual(client.events()[-1], "[DONE]")
        self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_a_backend_that_is_not(self) -> None:
        world = World()
        client = self.ask(world)
        for _ in range(3):
            self.assertEqual(client.status(), 0)
            world.refuse()
            world.pass_time(2)
        self.assertEqual((client.status(), client.error()["code"]), (502, "backend_unreachable"))
        self.assertEqual(world.connecting(), 3)
        self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_none(self) -> None:
        world = World(connect_retries=0)
        client = self.ask(world)
        world.refuse()
        self.assertEqual(client.status(), 502)

    def test_a_name_that_is_not_found_is_looked_for_again(self) -> None:
        world = World()
        self.ask(world)
        world.refuse(reason=DNSLookupError())
        world.pass_time(1)
        self.assertEqual(world.connecting(), 2)

    def test_one_that_did_not_accept_in_time_had_time_enough(self) -> None:
        world = World()
        client = self.ask(world)
        world.refuse(reason=TimeoutError())
        self.assertEqual(client.status(), 504)
        world.pass_time(5)
        self.assertEqual(world.connecting(), 1)

    def test_what_may_have_reached_the_backend_is_not_sent_again(self) -> None:
        world = World()
        client, backend = world.ask()
        backend.leave()
        world.pass_time(5)
        self.assertEqual(client.status(), 502)
        self.assertEqual(world.connecting(), 1)

    def test_a_client_that_leaves_ends_them(self) -> None:
        world = World()
        client = self.ask(world)
        world.refuse()
        client.leave()
        world.pass_time(5)
        self.assertEqual(world.connecting(), 1)
        self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_they_end_with_the_time_for_the_first_byte(self) -> None:
        world = World(connect_retries=100, first_byte_timeout=10, circuit_after=0)
        client = self.ask(world, stream=False)
        while not client.status():
            world.refuse()
            world.pass_time(4)
        self.assertEqual(client.status(), 504)
        self.assertEqual(client.error()["code"], "backend_timeout")
        self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_heartbeats_meanwhile(self) -> None:
        world = World(connect_retries=5, heartbeat=2, circuit_after=0)
        client = self.ask(world)
        for _ in range(3):
            world.refuse()
            world.pass_time(2)
        self.assertIn(b": heartbeat", client.body())

    def test_bodies_that_stream_up(self) -> None:
        world = World()
        client = world.client()
        client.post("/v1/embeddings", {"input": "hello"})
        world.refuse()
        world.pass_time(0.5)
        backend = world.backend()
        self.assertEqual(backend.asked(), {"input": "hello"})
        backend.answer({"data": []})
        self.assertEqual(client.status(), 200)

    def test_pauses_grow_to_a_bound(self) -> None:
        self.assertEqual(list(pauses(6)), [0.5, 1.0, 2.0, 4.0, 4.0, 4.0])


class Refusing(SynchronousTestCase):
    """Requests to a backend that stays out of reach."""

    def ask(self, world: World) -> Client:
        client = world.client()
        client.post("/v1/chat/completions", chat())
        return client

    def opened(self, **settings: Any) -> World:
        world = World(**{**ONCE, **settings})
        self.ask(world)
        world.refuse()
        return world

    def vitals(self, world: World) -> tuple[str, int]:
        client = world.client()
        client.get("/health")
        return client.json()["circuit"], client.json()["circuit_opened"]

    def assert_refused(self, client: Client) -> None:
        self.assertEqual(client.status(), 503)
        self.assertEqual(client.error()["code"], "backend_unreachable")
        self.assertIn("since 1970-", client.error()["message"])
        self.assertGreater(int(client.headers()["retry-after"]), 0)

    def test_at_once(self) -> None:
        world = self.opened()
        for target in ("chat/completions", "completions", "embeddings"):
            client = world.client()
            client.post(f"/v1/{target}", {"prompt": "hi", **chat()})
            self.assert_refused(client)
        client = world.client()
        client.get("/v1/models")
        self.assert_refused(client)
        self.assertEqual(world.connecting(), 1)
        self.assertEqual(self.vitals(world), ("open", 1))
        self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_the_request_whose_failure_opens_it_is_told_to_come_again(self) -> None:
        world = World(circuit_after=2, connect_retries=2)
        client = self.ask(world)
        world.refuse()
        world.pass_time(1)
        world.refuse()
        self.assert_refused(client)

    def test_one_that_pauses_meanwhile(self) -> None:
        world = World(circuit_after=2, connect_retries=2)
        clients = [self.ask(world), self.ask(world)]
        world.refuse(0)
        world.refuse(1)
        world.pass_time(1)
        for client in clients:
            self.assert_refused(client)
        self.assertEqual(world.connecting(), 2)

    def test_by_default_the_second_request_opens_it(self) -> None:
        world = World()
        for status in (502, 503):
            client = self.ask(world)
            while not client.status():
                world.refuse()
                world.pass_time(2)
            self.assertEqual(client.status(), status)
        self.assertEqual(world.connecting(), 5)

    def test_the_queue_is_told_too(self) -> None:
        world = World(**ONCE, max_concurrent=2)
        stream, backend = world.ask()
        backend.begin_stream()
        failing = self.ask(world)
        waiting = [self.ask(world) for _ in range(3)]
        world.refuse()
        self.assertEqual(failing.status(), 502)
        for client in waiting:
            self.assert_refused(client)
        backend.stream(chunk("on", role="assistant"), chunk(finish="stop"), DONE)
        world.reactor.advance(0)
        self.assertEqual(stream.events()[-1], "[DONE]")
        self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_it_closes_as_soon_as_the_trial_is_connected(self) -> None:
        world = self.opened()
        world.pass_time(5)
        self.ask(world)
        self.assertEqual(self.vitals(world), ("half-open", 1))
        self.assert_refused(self.ask(world))
        world.backend()
        self.assertEqual(self.vitals(world), ("closed", 1))
        self.ask(world)
        self.assertEqual(world.connecting(), 3)

    def test_a_trial_that_is_cancelled(self) -> None:
        world = self.opened()
        world.pass_time(5)
        for _ in range(2):
            client = self.ask(world)
            self.assertEqual(self.vitals(world), ("half-open", 1))
            client.leave()
            world.reactor.advance(0)
            self.assertEqual(self.vitals(world), ("open", 1))
        self.assertEqual(world.connecting(), 3)

    def test_clients_that_leave_are_no_failures(self) -> None:
        world = World(circuit_after=2, connect_retries=0)
        for _ in range(5):
            self.ask(world).leave()
            world.reactor.advance(0)
        self.assertEqual(self.vitals(world), ("closed", 0))

    def test_backends_that_refuse_or_fail_are_within_reach(self) -> None:
        world = World(**ONCE)
        for answer in ("503 Loading", "404 Not Found"):
            client, backend = world.ask()
            backend.answer(b"no", answer)
            self.assertEqual(client.status(), int(answer[:3]))
        client, backend = world.ask()
        backend.leave()
        self.assertEqual(client.status(), 502)
        self.assertEqual(self.vitals(world), ("closed", 0))

    def test_blockops_own_questions_are_no_failures(self) -> None:
        world = World(**ONCE)
        client = world.client()
        client.get("/ready")
        world.refuse()
        self.assertEqual((client.status(), client.error()["code"]), (503, "backend_unreachable"))
        self.assertEqual(self.vitals(world), ("closed", 0))
        client = world.client()
        client.post("/v1/chat/completions", chat(messages=[{"role": "user", "content": "/new"}]))
        world.refuse()
        self.assertEqual(client.status(), 200)
        self.assertEqual(world.connecting(), 2)
        self.assertEqual(self.vitals(world), ("closed", 0))

    def test_ready_says_since_when(self) -> None:
        world = self.opened()
        client = world.client()
        client.get("/ready")
        self.assert_refused(client)
        self.assertIn("Is it running", client.error()["message"])
        self.assertEqual(world.connecting(), 1)

    def test_ready_asks_when_the_pause_is_over(self) -> None:
        """Else a balancer that waits for it would send no request that could be the trial."""
        world = self.opened()
        world.pass_time(5)
        client = world.client()
        client.get("/ready")
        world.backend().answer({"data": []})
        self.assertEqual(client.status(), 200)
        self.assertEqual(self.vitals(world), ("closed", 1))

    def test_ready_takes_no_trial(self) -> None:
        world = self.opened()
        world.pass_time(5)
        ready = world.client()
        ready.get("/ready")
        self.ask(world)
        self.assertEqual(world.connecting(), 3)
        self.assertEqual(self.vitals(world), ("half-open", 1))
        world.refuse(1)
        self.assertEqual(ready.status(), 503)
        self.assertEqual(self.vitals(world), ("half-open", 1))


class OverSockets(TestCase):
    """A backend that is really restarted."""

    timeout = 60

    async def test_no_request_fails(self) -> None:
        # More patience than by default, for a machine that has much to do.
        patience = {"connect_retries": 8, "circuit_after": 100}
        house = House(self, lambda asked: well(asked.streams), **patience)
        await house.pause_backend()
        clients = [await house.client() for _ in range(3)]
        for stream, client in zip((True, False, True), clients, strict=True):
            client.play([Send(request(chat(stream=stream), Connection="close"))])
        await until(lambda: len(house.daemon.gateway) == 3)
        house.resume_backend()
        for client in clients:
            await client.over
            self.assertEqual(judge(bytes(client.received), closed=True).outcome, "whole")
        await house.empty()

    async def test_one_that_stays_away_comes_back(self) -> None:
        house = House(self, lambda asked: well(asked.streams), circuit_pause=0.3, circuit_after=1)
        await house.pause_backend()
        seen = []
        for there in (False, False, True):
            if there:
                house.resume_backend()
                await deferLater(CLOCK, 0.4)
            client = await house.client()
            client.play([Send(request(chat(), Connection="close"))])
            await client.over
            seen.append(judge(bytes(client.received), closed=True).outcome)
        self.assertEqual(seen, [*2 * ["503 backend_unreachable"], "whole"])
        await house.empty()
