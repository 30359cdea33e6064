"""The pyproject.toml beside the packages, in which Flower demands the configuration's defaults."""

from pathlib import Path

from fl_app.errors import ConfigError

PATH = Path(__file__).resolve().parents[1] / "pyproject.toml"


_TABLE = "[tool.flwr.app.config]"


def pyproject() -> str:
    """The text of the file. Raises ConfigError where it is not: in an installed wheel."""
    try:
        text = PATH.read_text(encoding="utf-8")
    except OSError:
        text = ""
    if _TABLE not in text:  # beside installed packages there may be somebody else's
        raise ConfigError(
            f"{PATH} with {_TABLE} cannot be read, which has the configuration: edge-fl works from "
            f"a clone of its repository (make setup), not from an installed wheel"
        )
    return text
