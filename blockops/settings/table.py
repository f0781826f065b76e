"""
The table of settings.

Each setting is a field of `Settings`, declared once with all its attributes. The command line, the
environment names, the TOML keys, the help and the shell completions are derived from this table.
Code that constructs `Settings` passes parsed values; `sources.resolve` parses text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from blockops.settings import types
from blockops.settings.types import ValueType

#: More tokens than any model's context has; a larger number is a typing error.
MAX_TOKENS = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """
    The attributes of one setting, besides its value.

    :param name: the field of `Settings`
    :param section: its heading in the help
    :param value_type: parses its values, and describes them in the help and in errors
    :param help: one or two sentences for the user
    :param env_var: the environment variable
    :param is_secret: never accepted on the command line, never printed
    :param default_text: the default as the help shows it
    """

    name: str
    section: str
    value_type: ValueType
    help: str
    env_var: str
    is_secret: bool
    default_text: str

    @property
    def option(self) -> str:
        """Return the name in the file, and on the command line without the dashes before it."""
        return self.name.replace("_", "-")

    @property
    def is_flag(self) -> bool:
        """Return True if the command line has `--option` and `--no-option` instead of a value."""
        return self.value_type is types.SWITCH

    @property
    def is_repeatable(self) -> bool:
        """Return True if each occurrence on the command line adds a value."""
        return self.value_type.is_repeatable


def _setting(
    section: str,
    default: Any,
    value_type: ValueType,
    help: str,  # noqa: A002 - argparse's name for it
    *,
    env_var: str | None = None,
    default_text: str | None = None,
    is_secret: bool = False,
) -> Any:
    metadata = {
        "section": section,
        "value_type": value_type,
        "help": help,
        "env_var": env_var,
        "default_text": default_text,
        "is_secret": is_secret,
    }
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, repr=not is_secret, metadata=metadata)


def _default_log_file() -> Path:
    return Path(os.path.expanduser("~/.blockops/proxy.log"))  # noqa: PTH111 - cannot raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. Sizes are in bytes, times in seconds."""

    backend: str = _setting(
        "Backend",
        "http://127.0.0.1:8082",
        types.BACKEND,
        "URL of the local LLM server, with its path if it has one (a final /v1 may be omitted);"
        " or demo: a scripted backend inside blockops, to try it without a model.",
        env_var="BACKEND_URL",
    )
    backend_ca: Path | None = _setting(
        "Backend",
        None,
        types.FILE,
        "PEM file with the certificate of the authority that signed an https backend's"
        " certificate.",
        default_text="the system's authorities",
    )
    backend_key: str | None = _setting(
        "Backend",
        None,
        types.KEY,
        "API key for the backend, sent as Authorization: Bearer.",
        is_secret=True,
        default_text="none",
    )
    forward_auth: bool = _setting(
        "Backend",
        False,
        types.SWITCH,
        "Forward each client's own Authorization header to the backend, unchanged; otherwise no"
        " client's key reaches the backend. Cannot be combined with a backend key.",
    )
    model_alias: Mapping[str, str] = _setting(
        "Backend",
        dict,
        types.ALIASES,
        "Short name for a model, for clients to use in requests and read in responses. Repeat it"
        " for each model; separate several by spaces in the environment, and write a table in the"
        " file.",
        default_text="none",
    )
    connect_timeout: float = _setting(
        "Backend",
        5.0,
        types.duration(),
        "Maximum time to connect to the backend.",
    )
    connect_retries: int = _setting(
        "Backend",
        2,
        types.integer(0, 100),
        "Number of times that a failed connection is tried again, after pauses of 0.5, 1, 2 and"
        " then 4 seconds, for backends that are restarting.",
    )
    circuit_after: int = _setting(
        "Backend",
        5,
        types.integer(0, 1_000_000),
        "Open the circuit breaker after this many failed connections in a row: requests then get"
        " a 503 at once. 0 disables it.",
    )
    circuit_pause: float = _setting(
        "Backend",
        5.0,
        types.duration(),
        "Time until an open circuit breaker lets one request try the backend again; the first"
        " that connects closes it.",
    )
    first_byte_timeout: float = _setting(
        "Backend",
        1800.0,
        types.duration(),
        "Maximum time for the backend to read the prompt and begin its response.",
    )
    idle_timeout: float = _setting(
        "Backend",
        300.0,
        types.duration(),
        "Maximum time between two pieces of a backend response.",
    )
    max_duration: float = _setting(
        "Backend",
        21_600.0,
        types.duration(),
        "Maximum total time of one backend response, even if the backend keeps sending.",
    )
    max_answer: int = _setting(
        "Backend",
        64 << 20,
        types.size(1024),
        "Maximum size of a non-streaming response, also of one aggregated from a stream.",
    )

    port: int = _setting(
        "Listening",
        8080,
        types.integer(0, 65535),
        "TCP port for clients; 0 picks a free one.",
        env_var="PORT",
    )
    interface: str = _setting(
        "Listening",
        "127.0.0.1",
        types.ADDRESS,
        "Address for --port. An address that other machines can reach needs --api-keys-file or"
        " --insecure-public.",
    )
    listen: tuple[str, ...] = _setting(
        "Listening",
        (),
        types.ENDPOINTS,
        "Twisted endpoint to listen on instead of --port: ssl:..., unix:..., systemd:... Repeat"
        " it for each; separate several by spaces in the environment, and write a list in the"
        " file.",
        default_text="--port on --interface",
    )
    admin_listen: tuple[str, ...] = _setting(
        "Listening",
        (),
        types.ENDPOINTS,
        "Twisted endpoint that serves only /metrics, /health and /ready. With it, --port and"
        " --listen have no /metrics, and a minimal /health. Several are given as for --listen.",
        default_text="none",
    )
    max_body: int = _setting(
        "Listening",
        64 << 20,
        types.size(1024),
        "Maximum size of a request body; a larger one gets a 413.",
    )
    max_connections: int = _setting(
        "Listening",
        1024,
        types.integer(1, 1_000_000),
        "Maximum number of open connections; more get a 503 and are closed.",
    )
    max_connections_per_client: int = _setting(
        "Listening",
        256,
        types.integer(0, 1_000_000),
        "Maximum number of open connections from one address, except this machine's own; 0"
        " removes this limit. All clients of a proxy on another machine count as one address.",
    )
    header_timeout: float = _setting(
        "Listening",
        60.0,
        types.duration(),
        "Maximum time for a client to send its headers, and between two pieces of its body.",
    )
    client_timeout: float = _setting(
        "Listening",
        60.0,
        types.duration(),
        "Disconnect a client that reads nothing of its response for this long.",
    )
    drain: float = _setting(
        "Listening",
        30.0,
        types.duration(0),
        "Time for running requests to finish when blockops stops.",
    )

    api_keys_file: Path | None = _setting(
        "Access",
        None,
        types.FILE,
        "File with the API keys that clients must send, one a line after its owner's name (alice:"
        " KEY). SIGHUP reloads it.",
        default_text="none",
    )
    insecure_public: bool = _setting(
        "Access",
        False,
        types.SWITCH,
        "Listen without API keys on addresses that other machines can reach: all of them can use"
        " the model.",
    )
    cors_origin: tuple[str, ...] = _setting(
        "Access",
        (),
        types.ORIGINS,
        "Origin of web pages that may send requests, such as https://chat.example, or * for all."
        " Repeat it for each; separate several by spaces in the environment, and write a list in"
        " the file.",
        default_text="none",
    )
    allowed_host: tuple[str, ...] = _setting(
        "Access",
        (),
        types.HOSTS,
        "Host name under which clients may reach this machine's loopback addresses, besides its"
        " own name, IP addresses, names without a dot, and names that end in .localhost, .local or"
        " .internal; * allows any. Requests for other names get a 403, unless API keys are used."
        " Several are given as for --cors-origin.",
        default_text="none",
    )

    max_concurrent: int = _setting(
        "Admission",
        3,
        types.integer(1, 100_000),
        "Number of requests that the backend processes at a time; more wait in the queue.",
        env_var="MAX_CONCURRENT",
    )
    max_queue: int = _setting(
        "Admission",
        64,
        types.integer(0, 1_000_000),
        "Maximum number of requests in the queue; more get a 429.",
        env_var="MAX_QUEUE",
    )
    max_queued_bytes: int = _setting(
        "Admission",
        512 << 20,
        types.size(1024),
        "Maximum total size of the bodies of all waiting and running chat and completion"
        " requests; more get a 503.",
    )
    queue_timeout: float = _setting(
        "Admission",
        300.0,
        types.duration(),
        "Maximum time of a request in the queue; then it gets a 429.",
        env_var="QUEUE_TIMEOUT",
    )

    heartbeat: float = _setting(
        "Streams",
        10.0,
        types.duration(),
        "Send a heartbeat on a stream that has been silent for this long.",
    )
    heartbeat_style: Literal["comment", "chunk"] = _setting(
        "Streams",
        "comment",
        types.choice("comment", "chunk"),
        "comment sends an SSE comment; chunk sends an empty chunk, for clients that time out"
        " although comments arrive.",
    )
    heartbeat_json: bool = _setting(
        "Streams",
        False,
        types.SWITCH,
        "Keep non-streaming responses alive too, with whitespace before their JSON. Their status"
        " is then 200 even if the backend fails later.",
    )
    whole_as_stream: bool = _setting(
        "Streams",
        False,
        types.SWITCH,
        "Request a stream from the backend for non-streaming requests too, and aggregate it."
        " Backends that otherwise generate to the end (mlx-lm) then notice a client disconnect.",
    )
    max_event: int = _setting(
        "Streams",
        8 << 20,
        types.size(1024),
        "Maximum size of one event in the backend's streams.",
    )

    translate: Literal["auto", "always"] = _setting(
        "Translation",
        "auto",
        types.choice("auto", "always"),
        "Translate tool calls in responses to requests that offer tools (auto), or in all"
        " responses (always).",
    )
    tools: Literal["pass", "prompt", "auto"] = _setting(
        "Translation",
        "pass",
        types.choice("pass", "prompt", "auto"),
        "pass forwards tools to the backend, for models whose chat template renders them; prompt"
        " writes them into the prompt; auto forwards them, and writes them into the prompt for"
        " models for which the backend rejects tools.",
    )
    tool_format: str = _setting(
        "Translation",
        "json",
        types.WORD,
        "Wording of the tools in the prompt: json (Hermes, Qwen 2.5, Qwen 3), xml (Qwen3-Coder),"
        " line (TOOL_CALL: lines), or a plugin's dialect.",
    )
    fenced_calls: bool = _setting(
        "Translation",
        False,
        types.SWITCH,
        "Translate calls inside Markdown code too, if the request offers a tool of their name.",
    )
    reasoning: Literal["keep", "split"] = _setting(
        "Translation",
        "keep",
        types.choice("keep", "split"),
        "keep leaves <think> blocks in the text; split moves them to reasoning_content.",
    )
    think_prefilled: bool = _setting(
        "Translation",
        False,
        types.SWITCH,
        "Read each answer as if it began with <think>, for models whose chat template writes"
        " <think> at the end of the prompt.",
    )
    think_calls: bool = _setting(
        "Translation",
        False,
        types.SWITCH,
        "Translate a call inside a <think> block if the answer has no other call.",
    )
    max_hold: int = _setting(
        "Translation",
        262_144,
        types.integer(1024, 1 << 30),
        "Maximum number of characters that are held back until it is known whether they are a"
        " tool call.",
    )

    token_warn_threshold: int = _setting(
        "Context",
        80_000,
        types.integer(1, MAX_TOKENS),
        "Add a notice, once a session, when a history has this many tokens.",
        env_var="TOKEN_WARN_THRESHOLD",
    )
    token_hard_threshold: int = _setting(
        "Context",
        100_000,
        types.integer(1, MAX_TOKENS),
        "Trim the middle of a history whose prompt has more tokens than this.",
        env_var="TOKEN_HARD_THRESHOLD",
    )
    token_target: int | None = _setting(
        "Context",
        None,
        types.integer(1, MAX_TOKENS),
        "Number of tokens to which a history is trimmed.",
        env_var="TOKEN_TARGET",
        default_text="half of the hard threshold",
    )

    reset_pattern: re.Pattern[str] = _setting(
        "Sessions",
        re.compile(r"/(?:new|reset)(?!\S)"),
        types.PATTERN,
        "Regular expression for the beginning of a user message that resets the session.",
        default_text="/new or /reset",
    )
    reset_on_shrink: bool = _setting(
        "Sessions",
        False,
        types.SWITCH,
        "Reset the session also when its history is shorter than in the previous request.",
    )
    cache_reset: str = _setting(
        "Sessions",
        "auto",
        types.HTTP_CALL,
        "How to empty the backend's prompt cache on a session reset: auto sends the call that this"
        " kind of backend has, off leaves the cache alone, and a call such as DELETE /v1/cache is"
        " sent as it is.",
    )
    max_sessions: int = _setting(
        "Sessions",
        1000,
        types.integer(1, 1_000_000),
        "Maximum number of sessions in memory; the one idle for longest is dropped.",
    )
    session_idle: float = _setting(
        "Sessions",
        86400.0,
        types.duration(),
        "Drop a session that has been idle for this long.",
    )

    notices: Literal["content", "reasoning", "header", "off"] = _setting(
        "Notices",
        "content",
        types.choice("content", "reasoning", "header", "off"),
        "Where to show notices about context, memory and sessions: in the answer's text"
        " (content), in its reasoning_content (reasoning), in the header X-Blockops-Notice"
        " (header), or nowhere (off).",
    )
    cold_start_notice: float = _setting(
        "Notices",
        60.0,
        types.duration(0),
        "If the first token of a stream takes longer than this, add a notice that the model is"
        " still reading the prompt; 0 disables it.",
    )
    model_name: str = _setting(
        "Notices",
        "",
        types.TEXT,
        "Model name in the session banner; without it there is no banner.",
        env_var="MODEL_NAME",
        default_text="none",
    )

    log_file: Path | None = _setting(
        "Traffic log",
        _default_log_file,
        types.FILE_OR_OFF,
        "File for the traffic log, with one JSON line for each request and each response; off or"
        " an empty value disables it.",
        default_text="~/.blockops/proxy.log",
    )
    log_body: int = _setting(
        "Traffic log",
        65536,
        types.size(0),
        "Maximum number of bytes of each body in the traffic log; 0 omits bodies.",
    )
    log_size: int = _setting(
        "Traffic log",
        10 << 20,
        types.size(4096),
        "Size at which the traffic log is rotated.",
    )
    log_keep: int = _setting(
        "Traffic log",
        5,
        types.integer(1, 1000),
        "Number of rotated traffic logs to keep.",
    )

    memory_poll: float = _setting(
        "Memory",
        10.0,
        types.duration(),
        "Interval at which system memory is checked.",
    )
    memory_gate: bool = _setting(
        "Memory",
        False,
        types.SWITCH,
        "Reject new requests with a 503 while less than 5 % of system memory is available.",
    )

    @property
    def trim_target(self) -> int:
        """Return the number of tokens to which a history is trimmed."""
        return self.token_hard_threshold // 2 if self.token_target is None else self.token_target


def _declared_settings() -> Iterator[Setting]:
    for each in fields(Settings):
        known = each.metadata
        default = "" if each.default is MISSING else known["value_type"].to_text(each.default)
        yield Setting(
            name=each.name,
            section=known["section"],
            value_type=known["value_type"],
            help=known["help"],
            env_var=known["env_var"] or f"BLOCKOPS_{each.name.upper()}",
            is_secret=known["is_secret"],
            default_text=default if known["default_text"] is None else known["default_text"],
        )


#: All settings, in the order of the help.
TABLE: tuple[Setting, ...] = tuple(_declared_settings())
