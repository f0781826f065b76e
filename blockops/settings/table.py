"""
The one table of blockops' settings.

Each setting is a field of `Settings`, declared once with everything that others need to know of it:
the command line, the environment, the TOML file, the help and the shells' completion are all made
from this table. Whoever constructs `Settings` directly gives values as they are used; text from
outside goes through `resolve`.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from blockops.settings import types as kinds
from blockops.settings.types import Kind, Refused

#: A value in an error message is cut to so many characters.
_SHOWN = 200

#: Names a file that holds the value of a secret: `BLOCKOPS_BACKEND_KEY_FILE`, `backend-key-file`.
_FILE = "file"

#: A key longer than this is another file that was named by mistake.
_LONGEST_KEY_FILE = 16384


class SettingError(ValueError):
    """
    A setting is wrong; the message is one line for the person who set it.

    It names the setting as they wrote it, the value (never that of a secret) and what is accepted.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """
    What is known of one setting besides its value.

    :param name: the field of `Settings`
    :param section: the heading it stands under in the help
    :param help: one or two sentences for the user
    :param secret: never on the command line, never shown
    :param shown: the default as the help writes it
    """

    name: str
    section: str
    kind: Kind
    help: str
    environ: str
    secret: bool
    shown: str

    @property
    def option(self) -> str:
        """Return the name on the command line (without the dashes before it) and in the file."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> bool:
        """Say whether the command line has `--option` and `--no-option` instead of a value."""
        return self.kind is kinds.SWITCH

    @property
    def repeatable(self) -> bool:
        """Say whether each time it stands on the command line adds to it."""
        return self.kind.many


def _setting(  # a declaration names all that there is to say
    section: str,
    default: Any,
    kind: Kind,
    help: str,  # noqa: A002 - the word for it
    *,
    env: str | None = None,
    shown: str | None = None,
    secret: bool = False,
) -> Any:
    known = {
        "section": section,
        "kind": kind,
        "help": help,
        "env": env,
        "shown": shown,
        "secret": secret,
    }
    if callable(default):
        return field(default_factory=default, metadata=known)
    return field(default=default, repr=not secret, metadata=known)


#: More tokens than any model reads, and few enough to be no slip of the finger.
MOST_TOKENS = 100_000_000


def _default_log_file() -> Path:
    return Path(os.path.expanduser("~/.blockops/proxy.log"))  # noqa: PTH111 - cannot raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set: sizes in bytes, times in seconds."""

    backend: str = _setting(
        "Backend",
        "http://127.0.0.1:8082",
        kinds.BACKEND,
        "The local LLM server, with a path if it has one (a /v1 at its end may be left out), or"
        " demo: a scripted one inside blockops, to try things out without a model.",
        env="BACKEND_URL",
    )
    backend_ca: Path | None = _setting(
        "Backend",
        None,
        kinds.FILE,
        "PEM file of the authority that signed the certificate of an https backend.",
        shown="the system's authorities",
    )
    backend_key: str | None = _setting(
        "Backend",
        None,
        kinds.KEY,
        "Sent to the backend as Authorization: Bearer.",
        secret=True,
        shown="none",
    )
    forward_auth: bool = _setting(
        "Backend",
        False,
        kinds.SWITCH,
        "Send each client's own Authorization header to the backend, as it came; without this no"
        " key of a client goes there. Not together with a backend key.",
    )
    model_alias: Mapping[str, str] = _setting(
        "Backend",
        dict,
        kinds.NAMES,
        "A short name for a model, by which clients may ask for it and read of it. Give it once for"
        " each; separate several by spaces in the environment, write a table in the file.",
        shown="none",
    )
    connect_timeout: float = _setting(
        "Backend", 5.0, kinds.duration(), "How long connecting to the backend may take."
    )
    connect_retries: int = _setting(
        "Backend",
        2,
        kinds.whole(0, 100),
        "How often connecting is tried again when it fails, after half a second, a second and so"
        " on, for backends that are being restarted.",
    )
    circuit_after: int = _setting(
        "Backend",
        5,
        kinds.whole(0, 1_000_000),
        "After how many failures to connect in a row requests get a 503 at once; 0 for never.",
    )
    circuit_pause: float = _setting(
        "Backend",
        5.0,
        kinds.duration(),
        "How long until one of them is let through to try again; the first that connects opens the"
        " way for all.",
    )
    first_byte_timeout: float = _setting(
        "Backend",
        1800.0,
        kinds.duration(),
        "How long the backend may read the prompt before it answers.",
    )
    idle_timeout: float = _setting(
        "Backend", 300.0, kinds.duration(), "How long the backend may pause within an answer."
    )
    max_duration: float = _setting(
        "Backend",
        21_600.0,
        kinds.duration(),
        "How long the backend may take for one answer in all, whatever it sends meanwhile.",
    )
    max_answer: int = _setting(
        "Backend",
        64 << 20,
        kinds.size(1024),
        "The longest answer of the backend that is no stream.",
    )

    port: int = _setting(
        "Listening",
        8080,
        kinds.whole(0, 65535),
        "The TCP port for clients; 0 takes any that is free.",
        env="PORT",
    )
    interface: str = _setting(
        "Listening",
        "127.0.0.1",
        kinds.ADDRESS,
        "The address that --port listens on. One that other machines reach takes --api-keys-file or"
        " --insecure-public.",
    )
    listen: tuple[str, ...] = _setting(
        "Listening",
        (),
        kinds.ENDPOINTS,
        "A Twisted endpoint to listen on instead of --port: ssl:..., unix:..., systemd:... Give it"
        " once for each; separate several by spaces in the environment, write a list in the file.",
        shown="--port on --interface",
    )
    admin_listen: tuple[str, ...] = _setting(
        "Listening",
        (),
        kinds.ENDPOINTS,
        "A Twisted endpoint for /metrics, /health and /ready alone. With it, --port and --listen"
        " have no /metrics, and a /health that says little. Give it as --listen.",
        shown="none",
    )
    max_body: int = _setting(
        "Listening", 64 << 20, kinds.size(1024), "The longest request; longer ones get a 413."
    )
    max_connections: int = _setting(
        "Listening",
        1024,
        kinds.whole(1, 1_000_000),
        "How many connections may be open at once; further ones get a 503 and are closed.",
    )
    max_connections_per_client: int = _setting(
        "Listening",
        256,
        kinds.whole(0, 1_000_000),
        "How many of them may come from one address, unless it is this machine's own; 0 for all."
        " Behind a proxy on another machine all come from one.",
    )
    header_timeout: float = _setting(
        "Listening",
        60.0,
        kinds.duration(),
        "How long a client may take to send its headers, and each next piece of its body.",
    )
    client_timeout: float = _setting(
        "Listening",
        60.0,
        kinds.duration(),
        "How long a client may read nothing of its answer before it is dropped.",
    )
    drain: float = _setting(
        "Listening",
        30.0,
        kinds.duration(0),
        "How long running answers may take to end when blockops is stopped.",
    )

    api_keys_file: Path | None = _setting(
        "Access",
        None,
        kinds.FILE,
        "The file with the API keys that clients have to bring, one a line behind the name of who"
        " has it (alice: KEY). It is read again on SIGHUP.",
        shown="none is asked for",
    )

    insecure_public: bool = _setting(
        "Access",
        False,
        kinds.SWITCH,
        "Listen without API keys also where other machines reach it: all who do may ask.",
    )

    cors_origin: tuple[str, ...] = _setting(
        "Access",
        (),
        kinds.ORIGINS,
        "The origin of web pages that may ask, such as https://chat.example, or * for all pages."
        " Give it once for each; separate several by spaces in the environment, write a list in the"
        " file.",
        shown="none",
    )
    allowed_host: tuple[str, ...] = _setting(
        "Access",
        (),
        kinds.HOSTS,
        "A name of this machine that clients may use on its loopback addresses besides localhost,"
        " its own name and numbers, or * for any; only where there are no keys. Give it as"
        " --cors-origin.",
        shown="none",
    )

    max_concurrent: int = _setting(
        "Admission",
        3,
        kinds.whole(1, 100_000),
        "How many requests the backend works on at once; the others wait in line.",
        env="MAX_CONCURRENT",
    )
    max_queue: int = _setting(
        "Admission",
        64,
        kinds.whole(0, 1_000_000),
        "How many requests may wait; further ones get a 429.",
        env="MAX_QUEUE",
    )
    max_queued_bytes: int = _setting(
        "Admission",
        512 << 20,
        kinds.size(1024),
        "How much the bodies of all chat and completion requests that are queued or under way may"
        " have together; further ones get a 503.",
    )
    queue_timeout: float = _setting(
        "Admission",
        300.0,
        kinds.duration(),
        "How long a request may wait before it gets a 429.",
        env="QUEUE_TIMEOUT",
    )

    heartbeat: float = _setting(
        "Streams",
        10.0,
        kinds.duration(),
        "Silence after which a stream gets a sign of life.",
    )
    heartbeat_style: Literal["comment", "chunk"] = _setting(
        "Streams",
        "comment",
        kinds.choice("comment", "chunk"),
        "The sign of life: an SSE comment, or an empty chunk for clients that count chunks only.",
    )
    heartbeat_json: bool = _setting(
        "Streams",
        False,
        kinds.SWITCH,
        "Keep answers that are no streams alive too, by white space before their JSON. Their"
        " status is then 200 even if the backend fails later.",
    )
    whole_as_stream: bool = _setting(
        "Streams",
        False,
        kinds.SWITCH,
        "Ask the backend for a stream also where the client did not, and join it: so a client that"
        " leaves is noticed by backends that otherwise go on to the end (mlx-lm).",
    )
    max_event: int = _setting(
        "Streams", 8 << 20, kinds.size(1024), "The longest single event of the backend's streams."
    )

    translate: Literal["auto", "always"] = _setting(
        "Translation",
        "auto",
        kinds.choice("auto", "always"),
        "Look for calls in answers to requests that offer tools, or in all answers.",
    )
    tools: Literal["pass", "prompt", "auto"] = _setting(
        "Translation",
        "pass",
        kinds.choice("pass", "prompt", "auto"),
        "Send tools on to the backend, for models whose template knows them; write them into the"
        " prompt; or begin with the first, and go over to the second for a model for which the"
        " backend refuses tools.",
    )
    tool_format: str = _setting(
        "Translation",
        "json",
        kinds.WORD,
        "The words for tools in the prompt: json (Hermes, Qwen 2.5, Qwen 3), xml (Qwen3-Coder),"
        " line (TOOL_CALL: lines), or a format that a plugin brings.",
    )
    fenced_calls: bool = _setting(
        "Translation",
        False,
        kinds.SWITCH,
        "Calls inside Markdown code are calls too if their name is on offer.",
    )
    reasoning: Literal["keep", "split"] = _setting(
        "Translation",
        "keep",
        kinds.choice("keep", "split"),
        "Leave <think> blocks where they are, or move them to reasoning_content.",
    )
    think_prefilled: bool = _setting(
        "Translation",
        False,
        kinds.SWITCH,
        "The model's template opens the <think> block in the prompt: answers begin inside it.",
    )
    think_calls: bool = _setting(
        "Translation",
        False,
        kinds.SWITCH,
        "Make the call that stands inside a <think> block when the answer has no other.",
    )
    max_hold: int = _setting(
        "Translation",
        262_144,
        kinds.whole(1024, 1 << 30),
        "How many characters may be held back while it is open whether they are a call.",
    )

    token_warn_threshold: int = _setting(
        "Context",
        80_000,
        kinds.whole(1, MOST_TOKENS),
        "From how many tokens on a session is told, once, that its history is long.",
        env="TOKEN_WARN_THRESHOLD",
    )
    token_hard_threshold: int = _setting(
        "Context",
        100_000,
        kinds.whole(1, MOST_TOKENS),
        "How many tokens a prompt may have; above, the middle of the history is left out.",
        env="TOKEN_HARD_THRESHOLD",
    )
    token_target: int | None = _setting(
        "Context",
        None,
        kinds.whole(1, MOST_TOKENS),
        "How many tokens are left of a history that is cut.",
        env="TOKEN_TARGET",
        shown="half of the hard threshold",
    )

    reset_pattern: re.Pattern[str] = _setting(
        "Sessions",
        re.compile(r"/(?:new|reset)(?!\S)"),
        kinds.PATTERN,
        "What a user's message begins with to begin the session anew.",
        shown="/new or /reset",
    )
    reset_on_shrink: bool = _setting(
        "Sessions",
        False,
        kinds.SWITCH,
        "A history shorter than the one before it begins the session anew too.",
    )
    cache_reset: str = _setting(
        "Sessions",
        "auto",
        kinds.CALL,
        "How the backend is made to forget its prompt cache when a session begins anew: the way its"
        " kind has, not at all, or by a call such as DELETE /v1/cache.",
    )
    max_sessions: int = _setting(
        "Sessions",
        1000,
        kinds.whole(1, 1_000_000),
        "How many sessions are remembered; the one that was silent longest is forgotten.",
    )
    session_idle: float = _setting(
        "Sessions",
        86400.0,
        kinds.duration(),
        "Silence after which a session is forgotten.",
    )

    notices: Literal["content", "reasoning", "header", "off"] = _setting(
        "Notices",
        "content",
        kinds.choice("content", "reasoning", "header", "off"),
        "Where notices of context, memory and session go: into the answer's text, into its"
        " reasoning_content, into the header X-Blockops-Notice, or nowhere.",
    )
    cold_start_notice: float = _setting(
        "Notices",
        60.0,
        kinds.duration(0),
        "After how long without a first token a stream is told that the model still reads; 0 for"
        " never.",
    )
    model_name: str = _setting(
        "Notices",
        "",
        kinds.TEXT,
        "What the banner of a session calls the model; without it there is no banner.",
        env="MODEL_NAME",
        shown="none",
    )

    log_file: Path | None = _setting(
        "Traffic log",
        _default_log_file,
        kinds.FILE_OR_OFF,
        "One JSON line for each request and each response; off or empty for none.",
        shown="~/.blockops/proxy.log",
    )
    log_body: int = _setting(
        "Traffic log", 65536, kinds.size(0), "How much of each body is kept in it; 0 for none."
    )
    log_size: int = _setting(
        "Traffic log", 10 << 20, kinds.size(4096), "The file is rotated when it has this size."
    )
    log_keep: int = _setting(
        "Traffic log", 5, kinds.whole(1, 1000), "How many rotated files are kept beside it."
    )

    memory_poll: float = _setting(
        "Memory", 10.0, kinds.duration(), "How often the machine's memory is looked at."
    )
    memory_gate: bool = _setting(
        "Memory",
        False,
        kinds.SWITCH,
        "Refuse new requests with a 503 while less than 5 % of the memory is available.",
    )

    @property
    def target(self) -> int:
        """Return how many tokens are left of a history that is cut."""
        return self.token_hard_threshold // 2 if self.token_target is None else self.token_target


