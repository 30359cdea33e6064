"""Zenoh's configuration, the same for the router and for those that connect to it."""

import json
from collections.abc import Mapping
from typing import Any

from strategies.errors import EdgeFlError
from strategies.pyproject import install
from strategies.site import Site

# Seconds after which a silent link is given up: the longest that a cut goes unnoticed.
LEASE_SECONDS = 8
# Bytes of the largest message; a larger one is dropped by whoever receives it.
MESSAGE_LIMIT = 64 << 20


def configuration(site: Site, side: str, mail_seconds: float = 60.0) -> dict[str, Any]:
    """Of the party at `site`, by Zenoh's paths. side: "listen" (the router) or "connect".

    mail_seconds: what a mail may take on a slow link. One that takes longer is dropped, and its
    sender, who hears of no receipt, sends a newer one.
    """
    found: dict[str, Any] = {
        # Nobody is found by shouting into the network, and nobody but the router is heard.
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        "adminspace/enabled": False,
        # Clocks of devices are wrong now and then; nothing here is ordered by them.
        "timestamping/enabled": False,
        "transport/shared_memory/enabled": False,
        "transport/link/tx/lease": 1000 * LEASE_SECONDS,
        "transport/link/rx/max_message_size": MESSAGE_LIMIT,
        # Batches that mail may fill while the link sends others: a tenth faster than with 2.
        "transport/link/tx/queue/size/data": 8,
        # Microseconds that a slow link may take for a message before it is given up (mail), or
        # the link is (what is urgent). With the defaults of 50 ms and 5 s no message of 10 MB gets
        # through 10 Mbit/s. A dead link ends by its lease, long before.
        "transport/link/tx/queue/congestion_control": {
            "drop": {
                "wait_before_drop": 500_000,
                "max_wait_before_drop_fragments": int(1_000_000 * mail_seconds),
            },
            "block": {"wait_before_close": 600_000_000},
        },
    }
    if side == "listen":
        # An insecure site may be reached from its own machine alone.
        address = "tls/0.0.0.0" if site.credentials else "tcp/127.0.0.1"
        found |= {"mode": "router", "listen/endpoints": [f"{address}:{site.mail_port}"]}
    else:
        found |= {
            "mode": "client",
            "connect/endpoints": [site.endpoint],
            "connect/timeout_ms": 0,
            "connect/retry": {
                "period_init_ms": 500,
                "period_max_ms": 4000,
                "period_increase_factor": 2,
            },
        }
    if site.credentials is not None:
        found["transport/link/tls"] = {
            "root_ca_certificate": str(site.credentials.authority),
            f"{side}_certificate": str(site.credentials.certificate),
            f"{side}_private_key": str(site.credentials.key),
            "enable_mtls": True,
            "close_link_on_expiration": True,
        }
    return found


def open_session(content: Mapping[str, Any]) -> Any:
    """A Zenoh session of `configuration`. Raises zenoh.ZError, and EdgeFlError where Zenoh is not
    installed."""
    zenoh = import_zenoh()
    config = zenoh.Config()
    for path, value in content.items():
        config.insert_json5(path, json.dumps(value))
    return zenoh.open(config)


def import_zenoh() -> Any:
    """The module zenoh. Raises EdgeFlError where it is not installed."""
    try:
        import zenoh
    except ImportError as error:
        raise EdgeFlError(f"the mail router needs eclipse-zenoh: {install('deploy')}") from error
    return zenoh
