"""Edge-consensus learning (Niwa et al., KDD 2020 and ICML 2021) against its baselines.

    python -m experiments.consensus.tune
    python -m experiments.consensus
    python -m experiments.consensus.tracking --data DIR
    python -m experiments.consensus.convex

Nodes in a ring whose data are unequal exchange at random times: which models do they end with,
beside the one that all the data in one place would have given? See `plan` for what is run and
`report` for what is made of it. `tracking` follows a published protocol on CIFAR-10; `convex` has
problems whose optimum is known.
"""
