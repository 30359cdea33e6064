"""Which code is running: a device must run the server's, not an older copy of it."""

import hashlib
from functools import cache
from pathlib import Path

PACKAGES = ("client_apps", "fl_app", "strategies")


ROOT = Path(__file__).resolve().parents[1]


@cache
def fingerprint(root: Path = ROOT) -> str:
    """16 hex digits of the sha256 over the Python sources of the app's packages in `root`."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
