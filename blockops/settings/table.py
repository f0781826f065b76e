"""
The table of settings.

Each setting is a field of `Settings`, declared once with all its attributes; its annotation is its
type (`types.value_type`). The command line, the environment names, the TOML keys, the help and the
shell completions are derived from this table. Code that constructs `Settings` passes parsed values;
`sources.resolve` parses text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from msgspec import Meta

from blockops.settings import types
from blockops.settings.types import ValueType

#: More tokens than any model's context has; a larger number is a typing error.
MAX_TOKENS = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Setting:
    """
    The attributes of one setting, besides its value.

    :param name: the field of `Settings`
    :param section: its heading in the help
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
        """The name in the file, and on the command line without the dashes before it."""
        return self.name.replace("_", "-")

    @property
    def is_flag(self) -> bool:
        """True if the command line has `--option` and `--no-option` instead of a value."""
        return self.value_type is types.SWITCH


def _setting(
    default: Any,
    help: str,  # noqa: A002 - argparse's name for it
    *,
    section: str | None = None,
    env_var: str | None = None,
    default_text: str | None = None,
    is_secret: bool = False,
) -> Any:
    """Return a field of `Settings`; only the first of each section gives `section`."""
    metadata = {
        "help": help,
        "section": section,
        "env_var": env_var,
        "default_text": default_text,
        "is_secret": is_secret,
    }
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, repr=not is_secret, metadata=metadata)