def _table() -> Iterator[Setting]:
    for each in fields(Settings):
        known = each.metadata
        default = "" if each.default is MISSING else known["kind"].show(each.default)
        yield Setting(
            name=each.name,
            section=known["section"],
            kind=known["kind"],
            help=known["help"],
            environ=known["env"] or f"BLOCKOPS_{each.name.upper()}",
            secret=known["secret"],
            shown=default if known["shown"] is None else known["shown"],
        )


#: All settings, in the order of the help.
TABLE: tuple[Setting, ...] = tuple(_table())


@dataclass(frozen=True, slots=True)
class File:
    """
    What a configuration file says.

    :param path: as the user named it, for messages
    :param values: by the options' names
    """

    path: str
    values: Mapping[str, object]


NO_FILE = File("", {})


def read_file(path: str) -> File:
    """
    Read the TOML file at `path`.

    Its keys are the options' names, written with `-` or `_`.

    :raises SettingError: it cannot be read, is no TOML, or sets what does not exist
    """
    try:
        content = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise SettingError(f"{_quoted(path)} cannot be read: {error.strerror}") from None
    except ValueError as error:  # also no UTF-8
        raise SettingError(f"{_quoted(path)} is no TOML: {error}") from None
    values: dict[str, object] = {}
    for key, value in content.items():
        name = key.replace("_", "-")
        if name in values:
            raise SettingError(f"{name} is set twice in {path}")
        if name not in _FILE_KEYS:
            raise SettingError(f"{key} in {path} is no setting{_nearest(name)}")
        values[name] = value
    return File(path, values)


