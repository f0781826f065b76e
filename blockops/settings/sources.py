"""
Reads settings from their sources.

Precedence, highest first: command line, environment, configuration file, default. A secret may also
come from a file that the environment (`BLOCKOPS_BACKEND_KEY_FILE`) or the configuration file
(`backend-key-file`) names; if one of these two gives the secret itself as well, that takes
precedence over the file.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockops.settings import types
from blockops.settings.table import TABLE, Setting, Settings
from blockops.settings.types import InvalidValue

#: An error message quotes at most this many characters of a value.
_MAX_QUOTED = 200

#: The most characters of a secret's file. A longer file was named by mistake.
_MAX_SECRET_FILE = 16384

_FILE_KEYS = frozenset(each.option for each in TABLE) | {
    f"{each.option}-file" for each in TABLE if each.is_secret
}


class SettingError(ValueError):
    """A setting is invalid; the message is one line for the user, without a secret's value."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A configuration file: its path as the user wrote it, and its values by options' names."""

    path: str
    values: Mapping[str, object]


NO_FILE = ConfigFile("", {})


def read_config(path: str) -> ConfigFile:
    """
    Read the TOML file at `path`; its keys are the options' names, written with `-` or `_`.

    :raises SettingError: the file cannot be read, is not TOML, or has an unknown or repeated key
    """
    try:
        content = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise SettingError(f"{_quote(path)} cannot be read: {error.strerror}") from None
    except ValueError as error:  # also for invalid UTF-8
        raise SettingError(f"{_quote(path)} is not valid TOML: {error}") from None
    values: dict[str, object] = {}
    for key, value in content.items():
        name = key.replace("_", "-")
        if name in values:
            raise SettingError(f"{name} is set twice in {path}; remove one of the two")
        if name not in _FILE_KEYS:
            similar = difflib.get_close_matches(name, _FILE_KEYS, n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise SettingError(f"{key} in {path} is not a setting{hint}")
        values[name] = value
    return ConfigFile(path, values)


def resolve(
    command_line: Mapping[str, object], environ: Mapping[str, str], file: ConfigFile = NO_FILE
) -> Settings:
    """
    Return the settings, each from its highest source; those of lower precedence are not parsed.

    :param command_line: the values on the command line, by field name
    :raises SettingError: a value is invalid, or two values exclude each other
    """
    values: dict[str, Any] = {}
    for setting in TABLE:
        for source, value in _candidates(setting, command_line, environ, file):
            values[setting.name] = _parse(setting, source, value)
            break
    settings = Settings(**values)
    _cross_validate(settings)
    return settings


def _candidates(
    setting: Setting,
    command_line: Mapping[str, object],
    environ: Mapping[str, str],
    file: ConfigFile,
) -> Iterator[tuple[str, object]]:
    """
    Yield each source that gives `setting`, with its value, in the order of precedence.

    A source is the setting's name as the user wrote it there: `--port`, `PORT`, `port in FILE`.
    """
    if setting.name in command_line:
        yield f"--{setting.option}", command_line[setting.name]
    # Many tools set an empty variable to express an unset one.
    text = environ.get(setting.env_var)
    if text is not None and (text or setting.value_type.may_be_empty):
        yield setting.env_var, text
    if setting.is_secret and (path := environ.get(f"{setting.env_var}_FILE")):
        source = f"{setting.env_var}_FILE"
        yield source, _read_secret(source, path)
    if setting.option in file.values:
        yield f"{setting.option} in {file.path}", file.values[setting.option]
    if setting.is_secret and (path_value := file.values.get(f"{setting.option}-file")):
        source = f"{setting.option}-file in {file.path}"
        yield source, _read_secret(source, path_value)


def _read_secret(source: str, path: object) -> str:
    """Return the contents of a secret's file; `source` names the setting in error messages."""
    try:
        file: Path = types.FILE.parse(path)
    except InvalidValue:
        raise SettingError(f"{source}: not accepted; give {types.FILE.accepts}") from None
    try:
        with file.open(encoding="utf-8") as stream:
            content = stream.read(_MAX_SECRET_FILE + 1)
    except OSError as error:
        raise SettingError(f"{source}: {_quote(path)} cannot be read: {error.strerror}") from None
    except ValueError:
        raise SettingError(f"{source}: {_quote(path)} is not a text file in UTF-8") from None
    if len(content) > _MAX_SECRET_FILE:
        raise SettingError(
            f"{source}: {_quote(path)} is too long for a key; give a file of at most"
            f" {_MAX_SECRET_FILE} characters"
        )
    return content


def _parse(setting: Setting, source: str, value: object) -> Any:
    try:
        return setting.value_type.parse(value)
    except InvalidValue as error:
        accepts = str(error) or setting.value_type.accepts
        if setting.is_secret:
            raise SettingError(f"{source}: not accepted; give {accepts}") from None
        raise SettingError(f"{source}: {_quote(value)} is not accepted; give {accepts}") from None


def _quote(value: object) -> str:
    # A URL may have a password before an @, or a key after a question mark.
    text = re.sub(r"//[^/\s]*@", "//***@", repr(value))
    text = re.sub(r"(//[^\s?]*\?)[^\s'\"]*", r"\1***", text)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}..."


def _cross_validate(settings: Settings) -> None:
    """Check values that are valid alone but exclude each other, and the file of `--backend-ca`."""
    if settings.trim_target > settings.token_hard_threshold:
        raise SettingError(
            f"token-target: {settings.trim_target} is not accepted; give at most"
            f" {settings.token_hard_threshold}, the value of token-hard-threshold"
        )
    if settings.forward_auth and settings.backend_key is not None:
        raise SettingError(
            "forward-auth: not accepted together with backend-key, because a request has only one"
            " Authorization header; remove one of the two"
        )
    ca = settings.backend_ca
    if ca is None:
        return
    if not settings.backend.startswith("https:"):
        raise SettingError(
            f"backend-ca: used only with an https backend, but the backend is {settings.backend};"
            " remove it, or give an https backend"
        )
    try:
        content = ca.read_bytes()
    except OSError as error:
        raise SettingError(f"backend-ca: {ca} cannot be read: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise SettingError(f"backend-ca: {ca} contains no certificate; give a PEM file")
