"""The record of a run: its directory, its checkpoints, and everything drawn from its events.

`metrics.jsonl` is the truth; tables, figures, report and comparison are derived from it and can
be redrawn at any time.
"""
