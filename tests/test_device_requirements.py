"""What a device installs, resolved for its processor at a registry, without one of that kind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fl_app.deploy import directory as deployment

NVIDIA = ("nvidia", "cuda", "triton")
OPTIONS = (
    *("--no-config", "--no-header", "--no-annotate"),
    *("--python-version", "3.12", "--only-binary", ":all:"),
)
UNREACHABLE = ("Failed to fetch", "Could not connect", "Request failed", "error sending request")


def resolved(requirements: Path, platform: str) -> list[str]:
    """The packages that pip would install on such a machine; a skip without a registry."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv")
    done = subprocess.run(
        [uv, "pip", "compile", *OPTIONS, "--python-platform", platform, requirements],
        env=os.environ | {"UV_HTTP_RETRIES": "1", "UV_HTTP_TIMEOUT": "20"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and any(words in done.stderr for words in UNREACHABLE):
        pytest.skip(f"the registry cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return [line.partition("==")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("platform", ["aarch64-manylinux_2_28", "x86_64-manylinux_2_28"])
def test_a_device_gets_no_cuda(platform: str, tmp_path: Path) -> None:
    deployment.create(tmp_path / "site", "hub.example", devices=["pi-1"])
    requirements = tmp_path / "site" / "devices" / "pi-1" / "requirements-device.txt"
    if platform.startswith("aarch64"):  # whose wheel is on PyPI: one registry is enough
        lines = requirements.read_text().splitlines(keepends=True)
        requirements.write_text("".join(line for line in lines if not line.startswith("-")))
    packages = resolved(requirements, platform)
    assert {"torch", "flwr", "eclipse-zenoh"} <= set(packages)
    assert [name for name in packages if name.startswith(NVIDIA)] == []


@pytest.mark.slow
def test_who_asks_pypi_for_torch_gets_cuda(tmp_path: Path) -> None:
    """So the test above can fail; should this one, the bound on torch can go."""
    (tmp_path / "requirements.txt").write_text("torch>=2.11\n")
    packages = resolved(tmp_path / "requirements.txt", "aarch64-manylinux_2_28")
    assert [name for name in packages if name.startswith(NVIDIA)]
