"""The distillation server's process, but its reverse steps are counted and not taken."""

from strategies.distillation.learner import Learner
from strategies.distillation.worker import main


def count(learner: Learner) -> None:
    learner.step += 1


if __name__ == "__main__":
    Learner.reverse_step = count  # type: ignore[method-assign]
    main()
