"""Edge-consensus learning (Niwa et al., KDD 2020 and ICML 2021) against its baselines.

    python -m experiments.consensus --size small
    python -m experiments.consensus.tune --size fashion-mnist
    python -m experiments.consensus.convex

CIFAR-10 on a ring of eight nodes, each with five of the ten classes, exchanging at random times:
which models do the nodes end with, beside the one that all the data in one place would have given?
See `plan` for what is run and `report` for what is made of it; `convex` has problems whose optimum
is known.
"""
