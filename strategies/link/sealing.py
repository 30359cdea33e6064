"""Mail that only its receiver can read: end to end between neighbours, so the router cannot.

Every process makes an X25519 key pair, signs the public key with the key of its device's
certificate, and announces all three. Who hears it believes a certificate of the deployment's own
authority, that has not expired, in the name of the neighbour it is said to come from. Then

    key  = HKDF-SHA256(X25519(own private key, neighbour's public key), run, sender, receiver, keys)
    body = counter (8 bytes) | ChaCha20-Poly1305(key, nonce = counter, mail; header)

with a key for each direction. Keys are new in each process, so no nonce is used twice; a counter
that has been seen is refused, and so is mail whose header was changed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strategies.link.identity import Identity, key_statement
from strategies.link.wire import WireError, frame, unframe
from strategies.site import Site

ANNOUNCEMENT_LIMIT = 1 << 14  # bytes
_MOST_KEYS = 1000  # of a device in a run: it makes one whenever its process starts
OVERHEAD = 24  # bytes that a sealed text is longer


@dataclass
class _Channel:
    """What two processes share: a cipher and a counter for each direction."""

    outwards: Any
    inwards: Any
    sent: int = 0
    seen: int = 0


class Sealing:
    """The end of all its channels that the device of `site` has in a run.

    announcement: what the neighbours must be given, as it is.
    Raises EdgeFlError for a site without a certificate, or with one that cannot sign.
    """

    def __init__(self, site: Site, run: str) -> None:
        self._identity = Identity(site, "sealed mail")
        from cryptography.hazmat.primitives.asymmetric import x25519

        self._run, self._name = run, site.name
        self._private = x25519.X25519PrivateKey.generate()
        self._public = self._private.public_key().public_bytes_raw()
        signed = self._identity.sign(key_statement("key", run, site.name, self._public))
        header = {"public": self._public.hex(), **signed}
        self.announcement = frame({"kind": "key", "header": header}, b"")
        # Channels are kept: an old announcement that comes again must not start its counters again.
        self._channels: dict[tuple[str, bytes], _Channel] = {}
        self._current: dict[str, _Channel] = {}

    def hear(self, name: str, announcement: bytes) -> bool:
        """Take what came as the announcement of device `name`; whether it has a new key.

        Raises WireError ("bad announcement", "unknown certificate", "forged", "too many keys").
        """
        public = self._verified(name, announcement)
        known = (name, public) in self._channels
        if not known:
            if sum(other == name for other, _ in self._channels) >= _MOST_KEYS:
                raise WireError("too many keys", f"{name} has announced {_MOST_KEYS} in this run")
            self._channels[name, public] = self._open_channel(name, public)
        self._current[name] = self._channels[name, public]
        return not known

    def knows(self, name: str) -> bool:
        """Whether mail to device `name` can be sealed."""
        return name in self._current

    def seal(self, plain: bytes, receiver: str, header: Mapping[str, Any]) -> bytes:
        """`plain`, for `receiver` alone; the header is not hidden, and cannot be changed. KeyError
        if the receiver is not known."""
        channel = self._current[receiver]
        channel.sent += 1
        sealed = channel.outwards.encrypt(_nonce(channel.sent), plain, _associated(header))
        return channel.sent.to_bytes(8, "big") + sealed

    def open(self, sealed: bytes, sender: str, header: Mapping[str, Any]) -> bytes:
        """What `sender` sealed with this header. Raises WireError ("no key", "forged",
        "replayed")."""
        from cryptography.exceptions import InvalidTag

        channel = self._current.get(sender)
        if channel is None:
            raise WireError("no key", f"{sender} has not announced any yet")
        counter = int.from_bytes(sealed[:8], "big")
        try:
            plain = channel.inwards.decrypt(_nonce(counter), sealed[8:], _associated(header))
        except InvalidTag as error:
            raise WireError("forged", f"{sender} has not sealed this for {self._name}") from error
        if counter <= channel.seen:
            raise WireError("replayed", f"number {counter} of {sender} is over")
        channel.seen = counter
        return plain

    def _verified(self, name: str, announcement: bytes) -> bytes:
        """The public key that device `name` has signed."""
        head, _ = unframe(announcement, kind="key", limit=ANNOUNCEMENT_LIMIT)
        try:
            header = head["header"]
            public = bytes.fromhex(header["public"])
        except (KeyError, ValueError, TypeError) as error:
            raise WireError("bad announcement", f"of {name}: {error}") from error
        self._identity.check(name, header, key_statement("key", self._run, name, public))
        return public

    def _open_channel(self, name: str, public: bytes) -> _Channel:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import x25519
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        try:
            secret = self._private.exchange(x25519.X25519PublicKey.from_public_bytes(public))
        except ValueError as error:  # not 32 bytes, or a point that shares nothing
            raise WireError("bad announcement", f"of {name}: {error}") from error

        def cipher(*ends: tuple[str, bytes]) -> ChaCha20Poly1305:
            told = ["edge-fl mail", self._run, *((who, key.hex()) for who, key in ends)]
            info = json.dumps(told).encode()
            return ChaCha20Poly1305(HKDF(hashes.SHA256(), 32, None, info).derive(secret))

        own, other = (self._name, self._public), (name, public)
        return _Channel(cipher(own, other), cipher(other, own))


def _nonce(counter: int) -> bytes:
    return counter.to_bytes(12, "big")


def _associated(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True).encode()
