"""The mail router of a run: an Eclipse Zenoh router in a process of its own beside the ServerApp.

All devices connect to it outwards, over TLS with their own certificates, and it gives everybody's
publications and subscriptions the rules of `access_control`. It computes nothing and keeps nothing;
one that dies is replaced by an empty one, to which everybody comes back.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from strategies import child
from strategies.allocator import keep_freed_memory
from strategies.child import watch_parent
from strategies.errors import EdgeFlError
from strategies.link import keys
from strategies.link.transport import configuration, open_session
from strategies.site import SERVER, Site

_READY = b"ready\n"
# A killed router's port may be busy for a moment; somebody else's stays so.
_LISTEN_SECONDS = 5.0
_START_SECONDS = 30.0
# As long as a mail is on its way to a slow device, the router reads nothing from its sender, no
# sign of life either: for this share of the patience at most.
_MAIL_SHARE = 0.25


def access_control(
    run: str, devices: Iterable[str], neighbours: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """Zenoh's rules for a run: nothing is allowed but what the keys of `keys` are for.

    neighbours: of each device that has some, by name. A party is who its certificate says it is.
    Raises ConfigError for names that cannot be part of a key.
    """
    devices = [keys.check_name(name) for name in devices]
    rights = {SERVER: _server(run)}
    for name in devices:
        rights[name] = _device(run, name, neighbours.get(name, ()))
    rules, policies = [], []
    for name, (publish, subscribe) in rights.items():
        # What comes in from a party, and what goes out to it: both are decided at its own link.
        rules += [
            _rule(f"{name} publishes", "ingress", ["put"], publish),
            _rule(f"{name} subscribes", "ingress", ["declare_subscriber"], subscribe),
            _rule(f"{name} receives", "egress", ["put"], subscribe),
        ]
        ids = [rule["id"] for rule in rules[-3:]]
        policies.append({"rules": ids, "subjects": [name]})
    return {
        "enabled": True,
        "default_permission": "deny",
        "rules": rules,
        "subjects": [{"id": name, "cert_common_names": [name]} for name in rights],
        "policies": policies,
    }


def _server(run: str) -> tuple[list[str], list[str]]:
    """Keys that the server may publish and subscribe to."""
    publish = [keys.NOW, keys.order(run, "*"), keys.piece(run, "*")]
    return publish, [keys.beat(run, "*"), keys.reply(run, "*"), keys.want(run, "*")]


def _device(run: str, name: str, neighbours: Collection[str]) -> tuple[list[str], list[str]]:
    """Keys that a device may publish and subscribe to."""
    publish = [keys.beat(run, name), keys.reply(run, name), keys.want(run, name)]
    publish.append(keys.announcement(run, name))
    for other in neighbours:
        publish += [keys.mail(run, other, name), keys.receipt(run, other, name)]
    # In its mailbox is only what its neighbours were allowed to publish.
    subscribe = [keys.NOW, keys.order(run, name), keys.piece(run, name)]
    subscribe += [keys.mail(run, name, "*"), keys.receipt(run, name, "*")]
    subscribe += [keys.announcement(run, other) for other in neighbours]
    return publish, subscribe


def _rule(name: str, flow: str, messages: list[str], expressions: list[str]) -> dict[str, Any]:
    return {
        "id": name,
        "flows": [flow],
        "messages": messages,
        "permission": "allow",
        "key_exprs": expressions,
    }


class Router:
    """The router process of `site`, which is the server's; it listens when this returns.

    rules: of `access_control`; an insecure site knows nobody's name, so there they do nothing.
    log: file to which the process writes what goes wrong.
    patience: seconds without a sign of life after which a device counts as away.
    restarts: how many times it has been started again. Raises EdgeFlError if it cannot listen.
    """

    def __init__(
        self, site: Site, rules: Mapping[str, Any], log: Path, patience: float = 60.0
    ) -> None:
        self._site, self._log = site, log
        self._configuration = configuration(site, "listen", _MAIL_SHARE * patience)
        if site.credentials is not None:
            self._configuration["access_control"] = dict(rules)
        self.restarts = 0
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def tend(self) -> bool:
        """Start the process again if it has died; whether it had. Raises EdgeFlError if it cannot
        listen."""
        if self._process.poll() is None:
            return False
        self.stop()
        self._process = self._start()
        self.restarts += 1
        return True

    def stop(self) -> None:
        """End the process."""
        process = self._process
        child.stop(process)  # it has nothing to save
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        self._process = child.start("strategies.link.router", log=self._log)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then there are last words in the log
            self._process.stdin.write(json.dumps(self._configuration).encode() + b"\n")
            self._process.stdin.flush()
        heard = select.select([self._process.stdout], [], [], _START_SECONDS)[0]
        if not heard or self._process.stdout.readline() != _READY:
            self.stop()
            said = child.last_words(self._log, 3) or "it says nothing"
            raise EdgeFlError(
                f"the mail router cannot listen on port {self._site.mail_port}: {said}; is the "
                f"port taken by another run? More may be in {self._log}"
            )
        return self._process


def main() -> None:
    """The process: reads its configuration from stdin, says that it is ready, and ends when stdin
    does, or when its parent is gone (whose other children may hold the pipe open)."""
    import zenoh

    keep_freed_memory()
    watch_parent(lambda: os._exit(1))
    says = os.dup(1)
    os.dup2(2, 1)  # Zenoh writes its log to stdout
    zenoh.init_log_from_env_or("warn")
    content = json.loads(sys.stdin.buffer.readline())
    deadline = time.monotonic() + _LISTEN_SECONDS
    while True:
        try:
            session = open_session(content)
            break
        except zenoh.ZError as error:
            if time.monotonic() > deadline:
                sys.exit(str(error))
            time.sleep(0.2)
    os.write(says, _READY)
    sys.stdin.buffer.read()
    session.close()


if __name__ == "__main__":
    main()
