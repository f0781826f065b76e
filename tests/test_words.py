"""
The rule of words (CONTRIBUTING.md), as far as a machine can check it.

`FORBIDDEN` has the phrases of a private language that this project once spoke. `EXCEPTIONS` lists
the lines that may contain one: a real proxy is in front of, or behind, a real server.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

THIS_FILE = Path(__file__)  # it has to name the phrases
ROOT = THIS_FILE.parent.parent
FUZZ_SEEDS = ROOT / "tests" / "fuzz" / "seeds"  # texts of models

FORBIDDEN = re.compile(
    r"\b(?i:behind|anew|nobody|somebody|whoever|as far as|Return what|Take note|Say whether"
    r"|in front of)\b"
    # Case matters here: `is None` is code.
    r"|\bis none\b"
)

#: What is read: (folder, suffixes of the files that have prose or code of ours).
SOURCES = (
    ("blockops", (".py",)),
    ("twisted", (".py",)),
    ("docs", (".py", ".md")),
    ("tests", (".py", ".md", ".toml", ".mjs", ".txt", "")),
    (".github", (".md", ".yaml", ".yml")),
    ("benchmarks", (".py", ".md")),
)
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "blockops.service",
    "setup.cfg",
    "pyproject.toml",
    ".editorconfig",
    ".pre-commit-config.yaml",
    ".ci/audited",
    ".ci/lock",
    ".ci/run",
)

#: Lines that mean a real proxy, or that are the text of a model or a backend: file -> the lines,
#: stripped.
EXCEPTIONS = {
    # An earlier version sent this sentence to clients; it is removed from histories.
    "blockops/conversation/notices.py": {
        '" behind the first message is left out; /new begins anew."'
    },
}

#: Identifiers that say nothing of their value.
PARTICIPLES = frozenset(
    {"said", "told", "asked", "came", "held", "heard", "wished", "gone", "spoken", "meant"}
)


def files() -> Iterator[Path]:
    for folder, suffixes in SOURCES:
        yield from (
            path
            for path in sorted((ROOT / folder).rglob("*"))
            if path.is_file()
            and path.suffix in suffixes
            and path != THIS_FILE
            and not path.is_relative_to(FUZZ_SEEDS)
        )
    yield from (ROOT / page for page in PAGES if (ROOT / page).exists())


def identifiers(source: str) -> Iterator[tuple[int, str]]:
    """Yield every name that `source` defines, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr


def undefined_fields(source: str) -> Iterator[str]:
    """Yield the `:param:` and `:ivar:` fields of docstrings whose name `source` does not define."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        functions = [node] if not isinstance(node, ast.ClassDef) else node.body
        parameters = {
            argument.arg
            for function in functions
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for argument in ast.walk(function.args)
            if isinstance(argument, ast.arg)
        }
        attributes = {name for _, name in identifiers(ast.unparse(node))}
        if isinstance(node, ast.ClassDef):
            parameters |= attributes  # the fields of a dataclass are its parameters
        for field, name in re.findall(r":(param|ivar) (\w+):", ast.get_docstring(node) or ""):
            if name not in (parameters if field == "param" else attributes):
                yield f"{node.name}: :{field} {name}:"


class WordsTests(SynchronousTestCase):
    def test_no_forbidden_phrase(self):
        found = []
        for path in files():
            name = str(path.relative_to(ROOT))
            allowed = EXCEPTIONS.get(name, set())
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                if FORBIDDEN.search(line) and line.strip() not in allowed:
                    found.append(f"{name}:{number}: {line.strip()}")
        self.assertEqual(found, [])

    def test_every_exception_is_needed(self):
        for name, lines in EXCEPTIONS.items():
            present = {line.strip() for line in (ROOT / name).read_text("utf-8").splitlines()}
            self.assertEqual(lines - present, set(), name)
            self.assertEqual({line for line in lines if not FORBIDDEN.search(line)}, set(), name)

    def test_no_name_is_a_bare_participle(self):
        found = [
            f"{path.relative_to(ROOT)}:{line}: {name}"
            for path in sorted((ROOT / "blockops").rglob("*.py"))
            for line, name in identifiers(path.read_text("utf-8"))
            if name.strip("_").lower() in PARTICIPLES
        ]
        self.assertEqual(found, [])

    def test_documented_parameters_and_attributes_exist(self):
        found = [
            f"{path.relative_to(ROOT)}: {problem}"
            for path in sorted((ROOT / "blockops").rglob("*.py"))
            for problem in undefined_fields(path.read_text("utf-8"))
        ]
        self.assertEqual(found, [])

    def test_undefined_fields_are_found(self):
        source = (
            "class C:\n"
            '    """Text.\n\n    :param a: x\n    :param b: y\n'
            '    :ivar c: z\n    :ivar d: z\n    """\n'
            "    def __init__(self, a):\n        self.c = a\n"
            'def f(x):\n    """Text.\n\n    :param y: z\n    """\n'
        )
        self.assertEqual(
            list(undefined_fields(source)), ["C: :param b:", "C: :ivar d:", "f: :param y:"]
        )

    def test_a_phrase_is_found_wherever_it_stands(self):
        for text in ("# the text behind it", "Return what", "AS FAR AS", "(in front of)"):
            self.assertIsNotNone(FORBIDDEN.search(text), text)
        self.assertIsNone(FORBIDDEN.search("a fragmenthind, a new one, some body"))
