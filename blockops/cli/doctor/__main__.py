"""The command: `python -m blockops.doctor --backend URL`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from blockops.cli.doctor.diagnosis import diagnose
from blockops.cli.doctor.findings import DiagnosisReport, sanitize
from blockops.cli.doctor.tools import QUESTION
from blockops.daemon.wiring import DEMO
from blockops.errors import ApiError
from blockops.settings import types
from blockops.settings.sources import SettingError, resolve
from blockops.settings.table import Settings
from blockops.settings.types import InvalidValue
from blockops.upstream.client import BackendClient

_PATIENCE = types.value_type(types.Seconds)


def _parse_patience(text: str) -> float:
    try:
        return float(_PATIENCE.parse(text))
    except InvalidValue:
        # argparse would print its usage before an error of its own.
        raise SystemExit(
            f"blockops: --patience: {text!r} is not accepted; give {_PATIENCE.accepts}"
        ) from None


def _arguments(command_line: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m blockops.doctor",
        description="Examine a backend and print the settings of blockops that fit it. The doctor "
        "sends a few small chat requests and long ones that it cancels, and empties the prompt "
        "cache. Run it while no one else uses the backend.",
        epilog="Set BLOCKOPS_BACKEND_KEY if the backend needs a key, or BLOCKOPS_BACKEND_KEY_FILE "
        "to a file that contains it.",
    )
    parser.add_argument(
        "--backend",
        metavar="URL",
        help="URL of the backend; default: BACKEND_URL, otherwise http://127.0.0.1:8082",
    )
    parser.add_argument(
        "--backend-ca",
        metavar="FILE",
        help="PEM file with the certificate of the authority that signed an https backend's "
        "certificate; default: BLOCKOPS_BACKEND_CA, otherwise the system's authorities",
    )
    parser.add_argument("--model", help="the model to use; default: the first one listed")
    parser.add_argument(
        "--question",
        default=QUESTION,
        help="the question to the model, once without and once with a tool on offer; default: "
        "%(default)s",
    )
    parser.add_argument(
        "--patience",
        type=_parse_patience,
        default=120.0,
        metavar="SECONDS",
        help="maximum time of one response, including loading the model; default: %(default)g",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args(command_line)


def _settings(arguments: argparse.Namespace) -> Settings:
    options = {name: getattr(arguments, name) for name in ("backend", "backend_ca")}
    try:
        settings = resolve({name: value for name, value in options.items() if value}, os.environ)
    except SettingError as error:
        raise SystemExit(f"blockops: {error}") from None
    if settings.backend == DEMO:
        raise SystemExit(
            "blockops: the demo is part of blockops and needs no diagnosis. Give the address of a "
            "server: --backend http://HOST:PORT"
        )
    return settings


async def _report(reactor: Any, arguments: argparse.Namespace, settings: Settings) -> None:
    try:
        client = BackendClient(
            reactor,
            settings.backend,
            key=settings.backend_key,
            ca=settings.backend_ca,
            connect_timeout=settings.connect_timeout,
        )
    except ValueError as error:  # a --backend-ca without a valid certificate
        raise SystemExit(f"blockops: {error}") from None
    findings = []
    try:
        async for finding in diagnose(
            reactor,
            client,
            model=arguments.model,
            question=arguments.question,
            response_timeout=arguments.patience,
        ):
            sanitized = finding.sanitized(settings.backend_key)
            findings.append(sanitized)
            sys.stderr.write(f"{sanitized.topic}: {sanitized.verdict}\n")
    except ApiError as error:
        message = sanitize(error.message, settings.backend_key)
        raise SystemExit(f"blockops: {message}") from None
    report = DiagnosisReport(backend=settings.backend, findings=tuple(findings))
    sys.stdout.write(report.as_json().decode() if arguments.json else report.as_text())


def main(command_line: Sequence[str] | None = None) -> None:
    """
    Examine a backend and print the report.

    The exit status is 1 without a report: if the backend is unreachable, takes too long, or gives
    no valid answer to a plain question.
    """
    arguments = _arguments(sys.argv[1:] if command_line is None else command_line)
    settings = _settings(arguments)
    react(lambda reactor: Deferred.fromCoroutine(_report(reactor, arguments, settings)))


if __name__ == "__main__":
    main()