_FILE_KEYS = frozenset(each.option for each in TABLE) | {
    f"{each.option}-{_FILE}" for each in TABLE if each.secret
}


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, _FILE_KEYS, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _quoted(value: object) -> str:
    # Passwords stand in addresses too, and keys behind their question marks.
    text = re.sub(r"//[^/\s]*@", "//***@", repr(value))
    text = re.sub(r"(//[^\s?]*\?)[^\s'\"]*", r"\1***", text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def resolve(
    command_line: Mapping[str, object], environ: Mapping[str, str], file: File = NO_FILE
) -> Settings:
    """
    Return the settings: command line over environment over file over default.

    :param command_line: by field name, only what was given
    :raises SettingError: a value is not accepted
    """
    values: dict[str, Any] = {}
    for setting in TABLE:
        for source, given in _given(setting, command_line, environ, file):
            values[setting.name] = _read(setting, source, given)
            break
    settings = Settings(**values)
    _check_together(settings)
    return settings


def _given(
    setting: Setting, command_line: Mapping[str, object], environ: Mapping[str, str], file: File
) -> Iterator[tuple[str, object]]:
    """Yield where `setting` is given and as what, the strongest first."""
    if setting.name in command_line:
        yield f"--{setting.option}", command_line[setting.name]
    # An empty variable is how many tools spell one that is not set.
    text = environ.get(setting.environ)
    if text is not None and (text or setting.kind.blank):
        yield setting.environ, text
    if setting.secret and (path := environ.get(f"{setting.environ}_{_FILE.upper()}")):
        yield from _content(f"{setting.environ}_{_FILE.upper()}", path)
    if setting.option in file.values:
        yield f"{setting.option} in {file.path}", file.values[setting.option]
    if setting.secret and (named := file.values.get(f"{setting.option}-{_FILE}")):
        yield from _content(f"{setting.option}-{_FILE} in {file.path}", named)


def _content(source: str, path: object) -> Iterator[tuple[str, object]]:
    """Yield the secret that the file at `path` holds."""
    if not isinstance(path, str):
        raise SettingError(f"{source}: give {kinds.FILE.accepts}")
    try:
        with Path(path).expanduser().open(encoding="utf-8") as stream:
            content = stream.read(_LONGEST_KEY_FILE + 1)
    except OSError as error:
        raise SettingError(f"{source}: cannot be read: {error.strerror}") from None
    except (ValueError, RuntimeError):
        raise SettingError(f"{source}: the file holds no text") from None
    if len(content) > _LONGEST_KEY_FILE:
        raise SettingError(f"{source}: the file is too long for a key")
    yield source, content


def _read(setting: Setting, source: str, given: object) -> Any:
    try:
        return setting.kind.read(given)
    except Refused as error:
        accepts = str(error) or setting.kind.accepts
        if setting.secret:
            raise SettingError(f"{source}: not accepted; give {accepts}") from None
        raise SettingError(f"{source}: {_quoted(given)} is not accepted; give {accepts}") from None


def _check_together(settings: Settings) -> None:
    """Refuse values that are right alone and wrong together, and files that are not there."""
    if settings.target > settings.token_hard_threshold:
        raise SettingError(
            f"TOKEN_TARGET: {settings.target} is more than TOKEN_HARD_THRESHOLD, which is"
            f" {settings.token_hard_threshold}; give less"
        )
    if settings.forward_auth and settings.backend_key is not None:
        raise SettingError(
            "forward-auth: the backend takes one Authorization, the clients' or backend-key; leave"
            " one of the two away"
        )
    ca = settings.backend_ca
    if ca is None:
        return
    if not settings.backend.startswith("https:"):
        raise SettingError(f"backend-ca is for https backends; the backend is {settings.backend}")
    try:
        content = ca.read_bytes()
    except OSError as error:
        raise SettingError(f"backend-ca: {ca} cannot be read: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise SettingError(f"backend-ca: {ca} holds no certificate; give a PEM file")
