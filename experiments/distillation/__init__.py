"""Yajima et al., "Asynchronous Federated Learning Using Distillation": their figure and table.

    python -m experiments.distillation --size small

Four variants of the paper and `async-plus` on CIFAR-10 with three clients: who reaches which
accuracy of the large global model when. See `plan` for what is run and `report` for what is made
of it.
"""
