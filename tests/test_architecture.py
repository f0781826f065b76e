"""
Who may import whom, read from the sources.

The core (`wire`, and `conversation` once it is there) knows nothing of Twisted, sockets, clocks and
logs; the shell's parts do not know one another; one function alone picks the reactor.
"""

from __future__ import annotations

import ast
import configparser
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "blockops"

CORE = ("blockops.wire", "blockops.conversation")

#: What the core may import besides the standard library and itself.
CORE_LIBRARIES = ("msgspec",)

#: Parts of the standard library that are no business of values in, values out.
WORLDLY = (
    "asyncio",
    "concurrent",
    "datetime",
    "http.client",
    "http.server",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "select",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "urllib.request",
)

#: Moves bytes and places; what the bytes mean is the core's business.
WITHOUT_JSON = (
    "admission",
    "agent",
    "downstream",
    "inflate",
    "nearby",
    "pulse",
    "relay",
    "responses",
    "upstream",
)

#: Names of other libraries that begin with `_` and that we use all the same, and why.
#: module of ours -> the names
PRIVATE: dict[str, set[str]] = {}

#: What comes with a library that we require, by the name it is imported by.
ALONG_WITH = {"hyperlink": "twisted", "zope": "twisted", "prometheus_client": "prometheus-client"}


@dataclass(frozen=True)
class Import:
    """`from module import name`, or `import module` where `name` is None."""

    module: str
    name: str | None = None

    @property
    def library(self) -> str:
        return self.module.partition(".")[0]

    @property
    def private(self) -> bool:
        parts = [*self.module.split("."), self.name or ""]
        return any(re.match(r"_(?!_)", part) for part in parts) and self.module != "__future__"

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


def imports_of(source: str, module: str, *, package: bool = False) -> set[Import]:
    """
    Return what `source` imports, wherever in it that stands.

    :param module: the name of what `source` is
    :param package: `source` is the package's `__init__.py`
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {Import(each.name) for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parts = module.split(".")
                base = parts[: len(parts) - node.level + package]
                origin = ".".join([*base, *([origin] if origin else [])])
            found |= {Import(origin, each.name) for each in node.names}
    return found


@cache
def modules() -> dict[str, set[Import]]:
    """Return every module of blockops and what it imports."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if package else parts)
        found[name] = imports_of(path.read_text("utf-8"), name, package=package)
    return found


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in packages)


class ReadingTests(SynchronousTestCase):
    """The reading itself."""

    def read(self, source: str, **more: bool) -> set[str]:
        return {str(each) for each in imports_of(source, "blockops.wire.sse", **more)}

    def test_every_way_to_import(self):
        self.assertEqual(self.read("import a.b, c as d"), {"a.b", "c"})
        self.assertEqual(self.read("from a.b import c as d, e"), {"a.b.c", "a.b.e"})
        self.assertEqual(self.read("from . import x"), {"blockops.wire.x"})
        self.assertEqual(self.read("from .x import y"), {"blockops.wire.x.y"})
        self.assertEqual(self.read("from ..x import y"), {"blockops.x.y"})
        self.assertEqual(self.read("from .x import y", package=True), {"blockops.wire.sse.x.y"})
        self.assertEqual(self.read("def f():\n  if TYPE_CHECKING:\n    import a"), {"a"})

    def test_what_is_private(self):
        for private, each in (
            (True, Import("twisted.web._newclient")),
            (True, Import("twisted.web._newclient", "HTTPParser")),
            (True, Import("twisted.web.http", "_ChunkedTransferDecoder")),
            (False, Import("twisted.web.http", "HTTPChannel")),
            (False, Import("__future__", "annotations")),
            (False, Import("blockops", "__version__")),
        ):
            self.assertEqual(each.private, private, str(each))

    def test_there_is_something_to_read(self):
        names = modules()
        for name in ("blockops", "blockops.wire.transcode", "blockops.tap", "blockops.upstream"):
            self.assertIn(name, names)
        self.assertIn("treq.client.HTTPClient", {str(each) for each in names["blockops.upstream"]})


