"""
What is installed, and that Twisted then finds it.

The installations take a minute and fetch from a package index: they run where `BLOCKOPS_LIVE` is
set to anything, and say so where it is not.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from blockops import __version__

ROOT = Path(__file__).parent.parent

#: What a checkout gathers and a fresh clone has not.
LEFTOVERS = shutil.ignore_patterns(
    ".*", "build", "dist", "*.egg-info", "__pycache__", "_trial_temp*", "dropin.cache", "venv"
)

DESCRIPTION = "Give local models OpenAI tool calls."


def plugin_folders_with_a_package(root: Path) -> list[Path]:
    """Return what would hide Twisted, or Twisted's plugins, in the source tree at `root`."""
    hiding = (root / "twisted" / "__init__.py", root / "twisted" / "plugins" / "__init__.py")
    return [each for each in hiding if each.exists()]


class TreeTests(SynchronousTestCase):
    """What can be seen without an installation."""

    def test_twisted_is_not_hidden(self):
        self.assertEqual(plugin_folders_with_a_package(ROOT), [])

    def test_the_plugin_imports_nothing_that_could_fail(self):
        """Twisted swallows what it raises: the user would see `Unknown command` only."""
        text = (ROOT / "twisted" / "plugins" / "blockops_plugin.py").read_text("utf-8")
        imports = [each for each in text.splitlines() if each.startswith(("import", "from"))]
        self.assertEqual(imports, ["from twisted.application.service import ServiceMaker"])

    def test_every_package_is_a_package(self):
        """Without `__init__.py` mypy, trial and people take a folder for something else."""
        folders = {each.parent for each in (ROOT / "blockops").rglob("*.py")}
        self.assertEqual([each for each in folders if not (each / "__init__.py").exists()], [])

    def test_the_changelog_knows_this_version(self):
        self.assertIn(f"## {__version__}", (ROOT / "CHANGELOG.md").read_text("utf-8"))

    def test_every_requirement_has_a_lower_bound(self):
        metadata = configparser.ConfigParser()
        metadata.read(ROOT / "setup.cfg", "utf-8")
        required = [
            each
            for each in metadata["options"]["install_requires"].split("\n")
            if each and not each.startswith("#")
        ]
        self.assertGreater(len(required), 3)
        self.assertEqual([each for each in required if ">=" not in each], [])

    def test_the_lock_file_has_all_that_is_asked_for(self):
        """CI installs nothing else: what setup.cfg names and it lacks would be missing there."""
        checked = subprocess.run(
            [sys.executable, ROOT / ".ci" / "lock", "--check"],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((checked.returncode, checked.stderr), (0, ""))

    def test_the_lock_files_name_hashes_and_no_place(self):
        for name in ("requirements-ci.txt", "requirements-audit.txt"):
            text = (ROOT / name).read_text("utf-8")
            self.assertNotIn("://", text)
            packages = text.split("\n\n", 1)[1].replace(" \\\n    --hash", " --hash").splitlines()
            self.assertEqual(
                [one for one in packages if "==" not in one or "--hash" not in one], []
            )

    def test_editable_installs_put_the_folder_on_the_path(self):
        metadata = configparser.ConfigParser()
        metadata.read(ROOT / "setup.cfg", "utf-8")
        self.assertEqual(metadata["options"]["package_dir"].split(), ["=", "."])


class Installation:
    """
    A fresh virtual environment with blockops in it, from a copy of this tree.

    :param folder: where both are made
    :param options: given to `pip install` before the path of the copy
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder.absolute()
        self.tree = self.folder / "tree"
        shutil.copytree(ROOT, self.tree, ignore=LEFTOVERS)
        self.run(sys.executable, "-m", "venv", "env")
        self.run("env/bin/pip", "install", "--quiet", *options, str(self.tree))

    def run(self, program: str, *line: str, cwd: Path | None = None) -> str:
        """Run a program of the environment, which must succeed; return what it printed."""
        ended = subprocess.run(
            [self.folder / program, *line],
            cwd=cwd or self.folder,
            env={
                "PATH": os.defpath,
                "HOME": str(self.folder),
                "LC_ALL": "C.UTF-8",
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                # Where packages come from is the machine's business.
                **{name: value for name, value in os.environ.items() if _about_network(name)},
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, f"{program} {line}:\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    def twistd_help(self, cwd: str) -> str:
        return self.run("env/bin/twistd", "--help", cwd=Path(cwd))

    def packaged(self) -> list[str]:
        """Return the files that belong to blockops in site-packages, without its metadata."""
        script = "import importlib.metadata as m\nfor each in m.files('blockops'): print(each)"
        files = self.run("env/bin/python", "-c", script).split("\n")
        return sorted(each for each in files if each.endswith((".py", ".typed")))


def _about_network(name: str) -> bool:
    return name.upper().startswith(("PIP_", "SSL_CERT")) or name.upper().endswith("_PROXY")


class InstallTests(SynchronousTestCase):
    """Real installations."""

    if not os.environ.get("BLOCKOPS_LIVE"):
        skip = "takes long and needs the network: set BLOCKOPS_LIVE=1"

    def listed_everywhere(self, installed: Installation) -> None:
        for cwd in ("/", str(installed.folder), str(installed.tree)):
            self.assertIn(DESCRIPTION, " ".join(installed.twistd_help(cwd).split()), cwd)
            version = installed.run("env/bin/twistd", "blockops", "--version", cwd=Path(cwd))
            self.assertEqual(version, f"blockops {__version__}\n")
        self.assertEqual(plugin_folders_with_a_package(installed.tree), [])
        self.assertIn("No broken requirements", installed.run("env/bin/pip", "check"))

    def gone_without_a_trace(self, installed: Installation) -> None:
        installed.run("env/bin/pip", "uninstall", "--yes", "--quiet", "blockops")
        text = installed.twistd_help("/")
        self.assertNotIn("blockops", text)
        self.assertIn("A general-purpose web server", text)
        installed.run("env/bin/twistd", "web", "--help")
        installed.run("env/bin/python", "-c", "import twisted.web.server, twisted.plugins")
        self.assertIn("No broken requirements", installed.run("env/bin/pip", "check"))

    def test_pip_install(self):
        # Only blockops itself is built: what it needs comes ready made.
        installed = Installation(Path(self.mktemp()), "--only-binary=:all:")
        self.listed_everywhere(installed)
        sources = [
            str(each.relative_to(installed.tree))
            for folder in ("blockops", "twisted")
            for each in (installed.tree / folder).rglob("*")
            if each.suffix in (".py", ".typed") and "build" not in each.parts
        ]
        self.assertEqual(installed.packaged(), sorted(sources))
        self.gone_without_a_trace(installed)

    def test_pip_install_editable(self):
        installed = Installation(Path(self.mktemp()), "--editable")
        self.listed_everywhere(installed)
        # An edit counts at once, without a new installation.
        package = installed.tree / "blockops" / "__init__.py"
        package.write_text(package.read_text("utf-8").replace(__version__, "99.1"), "utf-8")
        version = installed.run("env/bin/twistd", "blockops", "--version", cwd=Path("/"))
        self.assertEqual(version, "blockops 99.1\n")
        self.gone_without_a_trace(installed)
