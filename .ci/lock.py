"""Writes requirements.lock: every package that the tests install, with its version and the checksum of its file.

    .venv/bin/python .ci/lock.py        # on Linux, x86-64, with the Python that CI has
    make test LOCK=requirements.lock    # installs exactly these files

pip resolves what pyproject.toml asks for and reports it; nothing is installed.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "bench,crf,export,scale,dev,tensorrt-check"  # as the Makefile's target of the tests


def main() -> None:
    """Resolves and writes."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    done = subprocess.run([*command, f"{ROOT}[{EXTRAS}]"], capture_output=True, text=True, check=True)
    lines = []
    for item in json.loads(done.stdout)["install"]:
        name, version = item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"]
        if name != "sccam":
            lines.append(f"{name}=={version} --hash=sha256:{item['download_info']['archive_info']['hashes']['sha256']}")
    version = ".".join(platform.python_version_tuple()[:2])
    head = f"# Made by .ci/lock.py for {platform.system()}, {platform.machine()}, Python {version}"
    (ROOT / "requirements.lock").write_text("\n".join([head, *sorted(lines)]) + "\n", encoding="utf-8")
    print(f"{len(lines)} packages in requirements.lock")


if __name__ == "__main__":
    main()
