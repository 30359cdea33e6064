"""The pyproject.toml beside the packages, in which Flower demands the configuration's defaults."""

from pathlib import Path

from fl_app.errors import ConfigError

PATH = Path(__file__).resolve().parents[1] / "pyproject.toml"


def pyproject() -> str:
    """The text of the file. Raises ConfigError where there is none: in an installed wheel."""
    try:
        return PATH.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read {PATH} ({error.strerror}), which has the configuration: edge-fl works "
            f"from a clone of its repository (make setup), not from an installed wheel"
        ) from error
