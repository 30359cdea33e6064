"""The whole product: `edge-fl run` of an installed wheel, through Flower's SuperLink, simulation
engine and Ray."""

import json
from pathlib import Path

from fl_app.config import with_effect
from tests.harness import SMALL, run
from tests.wheel import edge_fl

TINY = with_effect(
    {**SMALL, "num-server-rounds": 3, "participants": 3, "distill.references": "auto"}
)


def test_flwr_run_equals_the_run_in_one_process_and_a_failure_is_told(
    installed: Path, tmp_path: Path
) -> None:
    """Bit-equal models through another number of hosts, other processes and another carrier; and a
    run that cannot go on ends with a non-zero exit code although Flower's own is 0."""
    values = [f"{key}={value}" for key, value in TINY.items()]
    done = edge_fl(installed, tmp_path, "run", *values)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("run directory: ")
    directory = Path(last.removeprefix("run directory: "))
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == "completed"
    expected, _ = run(tmp_path / "in-process", TINY, nodes=1)
    assert summary["checksum"] == expected["checksum"]
    for name in ("report.html", "figures/accuracy.png", "figures/gantt.png"):
        assert (directory / name).stat().st_size > 1000

    (directory / "summary.json").unlink()
    (directory / "checkpoints" / "server.safetensors").write_bytes(b"damaged")
    failed = edge_fl(installed, tmp_path, "resume", str(directory))
    assert failed.returncode == 2
    assert "is damaged" in failed.stdout + failed.stderr
    assert not (directory / "summary.json").exists()  # what is refused has not begun
