"""
Notifies systemd of the daemon's state, by the protocol of sd_notify(3).

Each message is one datagram to the Unix socket that `NOTIFY_SOCKET` names. Without that variable
(which systemd sets for a unit with `Type=notify`) nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, MutableMapping


class SystemdNotifier:
    """
    Sends notifications to systemd. No method raises.

    :param address: the socket's path, or `@` and an abstract name; None to send nothing
    :param watchdog: seconds within which systemd expects a ping
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self._address = address
        self.watchdog = watchdog

    @classmethod
    def from_environment(
        cls, environ: MutableMapping[str, str] = os.environ, pid: int | None = None
    ) -> SystemdNotifier:
        """Return the notifier; remove its variables, so that no child process notifies systemd."""
        address = environ.pop("NOTIFY_SOCKET", None)
        microseconds = environ.pop("WATCHDOG_USEC", "")
        target = environ.pop("WATCHDOG_PID", "")
        is_target = target in ("", str(os.getpid() if pid is None else pid))
        if not is_target or not microseconds.isdecimal() or int(microseconds) == 0:
            return cls(address)
        return cls(address, int(microseconds) / 1e6)

    def ready(self, status: str = "") -> None:
        """Report that a start or reload has ended; `status` is a line for `systemctl status`."""
        self._send({"READY": "1", "STATUS": status})

    def stopping(self, status: str = "") -> None:
        """Report that the daemon has begun to stop."""
        self._send({"STOPPING": "1", "STATUS": status})

    def reloading(self) -> None:
        """Report that a reload has begun; `ready` reports its end."""
        # systemd requires the time, to tell a new reload from an earlier one (sd_notify(3)).
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send({"RELOADING": "1", "MONOTONIC_USEC": str(microseconds)})

    def ping_watchdog(self) -> None:
        """Report that the reactor runs. Call it at least twice in each `watchdog` seconds."""
        if self.watchdog is not None:
            self._send({"WATCHDOG": "1"})

    def _send(self, fields: Mapping[str, str]) -> None:
        if not self._address:
            return
        message = "\n".join(
            f"{name}={' '.join(text.split())}" for name, text in fields.items() if text
        )
        # An abstract name begins with @ in the environment, and with a null byte in the address.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                # A full socket buffer must not block the daemon.
                sender.settimeout(0)
                sender.sendto(message.encode("utf-8", "replace"), address)
        except OSError:
            return