class ArchitectureTests(SynchronousTestCase):
    def setUp(self):
        self.modules = modules()

    def complaints(self, *found: str) -> None:
        self.assertEqual(sorted(found), [])

    def test_the_core_imports_itself_msgspec_and_the_worldless_standard_library(self):
        allowed = (*CORE, *CORE_LIBRARIES, *sys.stdlib_module_names)
        self.complaints(
            *(
                f"{name} imports {each}"
                for name, imports in self.modules.items()
                if within(name, CORE)
                for each in imports
                if not within(each.module, allowed) or within(str(each), WORLDLY)
            )
        )

    def test_the_core_waits_for_nothing(self):
        self.complaints(
            *(
                f"{path}:{node.lineno}"
                for package in CORE
                for path in (ROOT / package.replace(".", "/")).rglob("*.py")
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, ast.AsyncFunctionDef | ast.Await)
            )
        )

    def test_only_upstream_imports_treq(self):
        users = {
            name
            for name, imports in self.modules.items()
            if any(each.library == "treq" for each in imports)
        }
        self.assertEqual(users, {"blockops.upstream"})

    def test_the_parts_of_the_shell_do_not_know_one_another(self):
        parts = {f"blockops.{name}" for name in ("admission", "upstream", "downstream")}
        self.complaints(
            *(
                f"{part} imports {each}"
                for part in parts
                for each in self.modules[part]
                if within(str(each), tuple(parts - {part}))
            )
        )

    def test_the_shell_moves_bytes_and_reads_no_json(self):
        self.complaints(
            *(
                f"{name} imports {each}"
                for name in WITHOUT_JSON
                for each in self.modules[f"blockops.{name}"]
                if each.library in ("json", "msgspec")
            )
        )

    def test_the_ways_in_and_out_of_a_connection_know_nothing_of_what_is_behind(self):
        allowed = {"blockops.bodies": ("limits", "wire"), "blockops.head": ("limits", "wire")}
        for name in ("blockops.bodies", "blockops.head", "blockops.eager"):
            near = tuple(f"blockops.{each}" for each in allowed.get(name, ()))
            self.complaints(
                *(
                    f"{name} imports {each}"
                    for each in self.modules[name]
                    if each.library == "blockops" and not within(str(each), near)
                )
            )
        for name in allowed:
            self.complaints(
                *(
                    f"{name} imports {each}"
                    for each in self.modules[name]
                    if within(str(each), ("twisted.internet",))
                )
            )

    def test_settings_are_pure(self):
        for name in ("blockops.kinds", "blockops.settings"):
            libraries = {each.library for each in self.modules[name]}
            self.assertEqual(libraries - sys.stdlib_module_names - {"blockops"}, set())

    def test_only_makeservice_imports_the_reactor(self):
        users = {
            name
            for name, imports in self.modules.items()
            if {"twisted.internet.reactor"} & {str(each) for each in imports}
        }
        self.assertEqual(users, {"blockops.tap"})

    def test_makeservice_imports_it_when_it_is_called(self):
        tree = ast.parse((PACKAGE / "tap.py").read_text("utf-8"))
        at_import = ast.Module(
            [each for each in tree.body if not isinstance(each, ast.FunctionDef)], []
        )
        found = {str(each) for each in imports_of(ast.unparse(at_import), "blockops.tap")}
        self.assertNotIn("twisted.internet.reactor", found)
        self.assertNotIn("blockops.service.make_service", found)

    def test_private_names_are_left_alone(self):
        found = {
            name: {str(each) for each in imports if each.private}
            for name, imports in self.modules.items()
        }
        self.assertEqual({name: each for name, each in found.items() if each}, PRIVATE)

    def test_private_attributes_are_left_alone(self):
        """Ruff refuses them (SLF001); whoever silences it must be named above."""
        silent = {
            str(path.relative_to(ROOT))
            for path in PACKAGE.rglob("*.py")
            if re.search(r"noqa:.*SLF001", path.read_text("utf-8"))
        }
        named = {name.replace(".", "/") + ".py" for name in PRIVATE}
        self.assertEqual(silent - named, set())

    def test_every_library_is_required_and_nothing_else_is_imported(self):
        metadata = configparser.ConfigParser()
        metadata.read(ROOT / "setup.cfg", "utf-8")
        lines = metadata["options"]["install_requires"].split("\n")
        required = {re.split(r"[\[>=]", each)[0] for each in lines if each and each[0] != "#"}
        used = {
            ALONG_WITH.get(each.library, each.library)
            for imports in self.modules.values()
            for each in imports
            if each.library not in sys.stdlib_module_names
        }
        # Twisted itself imports it, to check the names in certificates.
        self.assertEqual(used - {"blockops"}, required - {"service-identity"})

    def test_nobody_imports_in_circles(self):
        graph = {
            name: {
                target
                for each in imports
                for target in (str(each), each.module)
                if target in self.modules and target != name
            }
            for name, imports in self.modules.items()
        }
        while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
            graph = {name: targets for name, targets in graph.items() if name not in leaves}
        self.assertEqual(sorted(graph), [])