def _default_log_file() -> Path:
    return Path(os.path.expanduser("~/.blockops/proxy.log"))  # noqa: PTH111 - cannot raise


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings. Sizes are in bytes, times in seconds."""

    backend: Annotated[str, types.BACKEND] = _setting(
        "http://127.0.0.1:8082",
        "URL of the local LLM server, with its path if it has one (a final /v1 may be omitted);"
        " or demo: a scripted backend inside blockops, to try it without a model.",
        section="Backend",
        env_var="BACKEND_URL",
    )
    backend_ca: Annotated[Path | None, types.FILE] = _setting(
        None,
        "PEM file with the certificate of the authority that signed an https backend's"
        " certificate.",
        default_text="the system's authorities",
    )
    backend_key: Annotated[str | None, types.KEY] = _setting(
        None,
        "API key for the backend, sent as Authorization: Bearer.",
        is_secret=True,
        default_text="none",
    )
    forward_auth: bool = _setting(
        False,
        "Forward each client's own Authorization header to the backend, unchanged; otherwise no"
        " client's key reaches the backend. Cannot be combined with a backend key.",
    )
    model_alias: Annotated[Mapping[str, str], types.ALIASES] = _setting(
        dict,
        "Short name for a model, for clients to use in requests and read in responses. Repeat it"
        " for each model; separate several by spaces in the environment, and write a table in the"
        " file.",
        default_text="none",
    )
    connect_timeout: types.Seconds = _setting(5.0, "Maximum time to connect to the backend.")
    connect_retries: Annotated[int, Meta(ge=0, le=100)] = _setting(
        2,
        "Number of times that a failed connection is tried again, after pauses of 0.5, 1, 2 and"
        " then 4 seconds, for backends that are restarting.",
    )
    circuit_after: Annotated[int, Meta(ge=0, le=1_000_000)] = _setting(
        5,
        "Open the circuit breaker after this many failed connections in a row: requests then get"
        " a 503 at once. 0 disables it.",
    )
    circuit_pause: types.Seconds = _setting(
        5.0,
        "Time until an open circuit breaker lets one request try the backend again; the first"
        " that connects closes it.",
    )
    first_byte_timeout: types.Seconds = _setting(
        1800.0, "Maximum time for the backend to read the prompt and begin its response."
    )
    idle_timeout: types.Seconds = _setting(
        300.0, "Maximum time between two pieces of a backend response."
    )
    max_duration: types.Seconds = _setting(
        21_600.0, "Maximum total time of one backend response, even if the backend keeps sending."
    )
    max_answer: types.Size = _setting(
        64 << 20, "Maximum size of a non-streaming response, also of one aggregated from a stream."
    )

    port: Annotated[int, Meta(ge=0, le=65535)] = _setting(
        8080, "TCP port for clients; 0 picks a free one.", section="Listening", env_var="PORT"
    )
    interface: Annotated[str, types.ADDRESS] = _setting(
        "127.0.0.1",
        "Address for --port. An address that other machines can reach needs --api-keys-file or"
        " --insecure-public.",
    )
    listen: Annotated[tuple[str, ...], types.ENDPOINTS] = _setting(
        (),
        "Twisted endpoint to listen on instead of --port: ssl:..., unix:..., systemd:... Repeat"
        " it for each; separate several by spaces in the environment, and write a list in the"
        " file.",
        default_text="--port on --interface",
    )
    admin_listen: Annotated[tuple[str, ...], types.ENDPOINTS] = _setting(
        (),
        "Twisted endpoint that serves only /metrics, /health and /ready. With it, --port and"
        " --listen have no /metrics, and a minimal /health. Several are given as for --listen.",
        default_text="none",
    )
    max_body: types.Size = _setting(
        64 << 20, "Maximum size of a request body; a larger one gets a 413."
    )
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = _setting(
        1024, "Maximum number of open connections; more get a 503 and are closed."
    )
    max_connections_per_client: Annotated[int, Meta(ge=0, le=1_000_000)] = _setting(
        256,
        "Maximum number of open connections from one address, except this machine's own; 0"
        " removes this limit. All clients of a proxy on another machine count as one address.",
    )
    header_timeout: types.Seconds = _setting(
        60.0, "Maximum time for a client to send its headers, and between two pieces of its body."
    )
    client_timeout: types.Seconds = _setting(
        60.0, "Disconnect a client that reads nothing of its response for this long."
    )
    drain: types.SecondsOrZero = _setting(
        30.0, "Time for running requests to finish when blockops stops."
    )

    api_keys_file: Annotated[Path | None, types.FILE] = _setting(
        None,
        "File with the API keys that clients must send, one a line after its owner's name (alice:"
        " KEY). SIGHUP reloads it.",
        section="Access",
        default_text="none",
    )
    insecure_public: bool = _setting(
        False,
        "Listen without API keys on addresses that other machines can reach: all of them can use"
        " the model.",
    )
    cors_origin: Annotated[tuple[str, ...], types.ORIGINS] = _setting(
        (),
        "Origin of web pages that may send requests, such as https://chat.example, or * for all."
        " Repeat it for each; separate several by spaces in the environment, and write a list in"
        " the file.",
        default_text="none",
    )
    allowed_host: Annotated[tuple[str, ...], types.HOSTS] = _setting(
        (),
        "Host name under which clients may reach this machine's loopback addresses, besides its"
        " own name, IP addresses, names without a dot, and names that end in .localhost, .local or"
        " .internal; * allows any. Requests for other names get a 403, unless API keys are used."
        " Several are given as for --cors-origin.",
        default_text="none",
    )

    max_concurrent: Annotated[int, Meta(ge=1, le=100_000)] = _setting(
        3,
        "Number of requests that the backend processes at a time; more wait in the queue.",
        section="Admission",
        env_var="MAX_CONCURRENT",
    )
    max_queue: Annotated[int, Meta(ge=0, le=1_000_000)] = _setting(
        64, "Maximum number of requests in the queue; more get a 429.", env_var="MAX_QUEUE"
    )
    max_queued_bytes: types.Size = _setting(
        512 << 20,
        "Maximum total size of the bodies of all waiting and running chat and completion"
        " requests; more get a 503.",
    )
    queue_timeout: types.Seconds = _setting(
        300.0,
        "Maximum time of a request in the queue; then it gets a 429.",
        env_var="QUEUE_TIMEOUT",
    )

    heartbeat: types.Seconds = _setting(
        10.0, "Send a heartbeat on a stream that has been silent for this long.", section="Streams"
    )
    heartbeat_style: Literal["comment", "chunk"] = _setting(
        "comment",
        "comment sends an SSE comment; chunk sends an empty chunk, for clients that time out"
        " although comments arrive.",
    )
    heartbeat_json: bool = _setting(
        False,
        "Keep non-streaming responses alive too, with whitespace before their JSON. Their status"
        " is then 200 even if the backend fails later.",
    )
    whole_as_stream: bool = _setting(
        False,
        "Request a stream from the backend for non-streaming requests too, and aggregate it."
        " Backends that otherwise generate to the end (mlx-lm) then notice a client disconnect.",
    )
    max_event: types.Size = _setting(8 << 20, "Maximum size of one event in the backend's streams.")

    translate: Literal["auto", "always"] = _setting(
        "auto",
        "Translate tool calls in responses to requests that offer tools (auto), or in all"
        " responses (always).",
        section="Translation",
    )
    tools: Literal["pass", "prompt", "auto"] = _setting(
        "pass",
        "pass forwards tools to the backend, for models whose chat template renders them; prompt"
        " writes them into the prompt; auto forwards them, and writes them into the prompt for"
        " models for which the backend rejects tools.",
    )
    tool_format: Annotated[str, types.WORD] = _setting(
        "json",
        "Wording of the tools in the prompt: json (Hermes, Qwen 2.5, Qwen 3), xml (Qwen3-Coder),"
        " line (TOOL_CALL: lines), or a plugin's dialect.",
    )
    fenced_calls: bool = _setting(
        False,
        "Translate calls inside Markdown code too, if the request offers a tool of their name.",
    )
    reasoning: Literal["keep", "split"] = _setting(
        "keep", "keep leaves <think> blocks in the text; split moves them to reasoning_content."
    )
    think_prefilled: bool = _setting(
        False,
        "Read each answer as if it began with <think>, for models whose chat template writes"
        " <think> at the end of the prompt.",
    )
    think_calls: bool = _setting(
        False, "Translate a call inside a <think> block if the answer has no other call."
    )
    max_hold: Annotated[int, Meta(ge=1024, le=1 << 30)] = _setting(
        262_144,
        "Maximum number of characters that are held back until it is known whether they are a"
        " tool call.",
    )

    token_warn_threshold: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] = _setting(
        80_000,
        "Add a notice, once a session, when a history has this many tokens.",
        section="Context",
        env_var="TOKEN_WARN_THRESHOLD",
    )
    token_hard_threshold: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] = _setting(
        100_000,
        "Trim the middle of a history whose prompt has more tokens than this.",
        env_var="TOKEN_HARD_THRESHOLD",
    )
    token_target: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = _setting(
        None,
        "Number of tokens to which a history is trimmed.",
        env_var="TOKEN_TARGET",
        default_text="half of the hard threshold",
    )

    reset_pattern: Annotated[re.Pattern[str], types.PATTERN] = _setting(
        re.compile(r"/(?:new|reset)(?!\S)"),
        "Regular expression for the beginning of a user message that resets the session.",
        section="Sessions",
        default_text="/new or /reset",
    )
    reset_on_shrink: bool = _setting(
        False, "Reset the session also when its history is shorter than in the previous request."
    )
    cache_reset: Annotated[str, types.HTTP_CALL] = _setting(
        "auto",
        "How to empty the backend's prompt cache on a session reset: auto sends the call that"
        " this kind of backend has, off leaves the cache alone, and a call such as DELETE"
        " /v1/cache is sent as it is.",
    )
    max_sessions: Annotated[int, Meta(ge=1, le=1_000_000)] = _setting(
        1000, "Maximum number of sessions in memory; the one idle for longest is dropped."
    )
    session_idle: types.Seconds = _setting(
        86400.0, "Drop a session that has been idle for this long."
    )

    notices: Literal["content", "reasoning", "header", "off"] = _setting(
        "content",
        "Where to show notices about context, memory and sessions: in the answer's text"
        " (content), in its reasoning_content (reasoning), in the header X-Blockops-Notice"
        " (header), or nowhere (off).",
        section="Notices",
    )
    cold_start_notice: types.SecondsOrZero = _setting(
        60.0,
        "If the first token of a stream takes longer than this, add a notice that the model is"
        " still reading the prompt; 0 disables it.",
    )
    model_name: Annotated[str, types.TEXT] = _setting(
        "",
        "Model name in the session banner; without it there is no banner.",
        env_var="MODEL_NAME",
        default_text="none",
    )

    log_file: Annotated[Path | None, types.FILE_OR_OFF] = _setting(
        _default_log_file,
        "File for the traffic log, with one JSON line for each request and each response; off or"
        " an empty value disables it.",
        section="Traffic log",
        default_text="~/.blockops/proxy.log",
    )
    log_body: Annotated[int, Meta(ge=0, le=types.MAX_SIZE), types.BYTES] = _setting(
        65536, "Maximum number of bytes of each body in the traffic log; 0 omits bodies."
    )
    log_size: Annotated[int, Meta(ge=4096, le=types.MAX_SIZE), types.BYTES] = _setting(
        10 << 20, "Size at which the traffic log is rotated."
    )
    log_keep: Annotated[int, Meta(ge=1, le=1000)] = _setting(
        5, "Number of rotated traffic logs to keep."
    )

    memory_poll: types.Seconds = _setting(
        10.0, "Interval at which system memory is checked.", section="Memory"
    )
    memory_gate: bool = _setting(
        False, "Reject new requests with a 503 while less than 5 % of system memory is available."
    )

    @property
    def trim_target(self) -> int:
        """The number of tokens to which a history is trimmed."""
        return self.token_hard_threshold // 2 if self.token_target is None else self.token_target


def _declared_settings() -> Iterator[Setting]:
    annotations = get_type_hints(Settings, include_extras=True)
    section = ""
    for each in fields(Settings):
        declared = each.metadata
        section = declared["section"] or section
        value_type = types.value_type(annotations[each.name])
        default = "" if each.default is MISSING else value_type.to_text(each.default)
        yield Setting(
            name=each.name,
            section=section,
            value_type=value_type,
            help=declared["help"],
            env_var=declared["env_var"] or f"BLOCKOPS_{each.name.upper()}",
            is_secret=declared["is_secret"],
            default_text=default if declared["default_text"] is None else declared["default_text"],
        )


#: All settings, in the order of the help.
TABLE: tuple[Setting, ...] = tuple(_declared_settings())
