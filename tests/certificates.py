"""A deployment's certificates and site directories, made in a moment for tests."""

import json
import socket
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID

from strategies.site import SERVER, Site, read_site

HOST = "127.0.0.1"


class Authority(NamedTuple):
    """A private certificate authority."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_ca(name: str = "test authority") -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, name, key, days=30).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue(
    authority: Authority,
    name: str,
    directory: Path,
    *,
    port: int,
    days: float = 30,
    devices: tuple[str, ...] = (),
    insecure: bool = False,
) -> Site:
    """Write the site directory of machine `name` and read it.

    days: until its certificate expires; negative: it has expired.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    builder, purposes = _builder(name, str(issuer), key, days), [Usage.CLIENT_AUTH]
    if name == SERVER:  # as `edge-fl deploy` does it
        purposes.append(Usage.SERVER_AUTH)
        reached = x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))])
        builder = builder.add_extension(reached, False)
    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), False)
    certificate = builder.sign(authority.key, hashes.SHA256())
    directory.mkdir(parents=True)
    trusted = authority.certificate.public_bytes(serialization.Encoding.PEM)
    (directory / "ca.crt").write_bytes(trusted)
    (directory / "site.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "site.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    content = {
        "name": name,
        "host": HOST,
        "mail-port": port,
        "insecure": insecure,
        "devices": devices,
    }
    (directory / "site.json").write_text(json.dumps(content))
    return read_site(directory)


def deployment(root: Path, *devices: str, insecure: bool = False) -> dict[str, Site]:
    """The sites of a server and its devices, by name, with a mail port that is free."""
    authority, port = make_ca(), free_port()
    return {
        name: issue(
            authority,
            name,
            root / name,
            port=port,
            devices=devices if name == SERVER else (),
            insecure=insecure,
        )
        for name in (SERVER, *devices)
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return found.getsockname()[1]


def _builder(
    name: str, issuer: str, key: ec.EllipticCurvePrivateKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
    )
