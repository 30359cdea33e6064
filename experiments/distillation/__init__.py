"""Who gains what by distillation: every claim about the distill system beside its control.

    python -m experiments.distillation --size small

The variants of Yajima et al., "Asynchronous Federated Learning Using Distillation", `async-plus`,
and `async-plus` without each of its ingredients, in several settings; beside them what would be
there without federation or without a large model. See `plan` for what is run, `claims` for what is
claimed and `report` for what is made of it.
"""
