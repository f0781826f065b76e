"""
What `twistd blockops` starts.

The shell's completion imports this module at each press of the key, and the reactor is chosen only
after it is imported: so it imports little, and what needs the reactor only when it is called.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

from twisted.application.service import IService

from blockops.cli.options import Options as CommandLine
from blockops.daemon.signals import hold_hangup


class Options(CommandLine):
    """The command line. Who reads it is going to start the daemon."""

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        hold_hangup()
        super().parseOptions(options)


def makeService(options: CommandLine) -> IService:
    """
    Return the daemon that `options` describe; the reactor is handed on from here alone.

    :raises SystemExit: the daemon cannot be as it is wished, told in one line
    """
    from twisted.internet import reactor  # noqa: PLC0415
    from twisted.internet.endpoints import serverFromString  # noqa: PLC0415

    settings = options.settings
    given = {"listen": settings.listen, "admin-listen": settings.admin_listen}
    for name, endpoint in ((name, each) for name, several in given.items() for each in several):
        try:
            serverFromString(reactor, endpoint)
        except Exception as error:  # noqa: BLE001 - each type of endpoint has its own
            raise SystemExit(f"blockops: {name}: {endpoint!r} is not accepted: {error}") from None
    from blockops.daemon.service import make_service  # noqa: PLC0415

    reactor.callWhenRunning(settle)
    try:
        return make_service(options.settings, reactor, options.read)
    except ValueError as error:  # a plugin with a format that is none, a file that is no PEM
        raise SystemExit(f"blockops: {error}") from None


def settle() -> None:
    """
    Let the garbage collector leave alone what is here: it is here to stay.

    It is 60,000 objects. To look at them all, as it does now and then, held each stream up for 20
    to 50 ms.
    """
    gc.collect()
    gc.freeze()
