"""The daemon: its parts, put together; how it starts, drains and stops."""

# twisted.application.service has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from os import fsdecode, strerror
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from blockops.conversation.turn import Turns
from blockops.daemon.file_limits import needed, provide
from blockops.daemon.signals import Signals
from blockops.daemon.systemd import Supervisor
from blockops.demo.server import DemoBackend, hint
from blockops.operations.memory import MemoryGate, MemoryGauge
from blockops.operations.metrics import Metrics
from blockops.operations.ticker import Every, Pulse
from blockops.operations.traffic_log.log import NoTrafficLog, TrafficLog, secrets_of, traffic_log
from blockops.proxy.chat import Answering
from blockops.proxy.in_flight import Gateway
from blockops.proxy.routes import NAMING, make_root, make_status_root, streams_up
from blockops.server.access.api_keys import KeyRing
from blockops.server.access.cors import Origins
from blockops.server.access.policy import Access
from blockops.server.access.rejection_log import Strangers
from blockops.server.body_budget import Room
from blockops.server.connection_limit import Crowd
from blockops.server.listener import Listening, TooOpen, only_local, wherever
from blockops.server.request import IncomingRequest
from blockops.server.site import Site
from blockops.settings.table import SettingError, Settings
from blockops.upstream.admission import AdmissionQueue
from blockops.upstream.backend import Backend
from blockops.upstream.cache_purge import Purge
from blockops.upstream.circuit_breaker import Circuit
from blockops.upstream.client import Upstream
from blockops.upstream.probe import Asking, Forgetting, Tokenizer

#: The backend that is part of blockops.
DEMO = "demo"
#: Seconds from sweep to sweep, at most: how late a deadline may be noticed.
LONGEST_BEAT = 1.0
#: Connections to `--admin-listen`, and bytes of a request's body there: nobody needs any.
STATUS_CONNECTIONS = 64
STATUS_BODY = 1024
#: Seconds that clients have to read the end of their answers when blockops stops.
FLUSH = 5.0


#: Connections that the system may hold before they are taken. With Twisted's 50 a crowd that comes
#: at once overflows that, and who was dropped from it believes to be connected until it sends.
BACKLOG = 1024


