"""Lists of models, and aliases in requests and responses."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.models import (
    find_model,
    list_with_aliases,
    rename_entry,
    rename_model,
    replace_alias,
)

ALIASES = {"short": "org/long"}
LISTING = b'{"object":"list","data":[{"id":"org/long","n":1.50},{"id":7}],"x":1e5}'


class AliasTests(SynchronousTestCase):
    def test_request(self) -> None:
        for body, expected in (
            (b'{"model": "short", "x": 1.50}', (b'{"model":"org/long","x":1.50}', "short")),
            (b'{"model": "other", "x": 1.50}', (b'{"model": "other", "x": 1.50}', None)),
            (b'{"model": 7}', (b'{"model": 7}', None)),
            (b'"model"', (b'"model"', None)),
            (b"no JSON", (b"no JSON", None)),
        ):
            self.assertEqual(replace_alias(body, ALIASES), expected)
        self.assertEqual(replace_alias(b'{"model":"short"}', {}), (b'{"model":"short"}', None))

    def test_response(self) -> None:
        renamed = rename_model(b'{"a": 1.50, "model": "org/long"}', "short")
        self.assertEqual(renamed, b'{"a":1.50,"model":"short"}')
        for body in (b'{"model": ""}', b'{"model": "short"}', b'{"model": null}', b"{}", b"model"):
            self.assertEqual(rename_model(body, "short"), body)


class ListTests(SynchronousTestCase):
    def test_entry_of_an_alias(self) -> None:
        """It has the fields of its model's entry."""
        self.assertEqual(
            list_with_aliases(LISTING, ALIASES),
            b'{"object":"list","data":[{"id":"org/long","n":1.50},{"id":7},'
            b'{"id":"short","n":1.50}],"x":1e5}',
        )

    def test_model_that_is_not_listed(self) -> None:
        (entry,) = json.loads(list_with_aliases(b'{"data":[]}', ALIASES))["data"]
        self.assertEqual(
            entry, {"id": "short", "object": "model", "created": 0, "owned_by": "blockops"}
        )

    def test_unchanged(self) -> None:
        self.assertEqual(list_with_aliases(LISTING, {"org/long": "x"}), LISTING)
        for listing in (b"", b"{}", b"[]", b'{"data":{}}', b'{"data":[1]}', b'{"data":[{}]'):
            self.assertEqual(list_with_aliases(listing, ALIASES), listing)

    def test_find(self) -> None:
        self.assertEqual(find_model(LISTING, "org/long"), b'{"id":"org/long","n":1.50}')
        self.assertEqual(find_model(b'{"data":[1, { "id" : "a" }]}', "a"), b'{ "id" : "a" }')
        for listing in (b"", b"{}", b'{"data":null}', LISTING):
            self.assertIsNone(find_model(listing, "absent"))

    def test_rename_entry(self) -> None:
        self.assertEqual(rename_entry(b'{"id": "a", "n": 1.50}', "b"), b'{"id":"b","n":1.50}')
        self.assertEqual(rename_entry(b"[1]", "b"), b"[1]")
