"""The distillation server's process, but it counts its steps without taking any, and G follows
nobody."""

from strategies.distillation.learner import Learner
from strategies.distillation.worker import main


def count(learner: Learner) -> None:
    learner.step += 1


if __name__ == "__main__":
    Learner.reverse_step = count  # type: ignore[method-assign]
    Learner._follow = lambda *_: None  # type: ignore[method-assign]
    main()
