"""Where this machine keeps data that came to it."""

import os
from pathlib import Path

from strategies.paths import expanded


def cache_directory() -> Path:
    """Where downloads are kept, and what a device was sent: $EDGE_FL_HOME/data, ~/.edge-fl/data."""
    home = os.environ.get("EDGE_FL_HOME") or "~/.edge-fl"
    return expanded(home, "EDGE_FL_HOME").absolute() / "data"
