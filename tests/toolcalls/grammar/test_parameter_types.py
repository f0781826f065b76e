"""A parameter's text becomes the JSON value that its schema requires."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.toolcalls.grammar.parameter_types import (
    MAX_LITERAL,
    Parameters,
    ParameterType,
    StreamingValue,
    normalize_schema,
)
from tests.toolcalls.grammar.test_json_stream import VALUES


def type_of(schema: Any, **defs: Any) -> ParameterType:
    """Return the type of a parameter with this schema."""
    return Parameters({"properties": {"p": schema}, "$defs": defs}).type_of("p")


def to_json(parameter_type: ParameterType, text: str) -> str:
    """Return the JSON of the value that `text` stands for."""
    value = StreamingValue(parameter_type)
    value.feed(text)
    return value.to_json()


class SchemaTestCase(SynchronousTestCase):
    def assert_written(self, schema: Any, cases: dict[str, str], **defs: Any) -> None:
        """Assert that each text (key) becomes that JSON (value)."""
        for text, written in cases.items():
            self.assertEqual(written, to_json(type_of(schema, **defs), text), text)

    def assert_stay_strings(self, schema: Any, *texts: str) -> None:
        for text in texts:
            self.assertEqual(text, json.loads(to_json(type_of(schema), text)), text)


class TypeTests(SchemaTestCase):
    def test_integer(self) -> None:
        self.assert_written(
            {"type": "integer"},
            {
                "5": "5",
                " -12\n": "-12",
                "140.0": "140",
                "1.4e2": "140",
                "-0.0": "-0",
                "123456789012345678901234567890": "123456789012345678901234567890",
                "+5": "5",
                "1_000": "1000",
                "0x1F": "31",
            },
        )
        self.assert_stay_strings(
            {"type": "integer"}, "1.5", "five", "", "05", "true", "1e400", '"5"'
        )

    def test_thousands_of_digits(self) -> None:
        digits = "9" * 6000
        self.assert_written({"type": "integer"}, {digits: digits, digits + ".0": digits})

    def test_number(self) -> None:
        self.assert_written(
            {"type": "number"},
            {"5": "5", "140.0": "140.0", "1e400": "1e400", "-2.50": "-2.50", ".5": "0.5"},
        )
        self.assert_stay_strings({"type": "number"}, "NaN", "Infinity", "1,5", "-", "9" * 5 + "_")

    def test_integer_or_number(self) -> None:
        self.assert_written({"type": ["integer", "number"]}, {"140.0": "140.0", "3": "3"})

    def test_boolean(self) -> None:
        self.assert_written(
            {"type": "boolean"}, {"true": "true", "False": "false", "\ntrue\n": "true"}
        )
        self.assert_stay_strings({"type": "boolean"}, "yes", "1", "TRUE", '"true"')

    def test_null(self) -> None:
        self.assert_written({"type": "null"}, {"null": "null", "None": "null"})
        self.assert_stay_strings({"type": "null"}, "nil", "")

    def test_array(self) -> None:
        self.assert_written(
            {"type": "array"},
            {
                "[1, 2.50]": "[1, 2.50]",
                "[]": "[]",
                "['a', True, None]": '["a", true, null]',
                "(1, 2)": "[1, 2]",
                "[1, 2,] ": "[1, 2]",
                '["a\nb"]': '["a\\nb"]',
                "[('a', 1)]": '[["a", 1]]',
            },
        )
        self.assert_stay_strings(
            {"type": "array"},
            "1, 2",
            "(1)",
            "'a', 'b'",
            "{}",
            "[1, 2",
            "[b'x']",
            "[NaN]",
            "[1]]",
            "{1, 2}",
            "[1e]",
        )

    def test_object(self) -> None:
        self.assert_written(
            {"type": "object"},
            {
                '{"a": {"b": [1.0]}}': '{"a": {"b": [1.0]}}',
                "{'a': None}": '{"a": null}',
                "{a: 1, // one\n}": '{"a": 1 \n}',
                "{1: 'x'}": '{"1": "x"}',
                '{"a": "\\ud83d"}': '{"a": "\\ud83d"}',
            },
        )
        self.assert_stay_strings({"type": "object"}, "[]", "{", "{'a'}", "{(1,): 2}", "{[]: 1}")

    def test_string(self) -> None:
        self.assertTrue(type_of({"type": "string"}).is_string)
        self.assert_stay_strings({"type": "string"}, "5", '"x"', " a\n", "null", "\x00 é 😀")

    def test_lone_surrogate_stays_an_escape(self) -> None:
        """A lone surrogate cannot be encoded as UTF-8."""
        self.assert_written({"type": "array"}, {r"('\ud83d',)": r'["\ud83d"]'})
        self.assert_written({"type": "array"}, {r"['\x41\ud83d', 'é']": r'["A\ud83d", "\u00e9"]'})
        self.assert_written(
            {"type": "object"}, {r"{'a': '\ude00', 1: 2}": r'{"a": "\ude00", "1": 2}'}
        )
        self.assert_written({"type": "array"}, {r"('\U0001f600', 'é')": '["😀", "é"]'})

    def test_deep_nesting(self) -> None:
        self.assert_stay_strings({"type": "array"}, "[" * 100_000, "[" * 50 + "'" + "]" * 50)

    def test_literals_are_bounded(self) -> None:
        longest = "(" + "1," * (MAX_LITERAL // 2 - 1) + ")"
        self.assertEqual("[1, 1", to_json(type_of({"type": "array"}), longest)[:5])
        self.assert_stay_strings({"type": "array"}, longest + " " * 0 + "\n\n#" * 3)


class SchemaListTests(SynchronousTestCase):
    """Parameters declared as a list, as Qwen-Agent does."""

    def test_a_list(self) -> None:
        a = {"name": "a", "type": "integer", "description": "One.", "required": True}
        declared = [a, {"name": "b", "type": "string", "required": False}, {"type": "x"}, 7]
        schema = normalize_schema(declared)
        self.assertEqual(
            schema,
            {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "One."},
                    "b": {"type": "string"},
                },
                "required": ["a"],
            },
        )
        self.assertEqual(to_json(Parameters(schema).type_of("a"), "17"), "17")
        self.assertEqual(to_json(Parameters(schema).type_of("b"), "17"), '"17"')

    def test_other_values_are_unchanged_or_empty(self) -> None:
        for declared in ({"type": "object"}, True, "x"):
            self.assertIs(normalize_schema(declared), declared)
        empty_values: list[Any] = [None, [], {}, 0]
        for empty in empty_values:
            self.assertEqual(normalize_schema(empty), {})


class CertaintyTests(SynchronousTestCase):
    """A text is certain to be a string at the same character for every split."""

    def assert_certain(self, schema: Any, certain: str, rest: str = "") -> None:
        """Assert that `certain`, and nothing shorter, is certain to be a string."""
        text = certain + rest
        for start in (0, len(certain) - 1):
            value = StreamingValue(type_of(schema))
            value.feed(text[:start])
            certain_at = [start] if value.is_string else []
            for at in range(start, len(text)):
                value.feed(text[at])
                certain_at += [at + 1] if value.is_string else []
            self.assertEqual([*range(len(certain), len(text) + 1)], certain_at, text)
        value = StreamingValue(type_of(schema))
        value.feed(text)
        self.assertTrue(value.is_string)
        self.assertEqual(text, json.loads(value.to_json()))

    def assert_open(self, schema: Any, *texts: str) -> None:
        """Assert that no text is certain to be a string."""
        for text in texts:
            for step in (1, 7, len(text) + 1):
                value = StreamingValue(type_of(schema))
                for at in range(0, len(text), step):
                    value.feed(text[at : at + step])
                    self.assertFalse(value.is_string, text)

    def test_words(self) -> None:
        for schema in (
            {"type": ["string", "null"]},
            {"anyOf": [{"type": "string"}, {"type": "null"}]},
            {"type": "string", "nullable": True},
            {"enum": ["a", None]},
        ):
            self.assert_certain(schema, "x", "yz")
            self.assert_certain(schema, " \n5")
            self.assert_certain(schema, "Nor", "th")
            self.assert_certain(schema, "None o", "f it")
            self.assert_certain(schema, "{")
            self.assert_open(schema, "", " " * 100, "null", "\n None \n", "nul")
        self.assert_certain({"type": "boolean"}, "null"[:1])
        self.assert_open({"type": "boolean"}, "true", "False ", " f")

    def test_numbers(self) -> None:
        for schema in ({"type": ["string", "integer"]}, {"enum": [1, "x"]}, {"const": 2.5}):
            self.assert_certain(schema, "x")
            self.assert_certain(schema, "12 k", "m")
            self.assert_certain(schema, "-x")
            self.assert_certain(schema, "5,")
            self.assert_open(schema, "-", "+5 ", "0x1F", "1.5e+7", "9" * 5000 + " ", ".5", "1_000")

    def test_brackets(self) -> None:
        self.assert_certain({"type": "array"}, "{", "}")
        self.assert_certain({"type": ["object", "null"]}, "[")
        self.assert_open({"type": "array"}, "[1", "(1,", " [" + "1, " * 5000, "[x", "[1] x")
        self.assert_open({"type": "object"}, "{", "{'a': 1}" + " " * 5000)
        self.assert_open({"enum": [[1], {"a": 1}]}, "[", "{")

    def test_invalid_json_that_is_too_long_for_python(self) -> None:
        long = "x y" + "x" * (MAX_LITERAL - 3)
        self.assert_certain({"type": "array"}, "[" + long, "]")
        self.assert_certain({"type": "array"}, " (" + long)
        self.assert_certain({"type": "array"}, "[1] " + long[3:], "y")
        self.assert_certain({"type": "array"}, "[1]" + " " * 2 * MAX_LITERAL + "x")
        self.assert_certain({"type": "array"}, r'["\x' + long[3:], '"]')


class DeclarationTests(SchemaTestCase):
    """The types that a schema allows, in every way to declare them."""

    def test_no_type(self) -> None:
        schemas: tuple[Any, ...] = (
            {},
            None,
            True,
            [],
            "integer",
            {"description": "x"},
            {"type": 5},
            {"type": None},
            {"enum": "x"},
            {"anyOf": {}},
            {"$ref": 5},
            {"$ref": "other.json#/x"},
            {"$ref": "#/$defs/missing/deeper"},
            {"minLength": 3},
        )
        for schema in schemas:
            self.assertTrue(type_of(schema).is_string, schema)
        without_p: tuple[Any, ...] = (None, [], {"properties": []}, {"properties": {"q": {}}})
        for parameters in without_p:
            self.assertTrue(Parameters(parameters).type_of("p").is_string, parameters)

    def test_unions(self) -> None:
        for schema in (
            {"type": ["string", "integer", "null"]},
            {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
            {"oneOf": [{"type": "integer"}, {"anyOf": [{"type": "null"}, {"type": "string"}]}]},
            {"allOf": [{"description": "x"}, {"type": ["null", "integer", "string"]}]},
            {"type": ["string", "integer"], "nullable": True},
        ):
            self.assert_written(
                schema, {"7": "7", "null": "null", '"7"': '"\\"7\\""', "x": '"x"', "7.0": "7"}
            )

    def test_large_unions(self) -> None:
        many = {"oneOf": [{"const": number} for number in range(100)]}
        self.assert_written(many, {"80": "80", "100": '"100"'})
        steps = {f"d{at}": {"$ref": f"#/$defs/d{at + 1}"} for at in range(100)}
        self.assert_written({"$ref": "#/$defs/d0"}, {"5": "5"}, **steps, d100={"type": "integer"})

    def test_references(self) -> None:
        defs = {
            "size": {"type": "integer"},
            "a/b~c": {"anyOf": [{"$ref": "#/$defs/size"}, {"$ref": "#/$defs/loop"}]},
            "loop": {"$ref": "#/$defs/loop"},
        }
        self.assert_written({"$ref": "#/$defs/size"}, {"7": "7", "x": '"x"'}, **defs)
        self.assert_written({"$ref": "#/$defs/a~1b~0c"}, {"7": "7"}, **defs)
        self.assert_written({"$ref": "#/$defs/size/type"}, {"7": '"7"'}, **defs)
        self.assertTrue(type_of({"$ref": "#/$defs/loop"}, **defs).is_string)

    def test_reference_to_the_root(self) -> None:
        self.assert_written({"$ref": "#"}, {"{}": "{}", "5": '"5"'})

    def test_the_schema_of_the_function_may_be_combined(self) -> None:
        parameters = Parameters(
            {
                "$ref": "#/definitions/base",
                "allOf": [{"properties": {"b": {"type": "boolean"}}}],
                "definitions": {"base": {"properties": {"a": {"type": "integer"}}}},
            }
        )
        self.assertEqual({"a", "b"}, set(parameters.properties))
        self.assertEqual("1", to_json(parameters.type_of("a"), "1"))

    def test_enum(self) -> None:
        self.assert_written(
            {"enum": [1, 2.5, "auto", None, True, [1], {"a": 1}]},
            {
                "1": "1",
                "1.0": "1.0",
                "2.50": "2.50",
                "2.5": "2.5",
                "auto": '"auto"',
                "None": "null",
                "true": "true",
                "[1]": "[1]",
                "{'a': 1}": '{"a": 1}',
                "3": '"3"',
                "False": '"False"',
            },
        )
        self.assert_written({"enum": [True, 0]}, {"1": '"1"', "False": '"False"', "-0.0": "-0.0"})
        self.assert_written({"enum": [1, 2.0]}, {"2": "2", "2.0": "2.0"})
        self.assertTrue(type_of({"enum": ["1", "2"]}).is_string)
        self.assert_written({"enum": [10]}, {"9" * 6000: f'"{"9" * 6000}"'})

    def test_const(self) -> None:
        self.assert_written({"const": 3}, {"3": "3", "3.0": "3.0", "4": '"4"'})
        self.assertTrue(type_of({"const": "3"}).is_string)

    def test_python_scalars_must_be_the_whole_text(self) -> None:
        self.assert_stay_strings({"type": "integer"}, "5 # c", "# c\n5", "- 5", "5\\\n", "(5)")
        self.assert_written({"type": "array"}, {"[5, # c\n 6]": "[5, 6]"})

    def test_implied_types(self) -> None:
        for schema, text in (
            ({"properties": {"a": {}}}, '{"a": 1}'),
            ({"additionalProperties": False}, "{}"),
            ({"items": {}}, "[1]"),
            ({"prefixItems": []}, "[1]"),
        ):
            self.assert_written(schema, {text: text})

    @given(VALUES)
    def test_any_value_survives(self, value: object) -> None:
        any_type = {"type": ["null", "boolean", "integer", "number", "array", "object", "string"]}
        text = value if isinstance(value, str) else json.dumps(value)
        if not isinstance(value, str):
            self.assertEqual(text, to_json(type_of(any_type), f"\n{text} "))

    @given(st.text(), st.text("0123456789.eE+-_xTrueFalsNo[]{}\"':, ", max_size=12))
    def test_any_text_becomes_json(self, text: str, value_like: str) -> None:
        any_type = {"type": ["null", "boolean", "integer", "number", "array", "object", "string"]}
        for each in (text, value_like):
            for schema in (any_type, {"type": "integer"}, {"type": "array"}, {"enum": [1, None]}):
                json.loads(to_json(type_of(schema), each))
