"""In which order a worker asks its queues: strictly as given, or by weights.

Strict order lets a busy first queue starve the others, which is often what is meant. With weights
each claim draws an order of its own, in which a queue comes first with the probability of its weight
among all weights; the second place is drawn likewise from the rest, and so on. So every queue gets
its share, and none of it is lost while another queue is empty.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["QueueOrder"]

_UNNAMED: Final = 1.0  # the weight of a queue that has none, where others have


class QueueOrder:
    """Give the order for each claim. Make it after a fork, or siblings draw the same orders."""

    def __init__(
        self,
        queues: Sequence[str],
        weights: Mapping[str, float],
        *,
        random: Random | None = None,
    ) -> None:
        """Remember the queues; without `weights` their order is the order. `random` is for tests."""
        self._queues = tuple(queues)
        self._weights = {queue: weights.get(queue, _UNNAMED) for queue in queues} if weights else {}
        self._random = random or Random()

    def draw(self) -> tuple[str, ...]:
        """Return the queues in the order in which this claim is to ask them."""
        if not self._weights:
            return self._queues
        # Of exponential times with these rates each comes first with its rate's share of the sum,
        # and what is left when it is gone is the same draw among the others.
        return tuple(
            sorted(self._queues, key=lambda queue: self._random.expovariate(self._weights[queue]))
        )
