"""Paths that people name."""

from pathlib import Path

from fl_app.errors import ConfigError


def expanded(path: str, meaning: str) -> Path:
    """`path` with ~ as the home directory that it stands for; ConfigError if there is none.

    meaning: what the path is, for the message.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~nobody, or ~ without HOME and without an entry for this user
        raise ConfigError(
            f"{meaning} {path!r} is in a home directory that cannot be found; give an absolute path"
        ) from None
