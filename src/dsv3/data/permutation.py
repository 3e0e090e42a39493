"""A pseudo-random permutation that is computed, not stored: a Feistel network on a x b."""

import hashlib
import math

ROUNDS = 8


class Permutation:
    """A bijection of range(size), chosen by (seed, epoch); the same on every machine.

    Any size costs the same memory; numpy's generators may change their streams between versions,
    this does not.
    """

    def __init__(self, size: int, *, seed: int, epoch: int) -> None:
        assert size > 0, f"{size=}"
        self._size = size
        self._left = math.isqrt(size - 1) + 1
        self._right = -(-size // self._left)
        name = f"dsv3 samples {seed} {epoch}".encode()
        self._key = hashlib.blake2b(name, digest_size=32).digest()

    def __call__(self, index: int) -> int:
        """Where `index` goes; walks on while the place is beyond the end (rare: a x b > size)."""
        assert 0 <= index < self._size, f"{index=} {self._size=}"
        place = self._network(index)
        while place >= self._size:
            place = self._network(place)
        return place

    def _network(self, place: int) -> int:
        left, right = divmod(place, self._right)
        for number in range(0, ROUNDS, 2):
            left = (left + self._round(number, right)) % self._left
            right = (right + self._round(number + 1, left)) % self._right
        return left * self._right + right

    def _round(self, number: int, half: int) -> int:
        message = number.to_bytes(1, "big") + half.to_bytes(16, "big")
        digest = hashlib.blake2b(message, digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "big")
