"""
The import rules of docs/architecture.md, read from the sources.

`LEVELS` orders the packages: a package imports only packages of a lower level. The packages in
`CORE` are sans-IO: they import no Twisted, no clock and nothing else that reaches the outside.
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

#: A package or top-level module imports only those of a lower level, besides itself.
LEVELS = {
    "errors": 1,
    "toolcalls": 1,
    "settings": 1,
    "net": 1,
    "plugins": 2,
    "api": 2,
    "translation": 3,
    "conversation": 3,
    "server": 3,
    "upstream": 3,
    "operations": 3,
    "demo": 3,
    "proxy": 4,
    "daemon": 5,
    "cli": 6,
    "doctor": 7,
    "tap": 7,
}

CORE = ("toolcalls", "api", "translation", "conversation")

#: Libraries that the core may import besides the standard library.
CORE_LIBRARIES = ("msgspec",)

#: Modules of the standard library that reach the outside world: closed to the core.
OUTSIDE_WORLD = (
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

#: These move bytes: what the bytes mean as JSON is the core's task.
WITHOUT_JSON = ("blockops.server", "blockops.net", "blockops.upstream.http")

#: These get values. Only `proxy` and the packages above it read `Settings`.
WITHOUT_SETTINGS = ("server", "upstream", "operations", *CORE)

#: The most modules that a package may have, its subpackages and `__init__` not counted.
MAX_MODULES = 12

#: What `ls blockops` shows besides the packages in `LEVELS`.
TOP_LEVEL_FILES = {
    "__init__.py",
    "doctor.py",
    "errors.py",
    "plugins.py",
    "py.typed",
    "tap.py",
}

#: Import name -> the requirement in setup.cfg that installs it.
INSTALLED_BY = {
    "hyperlink": "twisted",
    "OpenSSL": "twisted",
    "zope": "twisted",
    "prometheus_client": "prometheus-client",
}


@dataclass(frozen=True)
class Import:
    """`from module import name`, or `import module` if `name` is None."""

    module: str
    name: str | None = None

    @property
    def library(self) -> str:
        return self.module.partition(".")[0]

    @property
    def is_private(self) -> bool:
        parts = [*self.module.split("."), self.name or ""]
        return any(re.match(r"_(?!_)", part) for part in parts) and self.module != "__future__"

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


def imports_of(source: str, module: str, *, package: bool = False) -> set[Import]:
    """
    Return every import in `source`, at any depth.

    :param module: the dotted name of the source's module
    :param package: `source` is the package's `__init__.py`
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {Import(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parts = module.split(".")
                base = parts[: len(parts) - node.level + package]
                origin = ".".join([*base, *([origin] if origin else [])])
            found |= {Import(origin, alias.name) for alias in node.names}
    return found


@cache
def modules() -> dict[str, set[Import]]:
    """Return every module of blockops with its imports."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if package else parts)
        found[name] = imports_of(path.read_text("utf-8"), name, package=package)
    return found


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def unit_of(name: str) -> str:
    """Return the key of `LEVELS` that a dotted name belongs to; "" for blockops itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


class ImportReadingTests(SynchronousTestCase):
    """`imports_of` itself."""

    def read(self, source: str, **more: bool) -> set[str]:
        return {str(found) for found in imports_of(source, "blockops.api.sse", **more)}

    def test_every_form_of_import(self):
        self.assertEqual(self.read("import a.b, c as d"), {"a.b", "c"})
        self.assertEqual(self.read("from a.b import c as d, e"), {"a.b.c", "a.b.e"})
        self.assertEqual(self.read("from . import x"), {"blockops.api.x"})
        self.assertEqual(self.read("from .x import y"), {"blockops.api.x.y"})
        self.assertEqual(self.read("from ..x import y"), {"blockops.x.y"})
        self.assertEqual(self.read("from .x import y", package=True), {"blockops.api.sse.x.y"})
        self.assertEqual(self.read("def f():\n  if TYPE_CHECKING:\n    import a"), {"a"})

    def test_private_names(self):
        for private, found in (
            (True, Import("twisted.web._newclient")),
            (True, Import("twisted.web._newclient", "HTTPParser")),
            (True, Import("twisted.web.http", "_ChunkedTransferDecoder")),
            (False, Import("twisted.web.http", "HTTPChannel")),
            (False, Import("__future__", "annotations")),
            (False, Import("blockops", "__version__")),
        ):
            self.assertEqual(found.is_private, private, str(found))

    def test_the_modules_are_found(self):
        names = modules()
        for name in ("blockops", "blockops.tap", "blockops.translation.stream"):
            self.assertIn(name, names)
        imports = {str(found) for found in names["blockops.upstream.client"]}
        self.assertIn("treq.client.HTTPClient", imports)


class ArchitectureTests(SynchronousTestCase):
    def setUp(self):
        self.modules = modules()

    def assert_none(self, *violations: str) -> None:
        self.assertEqual(sorted(violations), [])

    def test_imports_go_down(self):
        self.assert_none(
            *(
                f"{name} imports {found}"
                for name, imports in self.modules.items()
                for found in imports
                if found.library == "blockops"
                and (target := unit_of(str(found))) in LEVELS
                and target != unit_of(name) != ""
                and LEVELS[unit_of(name)] <= LEVELS[target]
            )
        )

    def test_every_package_has_a_level(self):
        units = {unit_of(name) for name in self.modules} - {""}
        self.assertEqual(units, set(LEVELS))

    def test_the_top_level_is_short(self):
        present = {
            path.name
            for path in PACKAGE.iterdir()
            if path.name != "__pycache__" and not (path.is_dir() and path.name in LEVELS)
        }
        self.assertEqual(present, TOP_LEVEL_FILES)

    def test_no_package_is_crowded(self):
        for folder in {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}:
            names = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
            self.assertLessEqual(len(names), MAX_MODULES, folder.name)

    def test_every_package_states_its_scope(self):
        for path in PACKAGE.rglob("__init__.py"):
            docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            self.assertGreater(len(docstring), 80, str(path))

    def test_the_core_is_sans_io(self):
        core = tuple(f"blockops.{name}" for name in CORE)
        allowed = (*core, "blockops.errors", *CORE_LIBRARIES, *sys.stdlib_module_names)
        self.assert_none(
            *(
                f"{name} imports {found}"
                for name, imports in self.modules.items()
                if is_within(name, core)
                for found in imports
                if not is_within(found.module, allowed) or is_within(str(found), OUTSIDE_WORLD)
            )
        )

    def test_the_core_awaits_nothing(self):
        self.assert_none(
            *(
                f"{path}:{node.lineno}"
                for package in CORE
                for path in (PACKAGE / package).rglob("*.py")
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, ast.AsyncFunctionDef | ast.Await)
            )
        )

    def test_only_the_backend_client_imports_treq(self):
        users = {
            name
            for name, imports in self.modules.items()
            if any(found.library == "treq" for found in imports)
        }
        self.assertEqual(users, {"blockops.upstream.client"})

    def test_the_packages_that_move_bytes_read_no_json(self):
        self.assert_none(
            *(
                f"{name} imports {found}"
                for name, imports in self.modules.items()
                if is_within(name, WITHOUT_JSON)
                for found in imports
                if found.library in {"json", "msgspec"}
            )
        )

    def test_the_http1_readers_are_sans_io(self):
        self.assert_none(
            *(
                f"{name} imports {found}"
                for name, imports in self.modules.items()
                if is_within(name, ("blockops.server.http1",))
                for found in imports
                if is_within(str(found), ("twisted.internet", *OUTSIDE_WORLD))
            )
        )

    def test_settings_import_msgspec_only(self):
        libraries = {
            found.library
            for name, imports in self.modules.items()
            if is_within(name, ("blockops.settings",))
            for found in imports
        }
        self.assertEqual(libraries - sys.stdlib_module_names, {"blockops", "msgspec"})

    def test_parts_get_values_instead_of_settings(self):
        self.assert_none(
            *(
                f"{name} imports {found}"
                for name, imports in self.modules.items()
                if unit_of(name) in WITHOUT_SETTINGS
                for found in imports
                if is_within(found.module, ("blockops.settings",))
            )
        )

    def test_only_tap_imports_the_reactor(self):
        users = {
            name
            for name, imports in self.modules.items()
            if "twisted.internet.reactor" in {str(found) for found in imports}
        }
        self.assertEqual(users, {"blockops.tap"})

    def test_tap_imports_the_reactor_inside_a_function(self):
        tree = ast.parse((PACKAGE / "tap.py").read_text("utf-8"))
        at_import = ast.Module(
            [node for node in tree.body if not isinstance(node, ast.FunctionDef)], []
        )
        found = {str(found) for found in imports_of(ast.unparse(at_import), "blockops.tap")}
        self.assertNotIn("twisted.internet.reactor", found)
        self.assert_none(*(name for name in found if name.startswith("blockops.daemon.service")))

    def test_no_private_name_of_a_library_is_imported(self):
        self.assert_none(
            *(
                f"{name} imports {found}"
                for name, imports in self.modules.items()
                for found in imports
                if found.is_private
            )
        )

    def test_no_private_attribute_is_used(self):
        """Ruff rejects them (SLF001): no module may silence it."""
        self.assert_none(
            *(
                str(path.relative_to(ROOT))
                for path in PACKAGE.rglob("*.py")
                if re.search(r"noqa:.*SLF001", path.read_text("utf-8"))
            )
        )

    def test_every_imported_library_is_required(self):
        metadata = configparser.ConfigParser()
        metadata.read(ROOT / "setup.cfg", "utf-8")
        lines = metadata["options"]["install_requires"].split("\n")
        required = {re.split(r"[\[>=]", line)[0] for line in lines if line and line[0] != "#"}
        used = {
            INSTALLED_BY.get(found.library, found.library)
            for imports in self.modules.values()
            for found in imports
            if found.library not in sys.stdlib_module_names
        }
        # Twisted imports service-identity by itself, to check the names in certificates.
        self.assertEqual(used - {"blockops"}, required - {"service-identity"})

    def test_no_import_cycles(self):
        graph = {
            name: {
                target
                for found in imports
                for target in (str(found), found.module)
                if target in self.modules and target != name
            }
            for name, imports in self.modules.items()
        }
        while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
            graph = {name: targets for name, targets in graph.items() if name not in leaves}
        self.assertEqual(sorted(graph), [])
