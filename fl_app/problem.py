"""From configuration keys to what is learnt: the task by name, and who has which examples."""

from functools import lru_cache
from typing import Any

from fl_app.config import RunConfig
from strategies.problem import Problem, TaskReference

# The options of the tasks that ship with the app: keys, by their fields' names.
_IMAGES = (
    "allow_missing_classes", "data_root", "dataset", "large_model", "large_width", "normalisation",
    "small_model", "small_width",
)  # fmt: skip
BUILT_IN: dict[str, tuple[str, tuple[str, ...]]] = {
    "images": ("fl_app.tasks.images:Images", _IMAGES),
    "tables": ("fl_app.tasks.tables:Tables", ("table", "table_target", "table_kind")),
    "text": ("fl_app.tasks.text:Text", ()),
}


def task_reference_of(config: RunConfig) -> TaskReference:
    """The run's task, by name."""
    place, names = BUILT_IN.get(config.task, (config.task, ()))
    options = tuple((name, getattr(config, name)) for name in names)
    return TaskReference(config.task, place, config.seed, config.data_path, options)


@lru_cache(maxsize=8)
def problem_of(config: RunConfig) -> Problem:
    """What the run learns, from whose examples."""
    parameters: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("alpha", "num_classes_per_partition", "num_shards_per_partition")
    }
    # In the consensus system nobody has a server's model, for which examples would be held out.
    measured = not config.agrees or config.evaluate_on == "validation"
    return Problem(
        task=task_reference_of(config),
        participants=config.participants,
        seed=config.seed,
        device=config.device,
        arithmetic=config.arithmetic,
        arithmetic_key="consensus.precision" if config.agrees else "precision",
        source=config.data_source,
        partition=config.partition,
        parameters=tuple(parameters.items()),
        proxy_examples=None if config.agrees else config.proxy_examples,
        proxy_labelled_examples=config.proxy_labelled_examples if config.distils else 0,
        validation_examples=config.validation_examples if measured else None,
        evaluate_on=config.evaluate_on,
        evaluate_examples=config.evaluate_examples,
    )
