"""The command: `python -m blockops.doctor --backend URL`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from blockops.cli.doctor.diagnosis import Examination
from blockops.cli.doctor.findings import Examined, presentable
from blockops.cli.doctor.tools import QUESTION
from blockops.daemon.service import DEMO
from blockops.errors import ApiError
from blockops.settings.table import SettingError, Settings, resolve
from blockops.upstream.client import Upstream


def _arguments(command_line: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m blockops.doctor",
        description="Ask a backend a few small questions (and one for a long answer, which it is "
        "left alone with), empty its prompt cache, and say what it does and which settings of "
        "blockops fit. Best done while nobody else uses it.",
        epilog="A key for the backend comes from BLOCKOPS_BACKEND_KEY or its file from "
        "BLOCKOPS_BACKEND_KEY_FILE.",
    )
    parser.add_argument("--backend", metavar="URL", help="default: BACKEND_URL, or port 8082 here")
    parser.add_argument("--backend-ca", metavar="FILE", help="as blockops' own option")
    parser.add_argument("--model", help="which of its models to ask; default: the first it lists")
    parser.add_argument(
        "--question",
        default=QUESTION,
        help="what the model is asked with a tool on offer; default: %(default)s",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="how long one answer may take, loading the model included; default: %(default)g",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser.parse_args(command_line)


def _settings(arguments: argparse.Namespace) -> Settings:
    given = {name: getattr(arguments, name) for name in ("backend", "backend_ca")}
    try:
        settings = resolve({name: value for name, value in given.items() if value}, os.environ)
    except SettingError as error:
        raise SystemExit(f"blockops: {error}") from None
    if settings.backend == DEMO:
        raise SystemExit(
            "blockops: The demo is no server, but inside blockops, and fits it. Give the address "
            "of one: --backend http://HOST:PORT"
        )
    return settings


async def _examine(reactor: Any, arguments: argparse.Namespace, settings: Settings) -> None:
    upstream = Upstream(
        reactor,
        settings.backend,
        key=settings.backend_key,
        ca=settings.backend_ca,
        connect_timeout=settings.connect_timeout,
    )
    examination = Examination(
        reactor,
        upstream,
        model=arguments.model,
        question=arguments.question,
        patience=arguments.patience,
    )
    findings = []
    try:
        async for found in examination.findings():
            finding = found.presentable(settings.backend_key)
            findings.append(finding)
            sys.stderr.write(f"{finding.topic}: {finding.verdict}\n")
    except ApiError as error:
        message = presentable(error.message, settings.backend_key)
        raise SystemExit(f"blockops: {message}") from None
    examined = Examined(backend=settings.backend, findings=tuple(findings))
    sys.stdout.write(examined.json().decode() if arguments.json else examined.written())


def main(command_line: Sequence[str] | None = None) -> None:
    """Examine a backend and print what was found; the exit status is 1 if it does not answer."""
    arguments = _arguments(sys.argv[1:] if command_line is None else command_line)
    settings = _settings(arguments)
    react(lambda reactor: Deferred.fromCoroutine(_examine(reactor, arguments, settings)))


if __name__ == "__main__":
    main()
