"""What was used last stays, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Kept(Generic[Item]):
    """Items by key; the one that was not used for longest leaves first. For any thread.

    Args:
        size: bytes, at most. An item that is larger by itself is not kept.

    Attributes:
        bytes: held now.
    """

    def __init__(self, size: int):
        self.bytes = 0
        self._size = size
        self._items: OrderedDict[Hashable, tuple[Item, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Item | None:
        """The item, or None."""
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key][0]

    def put(self, key: Hashable, item: Item, size: int) -> None:
        """Keep an item of so many bytes."""
        with self._lock:
            if key in self._items or size > self._size:
                return
            self._items[key] = item, size
            self.bytes += size
            while self.bytes > self._size:
                self.bytes -= self._items.popitem(last=False)[1][1]

    def __len__(self) -> int:
        return len(self._items)
