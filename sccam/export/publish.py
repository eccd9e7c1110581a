"""A file gets its name only if it passed the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sccam.artifacts import manifest_path, replacing, write_json, write_manifest
from sccam.export.parity import Parity


def publish(path: Path, data: bytes, facts: dict[str, Any], parity: Parity) -> Path:
    """Writes a file that passed under its name with its manifest, one that did not as NAME.failed with its numbers.

    The other of the two, if an earlier export left it, goes: it belongs to another network.

    Args:
        facts: of the manifest; `parity` is added.
    """
    failed = path.with_name(path.name + ".failed")
    target, other = (path, failed) if parity.passed else (failed, path)
    with replacing(target) as temporary:
        temporary.write_bytes(data)
    if parity.passed:
        write_manifest(path, **{**facts, "parity": parity.as_dict()})
    else:
        write_json(manifest_path(failed), parity.as_dict())
    other.unlink(missing_ok=True)
    manifest_path(other).unlink(missing_ok=True)
    return target
