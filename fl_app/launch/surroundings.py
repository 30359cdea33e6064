"""What surrounds a run - environment variables, the interpreter - made fit for it, or refused."""

import os
import re
import shutil
import sys

from strategies.errors import ConfigError

SIMULATION = "flwr-simulation"
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
# With these, the processes of a run would not execute what is installed as it is meant: packages of
# others that have our packages' names; Ray without the docstrings that it reads; any package's
# warnings as exceptions; and what is printed in another encoding than the reader's.
_BENDING = ("PYTHONPATH", "PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONIOENCODING")
_SHELL = re.compile(r"""[\s"'\\$&;|<>()`*?\[{]""")


def settle() -> None:
    """Change os.environ, for all that is started from now on, so that a run works in it.

    Says on standard error what of a person's settings cannot be used.
    """
    for name in _BENDING:
        os.environ.pop(name, None)
    if not os.environ.get("PATH"):  # as for a shell: Ray looks for bash there, and the app for git
        os.environ["PATH"] = os.defpath
    _keep_usable_proxies()


def check_workers() -> None:
    """Raise ConfigError where Ray cannot start its workers, for which it then waits for ever: it
    does so by `bash -c "exec INTERPRETER ..."`, without quotes."""
    if not shutil.which("bash"):
        raise ConfigError(f"Ray needs bash, which is not on the PATH, {os.environ.get('PATH')!r}")
    if found := _SHELL.search(sys.executable):
        raise ConfigError(
            f"Ray cannot start {sys.executable}: its path has {found[0]!r} in it; move the "
            f"clone to a path without, and `make setup` there"
        )


def check_simulation() -> None:
    """Raise ConfigError if this is a simulation by plain `flwr run` that would hang: in a place
    that `check_workers` refuses, or without the docstrings that Ray reads."""
    if os.path.basename(sys.argv[0]) != SIMULATION:
        return
    check_workers()
    if sys.flags.optimize > 1:
        raise ConfigError("Ray needs its docstrings: go without PYTHONOPTIMIZE=2 and `python -OO`")


def _keep_usable_proxies() -> None:
    """Leave out what Flower's HTTP client does not start with, even for this machine itself, with
    which no proxy has to do: its programs talk to one another over the loopback interface."""
    given = {name: os.environ[name] for name in os.environ if name.lower() in PROXIES}
    without = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    for name in (*given, "no_proxy", "NO_PROXY"):
        os.environ.pop(name, None)
    hosts = [host for host in re.split(r"[\s,]+", without) if host and _usable("no_proxy", host)]
    usable = {name: value for name, value in given.items() if _usable(name, value)}
    if hosts:
        usable |= dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(hosts))
    os.environ |= usable


def _usable(name: str, value: str) -> bool:
    """Whether Flower's HTTP client can work with this variable alone in the environment."""
    import httpx

    os.environ[name] = value
    try:
        httpx.Client(verify=False).close()
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        print(f"edge-fl: without {name}={value}, with which Flower fails: {error}", file=sys.stderr)
        return False
    finally:
        del os.environ[name]
    return True
