"""
Tells systemd how the daemon is, by the protocol of sd_notify(3).

Each message is one datagram to the Unix socket that `NOTIFY_SOCKET` names. Without that variable,
that is outside of a unit with `Type=notify`, nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, MutableMapping


class Supervisor:
    """
    systemd, as far as it listens; nothing here raises.

    :param address: the socket's path, or `@` and an abstract name; None: nobody listens
    :param watchdog: seconds within which systemd wants a sign of life; None: it does not
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self._address = address
        self.watchdog = watchdog

    @classmethod
    def from_environment(
        cls, environ: MutableMapping[str, str] = os.environ, pid: int | None = None
    ) -> Supervisor:
        """
        Return the supervisor that `environ` names, and take its variables out of there.

        So no child takes itself for the daemon.

        :param pid: the process that is asked for, by default this one
        """
        address = environ.pop("NOTIFY_SOCKET", None)
        microseconds = environ.pop("WATCHDOG_USEC", "")
        wanted = environ.pop("WATCHDOG_PID", "")
        ours = wanted in ("", str(os.getpid() if pid is None else pid))
        if not ours or not microseconds.isdecimal() or int(microseconds) == 0:
            return cls(address)
        return cls(address, int(microseconds) / 1e6)

    def ready(self, status: str = "") -> None:
        """Say that the daemon serves; `status` is shown by `systemctl status`."""
        self._send({"READY": "1", "STATUS": status})

    def stopping(self, status: str = "") -> None:
        """Say that the daemon has begun to stop."""
        self._send({"STOPPING": "1", "STATUS": status})

    def reloading(self) -> None:
        """Say that the daemon reads again what may have changed; `ready` says that it has."""
        # systemd tells this from earlier ones by the clock: see sd_notify(3), MONOTONIC_USEC.
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send({"RELOADING": "1", "MONOTONIC_USEC": str(microseconds)})

    def status(self, status: str) -> None:
        """Say how the daemon is, for people."""
        self._send({"STATUS": status})

    def alive(self) -> None:
        """Say that the daemon is not stuck; call it at least twice in each `watchdog` seconds."""
        if self.watchdog is not None:
            self._send({"WATCHDOG": "1"})

    def _send(self, told: Mapping[str, str]) -> None:
        if not self._address:
            return
        message = "\n".join(
            f"{name}={' '.join(text.split())}" for name, text in told.items() if text
        )
        # An abstract name begins with a zero byte on the wire, and with @ in the environment.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                # A supervisor that does not read must not stop its daemon.
                sender.settimeout(0)
                sender.sendto(message.encode("utf-8", "replace"), address)
        except OSError:
            return
