"""Keys and certificates of a deployment: its own certificate authority, and who it vouches for."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
LEAF_DAYS = 365
# A device without a clock of its own boots in the past until NTP has corrected it.
_BACKDATED = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """The key and certificate that every machine of one deployment trusts, and no other."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls, name: str) -> "Authority":
        """A self-signed one that may sign machines' certificates, but no further authority."""
        key = ec.generate_private_key(ec.SECP384R1())
        subject = _name(name)
        builder = _dated(subject, subject, key.public_key(), AUTHORITY_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_usage(signs_certificates=True), True)
        return cls(key, builder.sign(key, hashes.SHA384()))

    @classmethod
    def load(cls, certificate: Path, key: Path) -> "Authority":
        """From PEM files. Raises OSError, or ValueError when they hold something else."""
        return cls(load_key(key), load_certificate(certificate))

    def sign(
        self, name: str, key: ec.EllipticCurvePublicKey, days: int, addresses: tuple[str, ...] = ()
    ) -> x509.Certificate:
        """A certificate of `name`, good as TLS client, and as server at these names or IP
        addresses: without any nobody takes its owner for a server."""
        builder = _dated(_name(name), self.certificate.subject, key, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(_usage(signs_certificates=False), True)
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if addresses:
            purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
            names = [_general_name(each) for each in addresses]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return builder.add_extension(issuer, False).sign(self.key, hashes.SHA384())


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key on NIST P-384, the curve that Flower asks of its nodes, too."""
    return ec.generate_private_key(ec.SECP384R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as TLS programs read it: PKCS 8, not encrypted."""
    return key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())


def certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(pem.Encoding.PEM)


def node_key_pair(comment: str) -> tuple[bytes, bytes]:
    """(private, public) key of a SuperNode, as `ssh-keygen -t ecdsa -b 384 -N ""` writes them."""
    key = new_key()
    private = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.OpenSSH, pem.NoEncryption())
    public = key.public_key().public_bytes(pem.Encoding.OpenSSH, pem.PublicFormat.OpenSSH)
    return private, public + f" {comment}\n".encode()


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises OSError, or ValueError for what is no unencrypted EC key."""
    try:
        key = pem.load_pem_private_key(path.read_bytes(), password=None)
    except TypeError as error:  # encrypted
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} is no elliptic curve key")
    return key


def load_certificate(path: Path) -> x509.Certificate:
    """Raises OSError, or ValueError for what is no certificate."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def common_name(certificate: x509.Certificate) -> str:
    """The name it is for, or "" if it has none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def addresses_of(certificate: x509.Certificate) -> set[str]:
    """The names and IP addresses at which its owner may be reached."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value) for name in names}


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _dated(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
