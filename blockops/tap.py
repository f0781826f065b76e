"""
The entry point of `twistd blockops`.

zsh imports this module at each completion, and twistd selects the reactor after importing it.
Therefore it imports little, and the reactor only inside a function.
"""

from __future__ import annotations

import gc

from twisted.application.service import IService

from blockops.cli.options import Options
from blockops.settings.types import ENDPOINTS


def makeService(options: Options) -> IService:
    """Return the daemon that `options` describe; exit with one line if it cannot be built."""
    from twisted.internet import reactor  # noqa: PLC0415
    from twisted.internet.endpoints import serverFromString  # noqa: PLC0415

    settings = options.settings
    for name, endpoints in (("listen", settings.listen), ("admin-listen", settings.admin_listen)):
        for endpoint in endpoints:
            try:
                serverFromString(reactor, endpoint)
            except Exception as error:  # noqa: BLE001 - each endpoint type raises another
                raise SystemExit(
                    f"blockops: {name}: {endpoint!r} is not accepted: {error}; give"
                    f" {ENDPOINTS.accepts}"
                ) from None
    from blockops.daemon.service import make_service  # noqa: PLC0415

    reactor.callWhenRunning(freeze_gc)
    try:
        return make_service(settings, reactor, options.read_settings)
    except ValueError as error:
        # A plugin's dialect is invalid, or --backend-ca has no valid certificate.
        raise SystemExit(f"blockops: {error}") from None


def freeze_gc() -> None:
    """
    Exclude the objects created at start (60,000) from garbage collection.

    Otherwise each full collection pauses all streams for 20 to 50 ms.
    """
    gc.collect()
    gc.freeze()