class Daemon(MultiService):
    """
    blockops as a whole.

    :param signals: those of the process, if they are for this daemon
    :param read: returns the settings as the files have them now; raises `SettingError`
    :ivar site: the HTTP server
    :ivar status_site: that of `--admin-listen`
    :ivar gateway: what it serves with
    """

    _log = Logger()

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        *,
        supervisor: Supervisor | None = None,
        traffic: TrafficLog | NoTrafficLog | None = None,
        signals: Signals | None = None,
        read: Callable[[], Settings] | None = None,
    ) -> None:
        super().__init__()
        self._signals = signals
        self._read = read or (lambda: settings)
        self._supervisor = supervisor or Supervisor()
        self._settings = settings
        self._reactor = reactor
        self._demo = DemoBackend(reactor) if settings.backend == DEMO else None
        self._memory = MemoryGauge()
        self._pulse = Pulse(reactor, min(settings.heartbeat / 4, LONGEST_BEAT))
        self._admission = AdmissionQueue(
            reactor,
            slots=settings.max_concurrent,
            max_queue=settings.max_queue,
            queue_timeout=settings.queue_timeout,
        )
        self._circuit = Circuit(
            reactor,
            after=settings.circuit_after,
            pause=settings.circuit_pause,
            dismiss=self._admission.reject_waiting,
        )
        self._upstream = Upstream(
            reactor,
            settings.backend,
            key=settings.backend_key,
            ca=settings.backend_ca,
            connect_timeout=settings.connect_timeout,
            on_connected=self._circuit.connected,
        )
        self._keys = None if settings.api_keys_file is None else KeyRing(settings.api_keys_file)
        self._access = Access(self._keys, Origins(settings.cors_origin, settings.allowed_host))
        asking = Asking(reactor, self._upstream)
        self._forgetting = Forgetting(asking, settings.cache_reset)
        self._purge = Purge(reactor, self._forgetting.forget, self._forgetting.possible)
        backend = Backend(
            reactor,
            self._upstream,
            self._admission,
            gate=MemoryGate(
                self._memory, closes=settings.memory_gate, retry_after=settings.memory_poll
            ),
            circuit=self._circuit,
            retries=settings.connect_retries,
            purge=self._purge,
            max_answer=settings.max_answer,
            passes=frozenset({b"authorization"}) if settings.forward_auth else frozenset(),
        )
        self._turns = Turns(
            reactor,
            settings,
            tokenizer=Tokenizer(reactor, asking),
            purge=self._purge,
            memory=self._memory,
        )
        self._traffic = traffic or traffic_log(settings, reactor)
        metrics = Metrics(self._vitals)
        strangers = None if self._keys is None else Strangers(reactor)
        self.gateway = Gateway(
            reactor, settings, self._pulse, self._traffic, metrics, strangers=strangers
        )
        answering = Answering(
            reactor,
            settings,
            backend=backend,
            turns=self._turns,
            traffic=self._traffic,
            vitals=self._told_to,
        )
        self._crowd = Crowd(
            reactor,
            most=settings.max_connections,
            most_per_client=settings.max_connections_per_client,
        )
        self._room = Room(settings.max_queued_bytes)
        self.site = Site(
            make_root(self.gateway, answering, None if settings.admin_listen else metrics.show),
            reactor=reactor,
            # A body that there can be no room for is too large.
            max_body=min(settings.max_body, settings.max_queued_bytes),
            room=self._room,
            header_timeout=settings.header_timeout,
            streams_up=partial(streams_up, read=NAMING if settings.model_alias else ()),
            crowd=self._crowd,
            screen=self._access.screen,
            refused=self.gateway.note,
        )
        self.status_site = Site(
            make_status_root(self.gateway, answering, metrics.show),
            reactor=reactor,
            max_body=STATUS_BODY,
            room=Room(STATUS_CONNECTIONS * STATUS_BODY),
            crowd=Crowd(reactor, most=STATUS_CONNECTIONS, most_per_client=0),
            header_timeout=settings.header_timeout,
            streams_up=lambda _: False,
            screen=self._access.screen_status,
            refused=self.gateway.note,
        )
        accept = only_local if self._keys is None and not settings.insecure_public else wherever
        for endpoint in endpoints(settings):
            Listening(reactor, endpoint, self.site, accept).setServiceParent(self)
        for endpoint in settings.admin_listen:
            Listening(reactor, endpoint, self.status_site, accept).setServiceParent(self)

    def _told_to(self, request: IncomingRequest) -> dict[str, object]:
        """Return what whoever sent `request` may know of how blockops is."""
        if self._settings.admin_listen:
            here = request.channel.site is self.status_site
            trusted = here and self._access.trusts_status(request)
        else:
            trusted = self._access.trusts(request)
        return self._vitals() if trusted else {}

    def _vitals(self) -> dict[str, object]:
        return {
            "running": self._admission.running,
            "waiting": self._admission.waiting,
            **self._circuit.vitals(),
            **self._crowd.vitals(),
            **self._room.vitals(),
            "memory_available_percent": round(self._memory.percent, 1),
            "log_lines_lost": self._traffic.lost,
            **self._turns.vitals(),
            "caches_purged": self._forgetting.done,
            "purges_failed": self._forgetting.failed,
            "purges_skipped": self._purge.skipped,
        }

    def privilegedStartService(self) -> None:
        if self._demo is not None:
            self._demo.startService()
            self._upstream.url = self._demo.url
        try:
            super().privilegedStartService()
        except (CannotListenError, OSError, TooOpen) as error:
            raise SystemExit(f"blockops: {_refusal(error)}") from None

    def startService(self) -> None:
        super().startService()
        if "*" in self._settings.cors_origin and self._keys is None:
            self._log.warn(
                "--cors-origin=* without keys: every web page that somebody opens here may ask"
            )
        if self._signals is not None:
            self._signals.on_hangup(self.reload)
        self._memory.poll()
        self._traffic.start()
        self._pulse.add(self.site)
        self._pulse.add(self.status_site)
        self._pulse.add(Every(self._settings.memory_poll, self._memory.poll))
        if self._supervisor.watchdog is not None:
            self._pulse.add(Every(self._supervisor.watchdog / 3, self._supervisor.alive))
        self._pulse.start()
        # Not at once: before the reactor runs, it does not know what to do with a SIGTERM.
        self._reactor.callWhenRunning(self._ready)
        self._log.info(
            "blockops serves {backend} on {endpoints}",
            backend=self._upstream.url,
            endpoints=", ".join(endpoints(self._settings)),
        )
        plain = self._settings.port and not self._settings.listen and self._keys is None
        if self._demo is not None and plain:
            self._log.info(
                "This is the demo: a script instead of a model. To see a call, run\n{command}",
                command=hint(self._settings.interface, self._settings.port),
            )

    def _ready(self) -> None:
        self._supervisor.ready(f"serving {self._upstream.url}")

    def reload(self) -> None:
        """
        Read the keys again, those of clients and the backend's, and look at the traffic log's file.

        What cannot be read stays as it was. All other settings take a restart.
        """
        self._supervisor.reloading()
        if self._keys is not None:
            self._keys.reload()
        try:
            settings = self._read()
        except SettingError as error:
            self._log.error("The backend's key stays as it was: {error}", error=error)
        else:
            self._upstream.key = settings.backend_key
            self._traffic.reopen(secrets_of(settings))
        self._log.info("Reloaded: keys and the traffic log. Other settings take a restart")
        self._ready()

    def stopService(self) -> Deferred[None]:
        """
        Stop listening, let running answers end within `drain` seconds, and close.

        Fires when all is closed.
        """
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._supervisor.stopping("waiting for answers to end")
        if self._signals is not None:
            self._signals.on_stop(self._hasten)
        await super().stopService()
        self.site.close_idle()
        drained = self.gateway.drain()
        bounds = [
            self._reactor.callLater(self._settings.drain, self.gateway.hasten),
            self._reactor.callLater(self._settings.drain + FLUSH, self.gateway.abandon),
        ]
        await drained
        for bound in bounds:
            if bound.active():
                bound.cancel()
        await self.status_site.close(0)
        await self.site.close(FLUSH)
        self._pulse.stop()
        await self._traffic.close()
        if self._demo is not None:
            await self._demo.stopService()
        if self._signals is not None:
            self._signals.restore()

    def _hasten(self) -> None:
        self._log.info("Told to stop once more: ending the answers that are under way")
        self.gateway.hasten()


