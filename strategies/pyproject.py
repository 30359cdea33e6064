"""The pyproject.toml of this app, in which Flower demands the configuration's defaults."""

import tomllib
from pathlib import Path

from strategies.errors import ConfigError

PACKAGES = Path(__file__).resolve().parents[1]  # the folder that has this package
# A clone and a bundle of Flower's have it beside the packages, a wheel inside of the app's: beside
# installed packages there may be somebody else's.
_PLACES = (PACKAGES / "fl_app" / "pyproject.toml", PACKAGES / "pyproject.toml")
PATH = next((path for path in _PLACES if path.exists()), _PLACES[-1])

_TABLE = "[tool.flwr.app.config]"


def pyproject() -> str:
    """The text of the file. Raises ConfigError where it is not, or is another app's."""
    try:
        text = PATH.read_text(encoding="utf-8")
    except OSError:
        text = ""
    if _TABLE not in text:
        raise ConfigError(
            f"{PATH} with {_TABLE} cannot be read, which has the configuration: install edge-fl "
            f"again, or run it from a whole clone"
        )
    return text


def install(extra: str) -> str:
    """The command that installs the packages of an extra, wherever edge-fl is: in a clone, from a
    wheel, in a bundle on a device. By their own names: edge-fl itself is in no registry."""
    packages = tomllib.loads(pyproject())["project"]["optional-dependencies"][extra]
    return f"pip install {' '.join(repr(package) for package in packages)}"
