"""Who sends more than anybody needs to."""

import time
from dataclasses import dataclass


@dataclass
class Flood:
    """Counts what one party sends. second: when the last one began in which it was counted."""

    second: float = 0.0
    count: int = 0

    def exceeds(self, most: int) -> bool:
        """Count one more; whether there are now more than `most` in this second."""
        now = time.monotonic()
        if now >= self.second + 1.0:
            self.second, self.count = now, 0
        self.count += 1
        return self.count > most
