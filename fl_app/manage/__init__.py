"""Commands over many runs: `edge-fl sweep`, `compare`, `runs` and `rm`."""