def _refusal(error: Exception) -> str:
    """Return why one cannot listen; where it is for a file's sake, with what to do about it."""
    path = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if not isinstance(path, str | bytes):
        return str(error)
    place = fsdecode(path).removesuffix(".lock")  # Twisted's, beside the socket
    why = strerror(getattr(error, "errno", 0))
    return f"cannot listen on {place}: {why}. Its folder has to be there, and writable."


def endpoints(settings: Settings) -> tuple[str, ...]:
    """Return where to listen, as Twisted's endpoint strings."""
    if settings.listen:
        return settings.listen
    family = "tcp6" if ":" in settings.interface else "tcp"
    interface = quoteStringArgument(settings.interface)
    return (f"{family}:{settings.port}:interface={interface}:backlog={BACKLOG}",)


def make_service(settings: Settings, reactor: Any, read: Callable[[], Settings]) -> IService:
    """
    Return the daemon that `settings` describe, on `reactor`.

    :param read: returns the settings as the files have them now; raises `SettingError`
    """
    need = needed(settings.max_connections)
    have = provide(need)
    if have < need:
        Logger(namespace=__name__).warn(
            "Only {have} files may be open, and --max-connections={connections} can need {need}:"
            " lower it, or raise the limit (ulimit -n, LimitNOFILE= in the unit)",
            have=have,
            connections=settings.max_connections,
            need=need,
        )
    return Daemon(
        settings,
        reactor,
        supervisor=Supervisor.from_environment(),
        signals=Signals(reactor),
        read=read,
    )
