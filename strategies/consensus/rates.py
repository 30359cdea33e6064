"""How long a local step is."""

# What momentum is: the running mean M <- beta M + (1 - beta) g, or heavy-ball's m <- beta m + g.
HEAVY_BALL, MEAN = "heavy-ball", "mean"
MOMENTUM_FORMS = (HEAVY_BALL, MEAN)


def step_size(learning_rate: float, momentum: float, form: str) -> float:
    """eta, the length of a step along the running mean of gradients that this learning rate means.

    Heavy-ball's sum is 1 / (1 - beta) running means, so its steps are steps of that running mean
    with eta = learning_rate / (1 - beta): the same models, and all that is tied to the length of a
    step (penalties, what is forgotten, clips) is tied to the one that is really done.
    """
    return learning_rate / (1 - momentum) if form == HEAVY_BALL else learning_rate
