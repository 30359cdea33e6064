"""What every algorithm, averaging rule and topology keeps to, as clauses that can be tried.

A clause is a function that raises `ContractError`, with what was wrong. The tests of this
repository try them on everything that ships with it, `edge-fl check` on what is somebody's own. In
a test:

    from strategies.contracts import algorithms

    @pytest.mark.parametrize("clause", algorithms.CLAUSES)
    def test_mine(clause):
        clause(algorithms.Subject("/path/to/mine.py:Mine"))
"""

from strategies.contracts.broken import ContractError

__all__ = ["ContractError"]
