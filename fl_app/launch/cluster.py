"""How large a Ray cluster is, asked within seconds.

    python cluster.py ADDRESS     prints {"CPU": n, "GPU": n ...}

A process of its own, because Ray, where nobody answers, tries for over a minute, writes to standard
error what cannot be turned off, and then ends the process that has asked.
"""

import json
import logging
import socket
import subprocess
import sys
from urllib.parse import urlsplit

from strategies.errors import ConfigError

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 40.0


def resources_of(address: str) -> dict[str, float]:
    """The resources of the Ray cluster at `address`: HOST:PORT, ray://HOST:PORT, or "auto" for one
    on this machine. Raises ConfigError if there is none."""
    missing = f"there is no Ray cluster at {address}"
    try:
        _connect(address)
        answer = subprocess.run(
            [sys.executable, "-P", "-m", __name__, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{missing}: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{missing}: no answer within {ANSWER_SECONDS:g} s") from error
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["it has not said why"])[-1]
        raise ConfigError(f"{missing}: {reason}")
    return json.loads(answer.stdout.splitlines()[-1])


def _connect(address: str) -> None:
    """Raise OSError or ValueError if nobody listens at `address`."""
    if address == "auto":
        return
    place = urlsplit(address if "://" in address else f"ray://{address}")
    if not place.hostname or not place.port:
        raise ValueError("an address is HOST:PORT, ray://HOST:PORT or auto")
    socket.create_connection((place.hostname, place.port), timeout=CONNECT_SECONDS).close()


def main(address: str) -> None:
    import ray

    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    print(json.dumps(ray.cluster_resources()))


if __name__ == "__main__":
    main(sys.argv[1])
