"""The tasks that ship with the app, and the one that a run's configuration names."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from fl_app.config import RunConfig
from fl_app.tasks.reference import class_of
from strategies.errors import ConfigError, EdgeFlError
from strategies.task import Task


def _images(config: RunConfig) -> Task:
    from fl_app.tasks.images import Images

    return Images(config)


def _text(config: RunConfig) -> Task:
    from fl_app.tasks.text import Text

    return Text(config.seed, config.data_path)


def _tables(config: RunConfig) -> Task:
    from fl_app.tasks.tables import Tables

    class Named(Tables):
        table, target, kind = config.table, config.table_target, config.table_kind

    return Named(config.seed, config.data_path)


BUILT_IN: dict[str, Callable[[RunConfig], Task]] = {
    "images": _images,
    "tables": _tables,
    "text": _text,
}


@lru_cache(maxsize=2)  # a host's participants share one; two fit a run and a comparison
def task_of(config: RunConfig) -> Task:
    """The task of the run, made once a process. Raises ConfigError, and DataError for data that it
    cannot read."""
    if make := BUILT_IN.get(config.task):
        return make(config)
    made = class_of(config.task)
    with told_as(f"task={config.task!r} cannot be made", ConfigError):
        return made(seed=config.seed, data_path=config.data_path)


@contextmanager
def told_as(what: str, kind: type[EdgeFlError]) -> Iterator[None]:
    """Whatever somebody's task raises in here is one line of `kind`, behind `what`."""
    try:
        yield
    except EdgeFlError:
        raise
    except Exception as error:
        raise kind(f"{what}: {type(error).__name__}: {error}") from error
