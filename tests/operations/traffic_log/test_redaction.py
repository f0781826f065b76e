"""Secrets are masked in any format, and wherever a text is truncated."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.operations.traffic_log.redaction import MASK, loggable_headers, redact

SECRET = "Zq7_hidden~Value"

FIELDS = (
    "api_key",
    "apiKey",
    "API-Key",
    "x-api-key",
    "openai_api_key",
    "Authorization",
    "proxy-authorization",
    "access_token",
    "refreshToken",
    "auth token",
    "client_secret",
    "secret",
    "aws_secret_access_key".removeprefix("aws_"),
    "private_key",
    "Cookie",
    "set-cookie",
    "password",
    "passwd",
    "credentials",
)


class FieldTests(SynchronousTestCase):
    def test_each_field_name(self):
        for name in FIELDS:
            text = redact(json.dumps({"a": 1, name: SECRET, "z": "kept"}))
            self.assertEqual(json.loads(text), {"a": 1, name: MASK, "z": "kept"})

    def test_each_form_of_value(self):
        for value in (
            SECRET,
            f'{SECRET}" and \\ {SECRET}',
            [SECRET, SECRET],
            {"x": SECRET},
            123456,
        ):
            text = redact(json.dumps({"password": value, "z": "kept"}))
            self.assertNotIn("Zq7", text)
            self.assertNotIn("123456", text)
            self.assertEqual(json.loads(text)["z"], "kept")

    def test_json_in_json_in_json(self):
        text = json.dumps({"api_key": SECRET, "z": "kept"})
        for _ in range(3):
            text = json.dumps({"content": f"Use {text} now", "more": 1})
            redacted = redact(text)
            self.assertNotIn("Zq7", redacted)
            self.assertIn("kept", redacted)
            self.assertEqual(json.loads(redacted)["more"], 1)

    @given(st.integers(min_value=0, max_value=2), st.sampled_from(FIELDS), st.data())
    def test_truncated_anywhere(self, depth, name, data):
        text = json.dumps({"a": "b", name: SECRET, "z": "kept"})
        for _ in range(depth):
            text = json.dumps({"content": text})
        cut = data.draw(st.integers(min_value=0, max_value=len(text)))
        self.assertNotIn("Zq", redact(text[:cut]))

    def test_python_and_whitespace(self):
        self.assertNotIn("Zq7", redact(f"{{'api_key' : '{SECRET}'}}"))
        self.assertNotIn("Zq7", redact(f'{{"api_key"\n:\t"{SECRET}"}}'))

    def test_other_texts_are_unchanged(self):
        for text in (
            '{"token": "Hello", "logprob": -0.1, "bytes": [72]}',
            '{"max_tokens": 5, "completion_tokens": 7, "stop_token": "x"}',
            '{"api_key": null, "password": true}',
            "Write a function that checks a password: it must be long.",
            '{"description": "the secret of success", "properties": {"key": {"type": "string"}}}',
            '{"name": "ask-for-it", "task-list": "sk-short"}',
        ):
            self.assertEqual(redact(text), text)

    def test_credentials_with_a_recognisable_form(self):
        for text in (
            f"curl -H 'Authorization: Bearer {SECRET}'",
            f"authorization: basic {SECRET}",
            f"key sk-{SECRET} here",
            f"hf_{SECRET}",
        ):
            self.assertNotIn("Zq7", redact(text))

    def test_known_secrets_anywhere(self):
        self.assertEqual(redact(f"a{SECRET}b", [SECRET]), f"a{MASK}b")

    def test_truncated_secrets(self):
        for size in range(4, 15):
            text = "key is " + "sesame-key-1234"[:size]
            self.assertEqual(redact(text, ["sesame-key-1234"]), "key is ***", size)
        for text in ("Bearer abcdefg", "x sk-a", "Basic Zm9"):
            self.assertTrue(redact(text).endswith("***"), text)
        self.assertEqual(redact("it is ses", ["sesame-key-1234"]), "it is ses")

    def test_linear_time(self):
        """A search that restarts at each character would take hours."""
        for piece in ('\\"', '"api_key', '"api_key":"', '"password" : [', "\\", "Bearer ", '"a'):
            text = "secret sk-" + piece * (300_000 // len(piece))
            self.assertTrue(redact(text).startswith("secret"))


class HeaderTests(SynchronousTestCase):
    def test_only_harmless_headers(self):
        headers = {
            "Authorization": "Bearer x",
            "Cookie": "x",
            "X-Api-Key": "x",
            "Api-Key": "x",
            "X-Unheard-Of": "x",
            "User-Agent": "curl/8",
            "Content-Type": "application/json",
        }
        self.assertEqual(
            loggable_headers(headers), {"user-agent": "curl/8", "content-type": "application/json"}
        )
