"""Tells which keys are certainly new: a field of bits, two for each key that is there, by its hash (a Bloom filter)."""

from __future__ import annotations

from typing import Self

#: Bits of the largest field, as a power of two: 8 MB.
MOST = 26


class Bits:
    """Keys can be added, never taken out. "Not there" is certain, "there" is likely."""

    __slots__ = ("_field", "_mask")

    def __init__(self, bits: int) -> None:
        """
        :param bits: a power of two, from 8 to 2^32.
        """
        #: Empty until there is a key: it takes its memory at once.
        self._field = bytearray()
        self._mask = bits - 1

    @classmethod
    def of_keys(cls, number: int) -> Self:
        """A field for ``number`` keys, an octet for each: then one new key in twenty is taken for one that is there."""
        return cls(1 << min(MOST, max(10, (8 * number - 1).bit_length())))

    def add(self, *keys: str) -> None:
        """From now on these are there. One thread at a time; others may look meanwhile."""
        if not self._field:
            self._field = bytearray((self._mask + 1) // 8)
        field, mask = self._field, self._mask
        for key in keys:
            mark = hash(key)
            bit = mark & mask
            field[bit >> 3] |= 1 << (bit & 7)
            bit = mark >> 32 & mask
            field[bit >> 3] |= 1 << (bit & 7)

    def __contains__(self, key: str) -> bool:
        """Whether ``key`` may be there."""
        field, mask = self._field, self._mask
        if not field:
            return False
        mark = hash(key)
        bit = mark & mask
        if not field[bit >> 3] & (1 << (bit & 7)):
            return False
        bit = mark >> 32 & mask
        return bool(field[bit >> 3] & (1 << (bit & 7)))
