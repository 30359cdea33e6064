"""Who a device is: what it signs with the key of its certificate, and what others make of that."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from strategies.errors import EdgeFlError
from strategies.link.wire import WireError
from strategies.pyproject import install
from strategies.secure import WHAT
from strategies.site import Site


class Identity:
    """The device of `site`. Raises EdgeFlError for a site without a certificate, or with one that
    cannot sign; `what` is what it is for."""

    def __init__(self, site: Site, what: str) -> None:
        try:
            from cryptography import x509
            from cryptography.hazmat.primitives.asymmetric import ec
            from cryptography.hazmat.primitives.serialization import load_pem_private_key
        except ImportError as error:
            raise EdgeFlError(f"{what} needs cryptography: {install('deploy')}") from error

        if site.credentials is None:
            raise EdgeFlError(
                f"{site.directory} is insecure: without certificates there can be no {what}"
            )
        authorities = site.credentials.authority.read_bytes()
        self._authorities = x509.load_pem_x509_certificates(authorities)
        self._certificate = site.credentials.certificate.read_text()
        self._signer = load_pem_private_key(site.credentials.key.read_bytes(), None)
        if not isinstance(self._signer, ec.EllipticCurvePrivateKey):
            raise EdgeFlError(f"{site.credentials.key} is no key of an elliptic curve; renew it")

    def sign(self, statement: bytes) -> dict[str, str]:
        """The certificate, and the signature of the statement by its key (hexadecimal)."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        signer: Any = self._signer
        signature = signer.sign(statement, ec.ECDSA(hashes.SHA256())).hex()
        return {"certificate": self._certificate, "signature": signature}

    def check(self, name: str, signed: Mapping[str, Any], statement: bytes) -> None:
        """Whether device `name` has signed the statement. Raises WireError ("bad announcement",
        "unknown certificate", "forged")."""
        from cryptography import x509
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            signature = bytes.fromhex(signed["signature"])
            certificate = x509.load_pem_x509_certificate(signed["certificate"].encode())
            found = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
            begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            key = certificate.public_key()
        except (KeyError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
            raise WireError("bad announcement", f"of {name}: {error}") from error
        if [attribute.value for attribute in found] != [name]:
            raise WireError("unknown certificate", f"it is not {name}'s")
        if not begin <= datetime.now(UTC) < end:
            raise WireError(
                "unknown certificate", f"that of {name} has expired, or is not valid yet"
            )
        if not any(_issued(certificate, authority) for authority in self._authorities):
            raise WireError("unknown certificate", f"that of {name} is not of our authority")
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise WireError("bad announcement", f"{name} has no key of an elliptic curve")
        try:
            key.verify(signature, statement, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise WireError("forged", f"{name} has not signed this key for this run") from error


def check_keys_of_member(identity: Identity, about: str, name: str, told: Any) -> None:
    """Whether device `name` has signed its keys for the secure sum `about`. told: its `mask_key`,
    `seal_key`, `certificate` and `signature`. Raises WireError as `Identity.check` does."""
    statement = key_statement(WHAT, about, name, told.mask_key, told.seal_key)
    signed = {"certificate": told.certificate, "signature": told.signature}
    identity.check(name, signed, statement)


def _issued(certificate: Any, authority: Any) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def key_statement(what: str, run: str, name: str, *keys: bytes) -> bytes:
    """What is signed: unmistakably, whose keys for what, in which run."""
    return json.dumps([f"edge-fl {what}", run, name, *(key.hex() for key in keys)]).encode()
