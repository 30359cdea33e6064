"""What the ServerApp's process does around a run."""

import io
import logging

import pytest

import fl_app.server_app  # noqa: F401 - what it does to Flower's log
from strategies.errors import ConfigError, DivergedError


def logged(error: Exception) -> str:
    """What Flower's log has of `error`, raised by a ServerApp."""
    log, lines = logging.getLogger("flwr"), io.StringIO()
    handler = logging.StreamHandler(lines)
    log.addHandler(handler)
    try:
        raise error
    except Exception as raised:
        log.error("%s raised an exception", "ServerApp", exc_info=raised)
    finally:
        log.removeHandler(handler)
    return lines.getvalue()


@pytest.mark.parametrize("error", [DivergedError("node 3"), ConfigError("a key")])
def test_an_error_of_ours_is_logged_by_its_sentence(
    error: Exception,
) -> None:
    assert logged(error) == f"ServerApp raised an exception: {error}\n"


def test_any_other_error_is_logged_with_its_traceback() -> None:
    assert "Traceback" in logged(ZeroDivisionError("x"))
