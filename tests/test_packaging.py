"""
The installed files, and Twisted's discovery of the plugin.

The installations take a minute and download from a package index. They run if `BLOCKOPS_LIVE` is
set, and are skipped otherwise.
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

#: Files of a checkout that a fresh clone does not have.
LEFTOVERS = shutil.ignore_patterns(
    ".*", "build", "dist", "*.egg-info", "__pycache__", "_trial_temp*", "dropin.cache", "venv"
)

DESCRIPTION = "Give local models OpenAI tool calls."


def hiding_packages(root: Path) -> list[Path]:
    """Return the files in the tree at `root` that would hide Twisted or its plugins."""
    candidates = (root / "twisted" / "__init__.py", root / "twisted" / "plugins" / "__init__.py")
    return [each for each in candidates if each.exists()]


class TreeTests(SynchronousTestCase):
    """Checks of the source tree, without an installation."""

    def test_twisted_is_not_hidden(self):
        self.assertEqual(hiding_packages(ROOT), [])

    def test_the_plugin_imports_only_twisted(self):
        """Twisted swallows an import error: the user would only see `Unknown command`."""
        text = (ROOT / "twisted" / "plugins" / "blockops_plugin.py").read_text("utf-8")
        imports = [each for each in text.splitlines() if each.startswith(("import", "from"))]
        self.assertEqual(imports, ["from twisted.application.service import ServiceMaker"])

    def test_every_package_has_an_init(self):
        """Without `__init__.py` a folder is a namespace package, which mypy and trial miss."""
        folders = {each.parent for each in (ROOT / "blockops").rglob("*.py")}
        self.assertEqual([each for each in folders if not (each / "__init__.py").exists()], [])

    def test_the_changelog_has_this_version(self):
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

    def test_the_lock_file_has_all_requirements(self):
        """CI installs only the lock file: a requirement of setup.cfg that it lacks would fail."""
        checked = subprocess.run(
            [sys.executable, ROOT / ".ci" / "lock", "--check"],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((checked.returncode, checked.stderr), (0, ""))

    def test_the_lock_files_have_hashes_and_no_urls(self):
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
    A fresh virtual environment with blockops, installed from a copy of this tree.

    :param folder: the folder to create both in
    :param options: options of `pip install`, before the path of the copy
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder.absolute()
        self.tree = self.folder / "tree"
        shutil.copytree(ROOT, self.tree, ignore=LEFTOVERS)
        self.run(sys.executable, "-m", "venv", "env")
        self.run("env/bin/pip", "install", "--quiet", *options, str(self.tree))

    def run(self, program: str, *line: str, cwd: Path | None = None) -> str:
        """Run a program of the environment, assert that it succeeds, and return its output."""
        result = subprocess.run(
            [self.folder / program, *line],
            cwd=cwd or self.folder,
            env={
                "PATH": os.defpath,
                "HOME": str(self.folder),
                "LC_ALL": "C.UTF-8",
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                # The machine's settings of the package index, proxies and certificates.
                **{name: value for name, value in os.environ.items() if _is_network_variable(name)},
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, f"{program} {line}:\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def twistd_help(self, cwd: str) -> str:
        return self.run("env/bin/twistd", "--help", cwd=Path(cwd))

    def installed_files(self) -> list[str]:
        """Return the files of blockops in site-packages, without its metadata."""
        script = "import importlib.metadata as m\nfor each in m.files('blockops'): print(each)"
        files = self.run("env/bin/python", "-c", script).split("\n")
        return sorted(each for each in files if each.endswith((".py", ".typed")))


def _is_network_variable(name: str) -> bool:
    return name.upper().startswith(("PIP_", "SSL_CERT")) or name.upper().endswith("_PROXY")


class InstallTests(SynchronousTestCase):
    """Real installations."""

    if not os.environ.get("BLOCKOPS_LIVE"):
        skip = "takes long and needs the network: set BLOCKOPS_LIVE=1 to run it"

    def assert_installed(self, installation: Installation) -> None:
        for cwd in ("/", str(installation.folder), str(installation.tree)):
            self.assertIn(DESCRIPTION, " ".join(installation.twistd_help(cwd).split()), cwd)
            version = installation.run("env/bin/twistd", "blockops", "--version", cwd=Path(cwd))
            self.assertEqual(version, f"blockops {__version__}\n")
        self.assertEqual(hiding_packages(installation.tree), [])
        self.assertIn("No broken requirements", installation.run("env/bin/pip", "check"))

    def assert_uninstalled(self, installation: Installation) -> None:
        installation.run("env/bin/pip", "uninstall", "--yes", "--quiet", "blockops")
        text = installation.twistd_help("/")
        self.assertNotIn("blockops", text)
        self.assertIn("A general-purpose web server", text)
        installation.run("env/bin/twistd", "web", "--help")
        installation.run("env/bin/python", "-c", "import twisted.web.server, twisted.plugins")
        self.assertIn("No broken requirements", installation.run("env/bin/pip", "check"))

    def test_pip_install(self):
        # Build only blockops; its dependencies are installed as wheels.
        installation = Installation(Path(self.mktemp()), "--only-binary=:all:")
        self.assert_installed(installation)
        sources = [
            str(each.relative_to(installation.tree))
            for folder in ("blockops", "twisted")
            for each in (installation.tree / folder).rglob("*")
            if each.suffix in (".py", ".typed") and "build" not in each.parts
        ]
        self.assertEqual(installation.installed_files(), sorted(sources))
        self.assert_uninstalled(installation)

    def test_pip_install_editable(self):
        installation = Installation(Path(self.mktemp()), "--editable")
        self.assert_installed(installation)
        # An edit takes effect without a new installation.
        package = installation.tree / "blockops" / "__init__.py"
        package.write_text(package.read_text("utf-8").replace(__version__, "99.1"), "utf-8")
        version = installation.run("env/bin/twistd", "blockops", "--version", cwd=Path("/"))
        self.assertEqual(version, "blockops 99.1\n")
        self.assert_uninstalled(installation)
