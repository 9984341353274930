"""Runs the kernel's own checks on the module: ``make module-lint``.

checkpatch.pl is not packaged by itself; it is taken out of Debian's kernel
source, once, into the laboratory's cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cbtlab.errors import CbtlabError
from cbtlab.lab.cache import cache_dir, filled
from cbtlab.lab.packages import Archive

SOURCE = "linux-source-6.1"
FILES = ("checkpatch.pl", "spelling.txt", "const_structs.checkpatch")


def fetch(draft: Path) -> None:
    """Unpack the few files of the kernel's source below ``draft``."""
    Archive().fetch([SOURCE], draft / "package")
    archive = draft / "package" / "usr" / "src" / f"{SOURCE}.tar.xz"
    wanted = [f"{SOURCE}/scripts/{name}" for name in FILES]
    subprocess.run(
        ["tar", "-xf", archive, "-C", draft, "--strip-components=2", *wanted], check=True
    )
    archive.unlink()


def main() -> int:
    """Run the tests of the module's source with checkpatch among them."""
    try:
        place = filled(cache_dir() / f"checkpatch-{SOURCE}", fetch)
    except CbtlabError as error:
        print(f"module-lint: {error}", file=sys.stderr)
        return 2
    environment = {**os.environ, "CBTLAB_CHECKPATCH": str(place / FILES[0])}
    words = [sys.executable, "-m", "pytest", "-v", "tests/vm/test_module_source.py"]
    return subprocess.run(words, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
