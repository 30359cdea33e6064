"""What is wrong, or soon will be, with the files of a deployment or of one machine."""

import datetime
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fl_app.deploy.authority import (
    addresses_of,
    common_name,
    load_certificate,
    load_key,
)
from fl_app.deploy.directory import SECRETS, authority_of, device_names, machine, settings_of
from strategies.errors import ConfigError
from strategies.site import SERVER, SITE_FILE, read_site

SOON = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Finding:
    """One line of the report; `wrong` if somebody has to do something now."""

    where: str
    what: str
    wrong: bool

    def __str__(self) -> str:
        return f"{'WRONG' if self.wrong else 'ok':6} {self.where}: {self.what}"


def check(directory: Path) -> list[Finding]:
    """Look at a deployment, or at the folder of one machine. ConfigError for what is neither."""
    if not (directory / "server").is_dir():
        return list(_machine(directory, directory.name, read_site(directory).name))
    findings = []
    if not settings_of(directory)["insecure"]:
        try:
            authority_of(directory)
        except ConfigError as error:
            findings.append(Finding("ca", str(error), True))
        if (directory / "ca").is_dir():  # it may be kept elsewhere
            findings += _open_secrets(directory / "ca", "ca")
            findings += _dates(directory / "ca" / "ca.crt", "ca")
    names = device_names(directory)
    for name in (SERVER, *names):
        findings += _machine(machine(directory, name), name, name)
        ours, theirs = directory / "ca" / "ca.crt", machine(directory, name) / "ca.crt"
        if ours.is_file() and theirs.is_file() and ours.read_bytes() != theirs.read_bytes():
            findings.append(Finding(name, "its ca.crt is of another deployment", True))
    for place in sorted((directory / "devices").glob("*")):
        if place.name not in names:
            findings.append(
                Finding(place.name, f"{place} is left over; remove it, or add the device", True)
            )
    return findings


def _machine(place: Path, where: str, name: str) -> Iterator[Finding]:
    try:
        site = read_site(place)
    except ConfigError as error:
        yield Finding(where, str(error), True)
        return
    if site.name != name:
        yield Finding(where, f"{place / SITE_FILE} is of {site.name!r}, not of {name!r}", True)
    yield from _open_secrets(place, where)
    if site.credentials is None:
        yield Finding(where, "insecure: no certificate", False)
        return
    path = site.credentials.certificate
    try:
        certificate = load_certificate(path)
        authority = load_certificate(site.credentials.authority)
        key = load_key(site.credentials.key).public_key()
    except (OSError, ValueError) as error:
        yield Finding(where, f"unreadable: {error}", True)
        return
    yield from _dates(path, where)
    if not _signed(certificate, authority):
        yield Finding(where, f"{path} was not signed by the authority in ca.crt", True)
    if certificate.public_key() != key:
        yield Finding(where, f"{path} does not belong to site.key", True)
    if common_name(certificate) != name:
        yield Finding(where, f"{path} is of {common_name(certificate)!r}, not of {name!r}", True)
    if name == SERVER and site.host not in addresses_of(certificate):
        yield Finding(where, f"{path} is not for the host {site.host!r}; renew it", True)


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _dates(path: Path, where: str) -> Iterator[Finding]:
    try:
        certificate = load_certificate(path)
    except (OSError, ValueError) as error:
        yield Finding(where, f"unreadable: {error}", True)
        return
    end, now = certificate.not_valid_after_utc, datetime.datetime.now(datetime.UTC)
    if end < now:
        yield Finding(where, f"{path.name} expired on {end:%Y-%m-%d}; `edge-fl deploy renew`", True)
    elif certificate.not_valid_before_utc > now:
        begin = certificate.not_valid_before_utc
        yield Finding(where, f"{path.name} is valid from {begin:%Y-%m-%d} on; see the clock", True)
    else:
        soon = ", soon; `edge-fl deploy renew`" if end - now < SOON else ""
        yield Finding(where, f"{path.name} expires on {end:%Y-%m-%d}{soon}", False)


def _open_secrets(place: Path, where: str) -> Iterator[Finding]:
    for path in sorted(place.glob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.name in SECRETS and mode & 0o077:
            yield Finding(where, f"others may read {path} (mode {mode:o}): chmod 600", True)
    if stat.S_IMODE(place.stat().st_mode) & 0o077:
        yield Finding(where, f"others may enter {place}: chmod 700", True)
