"""What is frozen into a report."""

import json
import re
from pathlib import Path
from typing import Any


def frozen(report: Path) -> dict[str, Any]:
    """The document in a report.html."""
    found = re.search(r'id="frozen">(.*?)</script>', report.read_text(encoding="utf-8"))
    assert found
    return json.loads(found[1])
