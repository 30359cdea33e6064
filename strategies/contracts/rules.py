"""What every averaging rule keeps to."""

from collections.abc import Callable
from typing import Any

import numpy as np

from strategies.averaging import Vectors
from strategies.contracts.broken import require
from strategies.rules import Rule, Update
from strategies.schedule import Job

Make = Callable[[], Rule]  # a rule that has seen nothing


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def update(
    participant: int, weights: Any, buffers: Any, examples: int = 1, base: int = 0
) -> Update:
    """What a participant brings that began from version `base`."""
    job = Job(participant, 0, base, 0.0, 0.0, 0.0, 0.0)
    return Update(job, examples, 0.5, {"weights": f32(*weights), "buffers": f32(*buffers)})


def random_updates(seed: int, number: int = 5) -> list[Update]:
    generator = np.random.default_rng(seed)
    return [
        update(p, generator.standard_normal(6), generator.random(2), int(generator.integers(1, 9)))
        for p in range(number)
    ]


def model_of(seed: int = 99) -> Vectors:
    return random_updates(seed, 1)[0].vectors


def rounds(rule: Rule, model: Vectors, versions: range) -> Vectors:
    """These versions one after the other, from updates of version 0."""
    for version in versions:
        model = rule.combine(version, model, random_updates(version), {0: model_of()})
    return model


def bits(model: Vectors) -> dict[str, bytes]:
    return {key: value.tobytes() for key, value in model.items()}


def vectors_have_the_models_shape_and_type(make: Make) -> None:
    model, updates = model_of(), random_updates(0)
    before = bits(model)
    result = make().combine(1, model, updates, {0: model})
    require(result.keys() == model.keys(), f"it returns {list(result)}, not {list(model)}")
    for key, value in result.items():
        require(value.dtype == np.float32, f"{key!r} is {value.dtype}, not float32")
        fits = value.shape == model[key].shape
        require(fits, f"{key!r} has the shape {value.shape}, not {model[key].shape}")
        require(bool(np.isfinite(value).all()), f"{key!r} is not finite")
        require(value.flags.writeable, f"{key!r} cannot be written to")
    require(bits(model) == before, "it changes the model that it got")


def one_update_is_enough(make: Make) -> None:
    """All others were lost or rejected."""
    model = model_of()
    result = make().combine(1, model, random_updates(0, 1), {0: model})
    finite = all(np.isfinite(value).all() for value in result.values())
    require(finite, "the model of one update is not finite")


def equal_inputs_give_equal_bits(make: Make) -> None:
    once, again = (bits(rounds(make(), model_of(), range(1, 4))) for _ in range(2))
    require(once == again, "the same updates once more give other bits")


def its_state_goes_on_with_equal_bits(make: Make) -> None:
    """Rounds 1 to 4 in one go, and 1, 2 | state into a new rule | 3, 4."""
    through = rounds(make(), model_of(), range(1, 5))
    first = make()
    half = rounds(first, model_of(), range(1, 3))
    state = {key: value.copy() for key, value in first.state().items()}
    rounds(first, half, range(3, 5))  # going on with the first one does not touch the copy
    second = make()
    second.load_state(state)
    same = bits(rounds(second, half, range(3, 5))) == bits(through)
    require(same, "resumed from state() it goes elsewhere; what it remembers must be in there")


def state_fits_a_checkpoint(make: Make) -> None:
    """Arrays of numbers under names of text; a rule that has seen nothing takes an empty one."""
    rule = make()
    rule.load_state({})
    rounds(rule, model_of(), range(1, 2))
    for key, value in rule.state().items():
        fits = isinstance(key, str) and isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
        require(fits, f"state() has {type(value).__name__} as {key!r}; arrays of numbers are kept")


def variances_stay_positive(make: Make) -> None:
    """Normalisation divides by the roots of some buffers: a step from 1.0 towards 0.01 must not go
    beyond, whatever becomes of the weights."""
    rule, start = make(), {"weights": f32(0), "buffers": f32(1.0)}
    model = start
    for version in range(1, 5):
        updates = [update(p, [0], [0.01 * (p + 1)]) for p in range(3)]
        model = rule.combine(version, model, updates, {0: start})
        least = float(model["buffers"][0])
        require(least > 0, f"a variance became {least:.2g}: average buffers, and no more")


Clause = Callable[[Make], None]
CLAUSES: tuple[Clause, ...] = (
    vectors_have_the_models_shape_and_type,
    one_update_is_enough,
    equal_inputs_give_equal_bits,
    its_state_goes_on_with_equal_bits,
    state_fits_a_checkpoint,
    variances_stay_positive,
)
