"""Debian's packages, fetched by apt into the cache and unpacked: nothing is installed.

The mirror is the machine's own, read from apt's sources; the suites are those
of Debian 12, whose kernels and compiler fit each other.  apt gets folders of
its own, so that root is not needed and the machine's apt is not touched.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from cbtlab.errors import InputError
from cbtlab.lab.cache import cache_dir, locked

CODENAME = "bookworm"
_APT_FOLDER = Path("/etc/apt")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_LABORATORY = "laboratory"


def require(*programs: str, package: str = "") -> None:
    """Raise InputError when one of ``programs`` is not on this machine."""
    for program in programs:
        if shutil.which(program) is None:
            raise InputError(
                _LABORATORY,
                f"the program {program} is missing",
                f"install it: apt-get install {package or program}",
            )


class Archive:
    """Debian's archive through apt, with state and cache of its own below ``folder``."""

    def __init__(self, folder: Path | None = None) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise InputError(_LABORATORY, "apt is missing", "run the laboratory on Debian")
        self.folder = folder or cache_dir() / "apt"
        self._updated = False

    def update(self) -> None:
        """Fetch the lists of packages, once in the life of this object."""
        if self._updated:
            return
        with locked(self.folder):
            (self.folder / "state/lists/partial").mkdir(parents=True, exist_ok=True)
            (self.folder / "status").touch()
            sources = list(debian_sources())
            try:
                self._refresh(sources)
            except InputError:
                # A mirror may have dropped the backports; security has the kernels too.
                self._refresh([line for line in sources if "-backports " not in line])
        self._updated = True

    def _refresh(self, sources: Iterable[str]) -> None:
        (self.folder / "sources.list").write_text("".join(line + "\n" for line in sources))
        self._apt("apt-get", "update", "--error-on=any")

    def names(self, prefix: str) -> list[str]:
        """Return the names of all packages that begin with ``prefix``."""
        self.update()
        return self._apt("apt-cache", "pkgnames", prefix).split()

    def depends(self, package: str) -> list[str]:
        """Return the names of what ``package`` depends on, first alternatives included."""
        self.update()
        text = self._apt("apt-cache", "depends", "--important", package)
        return re.findall(r"Depends: ([^\s<>]+)", text)

    def fetch(self, packages: Iterable[str], to: Path) -> None:
        """Unpack ``packages``, without what they depend on, below ``to``."""
        self.update()
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            self._apt("apt-get", "download", *packages, cwd=Path(place))
            _unpack(Path(place), to)

    def fetch_source(self, package: str, to: Path) -> None:
        """Put the files of the source package of ``package`` into ``to``, not unpacked."""
        self.update()
        to.mkdir(parents=True, exist_ok=True)
        lists = self.folder / "source.list"
        lines = (self.folder / "sources.list").read_text().splitlines()
        lists.write_text("".join(f"deb-src{line.removeprefix('deb')}\n" for line in lines[:1]))
        more = ("-o", f"Dir::Etc::sourcelist={lists}", "-o", f"Dir::State={self.folder / 'source'}")
        (self.folder / "source/lists/partial").mkdir(parents=True, exist_ok=True)
        self._apt("apt-get", "update", "--error-on=any", *more)
        self._apt("apt-get", "source", "--download-only", *more, package, cwd=to)

    def fetch_closure(self, packages: Iterable[str], to: Path) -> None:
        """Unpack ``packages`` and all that they depend on below ``to``."""
        self.update()
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            (Path(place) / "partial").mkdir()
            # The empty status file makes apt believe that nothing is installed.
            words = ["--yes", "--download-only", "--no-install-recommends"]
            words += ["-o", f"Dir::Cache::archives={place}"]
            self._apt("apt-get", "install", *words, *packages)
            _unpack(Path(place), to)

    def _apt(self, program: str, *words: str, cwd: Path | None = None) -> str:
        settings = {
            "Dir::State": self.folder / "state",
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder / "cache",
            "Dir::Etc::sourcelist": self.folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            # The helper's user cannot read a cache folder below somebody's home.
            "APT::Sandbox::User": "root",
            "APT::Update::Post-Invoke-Success::": "",
            "Debug::NoLocking": "1",
        }
        command = [program, "-q"] if program == "apt-get" else [program]
        for key, value in settings.items():
            command += ["-o", f"{key}={value}"]
        done = subprocess.run(
            [*command, *words], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise InputError(
                f"{program} {words[0]}",
                said[-1] if said else f"ended with status {done.returncode}",
                "the laboratory fetches Debian's kernels: check the network and apt's sources",
            )
        return done.stdout


def debian_sources(folder: Path = _APT_FOLDER) -> Iterator[str]:
    """Yield lines for sources.list: Debian 12 with updates, security and backports.

    The mirrors are those in ``folder``; InputError when none of them is Debian's.
    """
    main, security = "", ""
    for uri, suite in _configured(folder):
        if suite.endswith(("-security", "/updates")):
            security = security or uri
        elif re.search(r"/debian/?$", uri) and "-" not in suite.strip("/"):
            main = main or uri
    if not main:
        raise InputError(
            folder,
            "no mirror of Debian in apt's sources",
            "add one (deb MIRROR bookworm main), or run the laboratory on Debian 12",
        )
    option = f" [signed-by={_KEYRING}]" if _KEYRING.exists() else ""
    for suite in (CODENAME, f"{CODENAME}-updates", f"{CODENAME}-backports"):
        yield f"deb{option} {main} {suite} main"
    if security:
        yield f"deb{option} {security} {CODENAME}-security main"


def _configured(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (mirror, suite) of every enabled binary source, in both of apt's formats."""
    lists = [folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list"))]
    for path in lists:
        for line in _text(path).splitlines():
            found = re.match(r"deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+(\S+)", line.strip())
            if found:
                yield found.group(1), found.group(2)
    for path in sorted(folder.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", _text(path)):
            lines = [line for line in stanza.splitlines() if not line.startswith("#")]
            fields = {
                name.lower(): value.split()
                for name, _, value in (line.partition(":") for line in lines)
            }
            if "deb" in fields.get("types", []) and fields.get("enabled") != ["no"]:
                for uri in fields.get("uris", []):
                    for suite in fields.get("suites", []):
                        yield uri, suite


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _unpack(archives: Path, to: Path) -> None:
    for archive in sorted(archives.glob("*.deb")):
        done = subprocess.run(
            ["dpkg-deb", "--extract", str(archive), str(to)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise InputError(archive, f"cannot be unpacked: {done.stderr.strip()}", "run again")
        archive.unlink()
