"""The table of settings, and the README's copy of it."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.settings.sources import ConfigFile, SettingError, resolve
from blockops.settings.table import TABLE, Settings

#: For each setting: an accepted text, its value, and a rejected text. Add each new setting.
EXAMPLES: dict[str, tuple[str, Any, str]] = {
    "backend": ("https://llm.lan:1234/v1", "https://llm.lan:1234", "llm.lan"),
    "backend_key": ("sk-1234", "sk-1234", "sk 1234"),
    "connect_timeout": ("2s", 2.0, "-1"),
    "first_byte_timeout": ("1h", 3600.0, "1w"),
    "connect_retries": ("0", 0, "101"),
    "circuit_after": ("0", 0, "never"),
    "circuit_pause": ("10s", 10.0, "0"),
    "idle_timeout": ("5m", 300.0, "five"),
    "max_duration": ("8h", 28800.0, "0"),
    "max_answer": ("1M", 1 << 20, "1"),
    "port": ("9000", 9000, "65536"),
    "interface": ("::", "::", "eth0"),
    "listen": ("tcp:1 tcp:2", ("tcp:1", "tcp:2"), ""),
    "max_body": ("1G", 1 << 30, "1T"),
    "max_connections": ("10", 10, "0"),
    "max_connections_per_client": ("0", 0, "-1"),
    "header_timeout": ("1.5", 1.5, "1e3"),
    "client_timeout": ("250ms", 0.25, "0"),
    "drain": ("0", 0.0, "31d"),
    "api_keys_file": ("/etc/keys", Path("/etc/keys"), "a\0b"),
    "insecure_public": ("on", True, "hm"),
    "forward_auth": ("on", True, "hm"),
    "cors_origin": (
        "https://Chat.example:443/ http://[::1]:80 *",
        ("https://chat.example", "http://[::1]", "*"),
        "chat.example",
    ),
    "allowed_host": ("GPU.lan. b", ("gpu.lan", "b"), "gpu.lan:80"),
    "admin_listen": ("tcp:1 tcp:2", ("tcp:1", "tcp:2"), ""),
    "max_concurrent": ("8", 8, "0"),
    "max_queue": ("0", 0, "-1"),
    "max_queued_bytes": ("1G", 1 << 30, "1"),
    "queue_timeout": ("60", 60.0, "never"),
    "heartbeat": ("15", 15.0, "0"),
    "heartbeat_style": ("chunk", "chunk", "Comment"),
    "heartbeat_json": ("yes", True, "maybe"),
    "whole_as_stream": ("on", True, "perhaps"),
    "max_event": ("16m", 16 << 20, "16 m"),
    "translate": ("always", "always", "never"),
    "model_alias": ("a=b/c d=e=f", {"a": "b/c", "d": "e=f"}, "a"),
    "tools": ("prompt", "prompt", "none"),
    "tool_format": ("xml", "xml", "two words"),
    "fenced_calls": ("1", True, "2"),
    "reasoning": ("split", "split", "drop"),
    "think_prefilled": ("ON", True, "ja"),
    "think_calls": ("true", True, "t"),
    "max_hold": ("1024", 1024, "1023"),
    "token_warn_threshold": ("1000", 1000, "0"),
    "token_hard_threshold": ("200000", 200_000, "200k"),
    "token_target": ("60000", 60_000, "half"),
    "reset_pattern": ("/fresh", re.compile("/fresh"), "("),
    "reset_on_shrink": ("on", True, "sometimes"),
    "cache_reset": ("POST /flush_cache", "POST /flush_cache", "flush"),
    "max_sessions": ("10", 10, "0"),
    "session_idle": ("1h", 3600.0, "-5"),
    "notices": ("header", "header", "both"),
    "cold_start_notice": ("0", 0.0, "soon"),
    "model_name": ("Qwen 3.5 ✓", "Qwen 3.5 ✓", "two\nlines"),
    "log_file": ("/tmp/x.log", Path("/tmp/x.log"), "a\0b"),
    "log_body": ("0", 0, "-1"),
    "log_size": ("1MiB", 1 << 20, "1MB"),
    "log_keep": ("1", 1, "0"),
    "memory_poll": ("1m", 60.0, ""),
    "memory_gate": ("on", True, "half"),
}

#: Names and defaults that the contract promises.
ESTABLISHED = {
    "BACKEND_URL": "http://127.0.0.1:8082",
    "PORT": 8080,
    "MODEL_NAME": "",
    "MAX_CONCURRENT": 3,
    "MAX_QUEUE": 64,
    "QUEUE_TIMEOUT": 300,
    "TOKEN_WARN_THRESHOLD": 80_000,
    "TOKEN_HARD_THRESHOLD": 100_000,
    "TOKEN_TARGET": None,
    "BLOCKOPS_LOG_FILE": Path("~/.blockops/proxy.log").expanduser(),
}


class TableTests(SynchronousTestCase):
    """Properties of every setting."""

    def test_every_setting_has_an_example(self) -> None:
        # A PEM file must exist: see BackendCaTests.
        self.assertEqual(set(EXAMPLES) | {"backend_ca"}, {each.name for each in TABLE})

    def test_every_setting_parses_its_example_from_each_source(self) -> None:
        for setting in TABLE:
            if setting.name not in EXAMPLES:
                continue
            text, value, _ = EXAMPLES[setting.name]
            from_line = resolve({setting.name: text}, {})
            from_environ = resolve({}, {setting.env_var: text})
            from_file = resolve({}, {}, ConfigFile("f", {setting.option: text}))
            for settings in (from_line, from_environ, from_file):
                self.assertEqual(getattr(settings, setting.name), value, setting.name)

    def test_errors_name_the_setting_the_value_and_the_accepted_values(self) -> None:
        for setting in TABLE:
            if setting.name not in EXAMPLES:
                continue
            bad = EXAMPLES[setting.name][2]
            error = self.assertRaises(SettingError, resolve, {setting.name: bad}, {})
            line = str(error)
            self.assertEqual(len(line.splitlines()), 1, line)
            self.assertIn(f"--{setting.option}", line)
            self.assertIn(setting.value_type.accepts, line)
            (self.assertNotIn if setting.is_secret else self.assertIn)(repr(bad), line)

    def test_established_names_and_defaults(self) -> None:
        by_environ = {each.env_var: each.name for each in TABLE}
        for environ, value in ESTABLISHED.items():
            self.assertEqual(getattr(Settings(), by_environ[environ]), value)

    def test_trim_target_defaults_to_half_the_hard_threshold(self) -> None:
        self.assertEqual(Settings(token_hard_threshold=30_000).trim_target, 15_000)
        self.assertEqual(Settings(token_target=7).trim_target, 7)

    def test_target_above_the_hard_threshold(self) -> None:
        environ = {"TOKEN_TARGET": "101", "TOKEN_HARD_THRESHOLD": "100"}
        error = self.assertRaises(SettingError, resolve, {}, environ)
        self.assertIn("token-target: 101", str(error))
        self.assertIn("100", str(error))

    def test_forward_auth_excludes_a_backend_key(self) -> None:
        environ = {"BLOCKOPS_BACKEND_KEY": "sk-1", "BLOCKOPS_FORWARD_AUTH": "on"}
        error = self.assertRaises(SettingError, resolve, {}, environ)
        self.assertIn("forward-auth", str(error))
        self.assertIn("backend-key", str(error))
        self.assertNotIn("sk-1", str(error))

    def test_other_environment_names_are_derived_from_the_options(self) -> None:
        for each in TABLE:
            if each.env_var not in ESTABLISHED:
                self.assertEqual(each.env_var, "BLOCKOPS_" + each.option.upper().replace("-", "_"))

    def test_defaults_are_of_their_type(self) -> None:
        for each in TABLE:
            value = getattr(Settings(), each.name)
            if each.name in ("backend_ca", "backend_key", "token_target", "api_keys_file"):
                self.assertIsNone(value)
            elif each.name == "log_file":
                self.assertEqual(each.value_type.parse(each.default_text), value)
            else:
                self.assertEqual(each.value_type.parse(value), value)
                self.assertEqual(type(each.value_type.parse(value)), type(value), each.name)

    def test_help_is_a_sentence(self) -> None:
        for each in TABLE:
            self.assertTrue(each.help.endswith("."), each.name)
            self.assertTrue(each.default_text, each.name)

    def test_sections_are_contiguous(self) -> None:
        sections = [each.section for each in TABLE]
        runs = [s for i, s in enumerate(sections) if i == 0 or sections[i - 1] != s]
        self.assertEqual(len(runs), len(set(runs)))

    def test_settings_are_frozen_and_their_repr_omits_the_key(self) -> None:
        settings = Settings(backend_key="sk-hidden")
        self.assertRaises(FrozenInstanceError, setattr, settings, "port", 1)
        self.assertNotIn("sk-hidden", repr(settings))
        self.assertEqual({each.name for each in TABLE}, {each.name for each in fields(Settings)})


class ReadmeTests(SynchronousTestCase):
    """The README's table of settings equals `TABLE`."""

    def test_names_defaults_and_help(self) -> None:
        readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
        section = readme.partition("\n## Settings\n")[2].partition("\n## ")[0]
        rows = [each.split(" | ") for each in section.splitlines() if each.startswith("| `")]
        self.assertEqual(len(rows), len(TABLE))
        for setting, (option, environ, default, text) in zip(TABLE, rows, strict=True):
            name = f"`{setting.option}`" if setting.is_secret else f"`--{setting.option}`"
            self.assertIn(name, option)
            self.assertIn(f"`{setting.env_var}`", environ)
            self.assertEqual(default, setting.default_text)
            self.assertEqual(text.removesuffix(" |").replace("`", ""), setting.help)
