"""The orders that wait for a place: of each shape in the order in which they came."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class WaitingOrders(Generic[T]):
    """Orders by shape. Every operation takes the same time however many wait. Not safe to share between threads."""

    def __init__(self) -> None:
        self._of_shape: dict[Hashable, OrderedDict[T, None]] = {}
        self._num_orders = 0

    def add(self, shape: Hashable, order: T) -> None:
        """Puts `order` behind all others of its shape."""
        self._of_shape.setdefault(shape, OrderedDict())[order] = None
        self._num_orders += 1

    def put_back(self, shape: Hashable, orders: Iterable[T]) -> None:
        """Puts `orders` before all others of their shape, in their order."""
        for order in reversed(list(orders)):
            self.add(shape, order)
            self._of_shape[shape].move_to_end(order, last=False)

    def take(self, shape: Hashable, most: int) -> list[T]:
        """Removes and returns the orders of `shape` that came first, `most` at most."""
        queue = self._of_shape.get(shape, OrderedDict())
        taken = [queue.popitem(last=False)[0] for _ in range(min(most, len(queue)))]
        self._removed(shape, len(taken))
        return taken

    def discard(self, shape: Hashable, order: T) -> None:
        """Removes `order` where it waits."""
        queue = self._of_shape.get(shape, OrderedDict())
        if order in queue:
            del queue[order]
            self._removed(shape, 1)

    def _removed(self, shape: Hashable, count: int) -> None:
        self._num_orders -= count
        if shape in self._of_shape and not self._of_shape[shape]:
            del self._of_shape[shape]

    @property
    def shapes(self) -> list[Hashable]:
        """Shapes of which orders wait."""
        return list(self._of_shape)

    def __len__(self) -> int:
        return self._num_orders
