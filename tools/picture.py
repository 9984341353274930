"""Makes docs/report.png, the picture of a report that the README shows.

    python tools/picture.py [CASE]

Audits the case, opens the report in a headless Chromium, and keeps the top of it.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from cbtlab import audit, report
from cbtlab.case import Case

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "report.png"
WIDTH, HEIGHT = 1100, 1752  # CSS pixels: down to the end of the timeline
LIMIT = 200_000  # bytes
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Write the picture, or say why not."""
    case = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "datasets" / "ext4-office"
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        sys.exit("picture: no Chromium here; install the package chromium")
    with tempfile.TemporaryDirectory() as folder:
        audit.run(Case.open(case), Path(folder) / "audit", report=report.write)
        shot = Path(folder) / "shot.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}"]
        command += [f"--screenshot={shot}", (Path(folder) / "audit" / "report.html").as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(shot) as image:
            small = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
        out = io.BytesIO()
        small.save(out, format="png", optimize=True)
    if len(out.getvalue()) > LIMIT:
        sys.exit(f"picture: {len(out.getvalue())} bytes are more than {LIMIT}")
    TARGET.write_bytes(out.getvalue())
    print(f"{TARGET}: {len(out.getvalue())} bytes")


if __name__ == "__main__":
    main()
