"""What of the ops page can be chosen, and stands in its address: the window and the refresh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["REFRESHES", "USUAL_REFRESH", "USUAL_WINDOW", "WINDOWS", "Window"]


@dataclass(frozen=True, slots=True)
class Window:
    """Be a stretch of time up to now, in buckets of a round length."""

    name: str
    seconds: int
    buckets: int

    @property
    def bucket_s(self) -> float:
        """Return the length of a bucket: what has ended shows at most so much later."""
        return self.seconds / self.buckets


# Buckets of 15 s, 1, 5 and 10 minutes: round by the clock, and as many bars as fit a chart.
WINDOWS: Final = {
    one.name: one
    for one in (
        Window("15m", 900, 60),
        Window("1h", 3600, 60),
        Window("6h", 21_600, 72),
        Window("24h", 86_400, 144),
    )
}
USUAL_WINDOW: Final = "1h"

# Seconds; None: only when the page is loaded again. Nothing quicker than 5 s: it would only flicker.
REFRESHES: Final[dict[str, int | None]] = {"off": None, "5s": 5, "10s": 10, "30s": 30}
USUAL_REFRESH: Final = "5s"
