"""The daemon as a Twisted service: start, reload, drain and stop."""

# twisted.application.service has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from errno import EADDRINUSE
from os import fsdecode, strerror
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from blockops.daemon.file_limits import raise_limit, required_descriptors
from blockops.daemon.signals import SignalHandlers
from blockops.daemon.systemd import SystemdNotifier
from blockops.daemon.wiring import Components, listen_endpoints, secrets_to_hide
from blockops.demo.server import example_command
from blockops.operations.ticker import PeriodicCall
from blockops.operations.traffic_log.log import NoTrafficLog, TrafficLog
from blockops.server.listener import Listener, PublicAddressError, allow_any, require_local
from blockops.settings.sources import SettingError
from blockops.settings.table import Settings

#: Seconds that clients have to read the end of their responses when blockops stops.
FLUSH_TIMEOUT = 5.0


class Daemon(MultiService):
    """
    The service that runs blockops.

    :param signals: None to leave the process's signals alone
    :param read_settings: called on reload, returns the current settings; raises `SettingError`
    """

    _log = Logger()

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        *,
        notifier: SystemdNotifier | None = None,
        traffic_log: TrafficLog | NoTrafficLog | None = None,
        signals: SignalHandlers | None = None,
        read_settings: Callable[[], Settings] | None = None,
    ) -> None:
        super().__init__()
        self._signals = signals
        self._read_settings = read_settings or (lambda: settings)
        self._notifier = notifier or SystemdNotifier()
        self._settings = settings
        self._reactor = reactor
        self.components = Components(settings, reactor, traffic_log)
        self.in_flight = self.components.in_flight
        self.site = self.components.site
        self.status_site = self.components.status_site
        may_be_public = self.components.api_keys is not None or settings.insecure_public
        accept = allow_any if may_be_public else require_local
        for endpoint in listen_endpoints(settings):
            Listener(reactor, endpoint, self.site, accept).setServiceParent(self)
        for endpoint in settings.admin_listen:
            Listener(reactor, endpoint, self.status_site, accept).setServiceParent(self)

    def privilegedStartService(self) -> None:
        if self.components.demo is not None:
            self.components.demo.startService()
            self.components.backend_client.url = self.components.demo.url
        try:
            super().privilegedStartService()
        except (CannotListenError, OSError, PublicAddressError) as error:
            raise SystemExit(f"blockops: {_explain_listen_error(error)}") from None

    def startService(self) -> None:
        super().startService()
        parts, settings = self.components, self._settings
        if "*" in settings.cors_origin and parts.api_keys is None:
            self._log.warn(
                "--cors-origin=* without API keys: any web page open in a browser on this machine"
                " can use the model. Set --api-keys-file, or name the origins"
            )
        if self._signals is not None:
            self._signals.on_hangup(self.reload)
        parts.memory.poll()
        parts.traffic_log.start()
        parts.ticker.add(self.site)
        parts.ticker.add(self.status_site)
        parts.ticker.add(PeriodicCall(settings.memory_poll, parts.memory.poll))
        if self._notifier.watchdog is not None:
            ping = PeriodicCall(self._notifier.watchdog / 3, self._notifier.ping_watchdog)
            parts.ticker.add(ping)
        parts.ticker.start()
        # Not before the reactor runs: until then, Twisted has no handler for SIGTERM.
        self._reactor.callWhenRunning(self._notify_ready)
        self._log.info(
            "blockops serves {backend} on {endpoints}",
            backend=parts.backend_client.url,
            endpoints=", ".join(listen_endpoints(settings)),
        )
        is_curl_enough = settings.port and not settings.listen and parts.api_keys is None
        if parts.demo is not None and is_curl_enough:
            self._log.info(
                "This is the demo: a script instead of a model. To see a tool call, run\n{command}",
                command=example_command(settings.interface, settings.port),
            )

    def _notify_ready(self) -> None:
        self._notifier.ready(f"serving {self.components.backend_client.url}")

    def reload(self) -> None:
        """Reload the keys and reopen a moved traffic log. An unreadable key keeps its value."""
        if self.running:  # A stopping daemon must not report that it is ready.
            self._notifier.reloading()
        if self.components.api_keys is not None:
            self.components.api_keys.reload()
        try:
            settings = self._read_settings()
        except SettingError as error:
            self._log.error("The backend's key is unchanged: {error}", error=error)
            self.components.traffic_log.reopen()
        else:
            self.components.backend_client.key = settings.backend_key
            self.components.traffic_log.reopen(secrets_to_hide(settings))
            self._log.info("Reloaded the keys and the traffic log. Other settings need a restart")
        if self.running:
            self._notify_ready()

    def stopService(self) -> Deferred[None]:
        """
        Stop listening, let running requests finish within `--drain` seconds, and close.

        Then the remaining clients get an error, and `FLUSH_TIMEOUT` seconds later are disconnected.
        """
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._notifier.stopping("waiting for running requests")
        if self._signals is not None:
            self._signals.on_repeated_stop(self._cancel_running)
        await super().stopService()
        self.site.close_idle()
        drained = self.in_flight.drain()
        deadlines = [
            self._reactor.callLater(self._settings.drain, self.in_flight.cancel_all),
            self._reactor.callLater(self._settings.drain + FLUSH_TIMEOUT, self.in_flight.abort_all),
        ]
        await drained
        for deadline in deadlines:
            if deadline.active():
                deadline.cancel()
        await self.status_site.close(0)
        await self.site.close(FLUSH_TIMEOUT)
        self.components.ticker.stop()
        await self.components.traffic_log.close()
        if self.components.demo is not None:
            await self.components.demo.stopService()
        if self._signals is not None:
            self._signals.restore()

    def _cancel_running(self) -> None:
        self._log.info("Received a second stop signal: ending the requests that are still running")
        self.in_flight.cancel_all()


def _explain_listen_error(error: Exception) -> str:
    if getattr(getattr(error, "socketError", None), "errno", None) == EADDRINUSE:
        return f"{error} Stop the program that uses it, or give another --port or --listen."
    path = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if not isinstance(path, str | bytes):
        return str(error)
    socket_path = fsdecode(path).removesuffix(".lock")  # Twisted's lock file
    reason = strerror(getattr(error, "errno", 0))
    return (
        f"cannot listen on {socket_path}: {reason}. Make sure that its folder exists and is"
        " writable."
    )


def make_service(
    settings: Settings, reactor: Any, read_settings: Callable[[], Settings]
) -> IService:
    """Return the daemon for this process, with its signals and systemd's watchdog."""
    needed = required_descriptors(settings.max_connections)
    limit = raise_limit(needed)
    if limit < needed:
        Logger(namespace=__name__).warn(
            "The process may open only {limit} files; --max-connections={connections} can need"
            " {needed}. Lower it, or raise the limit (ulimit -n, or LimitNOFILE= in the unit)",
            limit=limit,
            connections=settings.max_connections,
            needed=needed,
        )
    return Daemon(
        settings,
        reactor,
        notifier=SystemdNotifier.from_environment(),
        signals=SignalHandlers(reactor),
        read_settings=read_settings,
    )
