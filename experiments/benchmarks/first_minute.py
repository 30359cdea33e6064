"""What a newcomer waits for: the first line of `edge-fl run --watch`, and its page's first curve.

    python -m experiments.benchmarks.first_minute [key=value ...]

Seconds from the command on, with an empty home; the run is ended then. JSON on the standard output.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from typing import Any

_PATIENCE = 600.0
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/")


def main(words: list[str]) -> int:
    print(json.dumps(measured(words), indent=2))
    return 0


def measured(words: list[str]) -> dict[str, float]:
    """Seconds until the first line, and until the page has a curve of a run of `words`."""
    with tempfile.TemporaryDirectory() as home:
        kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        began = time.monotonic()
        run = subprocess.Popen(
            [sys.executable, "-m", "fl_app.cli", "run", "--watch", *words],
            env={**kept, "HOME": home},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            return _follow(run, began)
        finally:
            run.send_signal(signal.SIGINT)
            run.wait()


def _follow(run: subprocess.Popen[str], began: float) -> dict[str, float]:
    found: dict[str, float] = {}
    address: list[str] = []
    told: list[str] = []

    def read() -> None:
        for line in run.stdout or ():
            found.setdefault("first_line", round(time.monotonic() - began, 1))
            address.extend(_ADDRESS.findall(line))
            told.append(line)

    threading.Thread(target=read, daemon=True).start()
    while time.monotonic() - began < _PATIENCE and run.poll() is None:
        if address and _has_curve(address[0]):
            return {**found, "first_curve": round(time.monotonic() - began, 1)}
        time.sleep(0.2)
    raise SystemExit(f"there was no curve; exit code {run.poll()}, and {''.join(told[-20:])}")


def _has_curve(address: str) -> bool:
    """Whether the page of the newest run draws a line of the main metric."""
    try:
        runs = _asked(f"{address}api/runs")["runs"]
        charts = _asked(f"{address}api/run/{runs[0]['name']}")["charts"] if runs else []
    except (OSError, ValueError, urllib.error.URLError):
        return False
    return any(line["points"] for chart in charts if chart["metric"] for line in chart["lines"])


def _asked(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
