"""Every place where one of thousands of literals stands in a long text, found by numpy.

An automaton goes from character to character; this asks all of them at once whether a literal may begin there, which
takes a fraction of the time where most text holds none. Each literal is in one of BUCKETS, as in Hyperscan's FDR (Wang
et al., NSDI 2019): a place is looked at if its character begins, and the next one continues, some literals of the same
bucket, and then if those two characters begin one literal. From the few places that are left the literals' trie is walked,
for all places together, a character at a time: what is found is exact.

C characters; P places; H hits; E edges of the trie; S its states.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint16] | NDArray[np.uint32]
# Literals of one character have the last bucket to themselves: anything may follow them.
BUCKETS = 32
# Characters beyond the first plane count as its last one, until the trie tells them apart.
_PLANE = 0x10000
# Places asked at once: what is known of them stays in the cache.
_BLOCK = 1 << 15
_CODE_BITS = 21
# Pairs of characters are hashed into a table of so many flags, a hundred for each of the default pack's.
_PAIR_BITS = 20


class Hits(NamedTuple):
    """Where literals stand: their first character, the one behind their last, and which they are; in no order."""

    start_H: NDArray[np.int64]
    end_H: NDArray[np.int64]
    literal_H: NDArray[np.int64]


def code_points(text: str) -> Codes:
    """The characters of a text as numbers, in two bytes each where that is enough."""
    encoded = text.encode("utf-16-le", "surrogatepass")
    if len(encoded) == 2 * len(text):
        return np.frombuffer(encoded, np.uint16)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


class Finder:
    """Finds literals, which are known by their index. Each is given once."""

    def __init__(self, literals: Sequence[str]) -> None:
        self._begins, self._continues = np.zeros((2, _PLANE), np.uint32)
        single = 1 << (BUCKETS - 1)
        self._continues[:] = single
        states = {"": 0}
        edges: dict[int, int] = {}
        for literal in literals:
            first, second = (min(ord(character), _PLANE - 1) for character in (literal[0], literal[1:2] or "\0"))
            # Characters are spread over the buckets by their number's last bits, which is as good as by chance.
            bucket = single if len(literal) == 1 else 1 << (first % (BUCKETS - 1))
            self._begins[first] |= bucket
            self._continues[second] |= bucket
            for end in range(1, len(literal) + 1):
                state = states.setdefault(literal[:end], len(states))
                edges[states[literal[: end - 1]] << _CODE_BITS | ord(literal[end - 1])] = state
        self._edge_E = np.array(sorted(edges), np.int64)
        self._next_E = np.array([edges[edge] for edge in sorted(edges)], np.int64)
        self._literal_S = np.full(len(states), -1)
        self._literal_S[[states[literal] for literal in literals]] = np.arange(len(literals))
        # By the first character; the last one of the plane stands for many, whose state is looked up.
        self._begun = np.full(_PLANE, -1)
        begun = [edge for edge in edges if edge < _PLANE - 1]
        self._begun[begun] = [edges[edge] for edge in begun]
        self._pairs = np.zeros(1 << _PAIR_BITS, bool)
        for literal in literals:
            if len(literal) > 1:
                self._pairs[_pairs(*(np.array([ord(character)], np.uint32) for character in literal[:2]))] = True

    def find(self, codes_C: Codes) -> Hits:
        """All hits, also those that overlap. Nothing is found in the last character, which should be a line feed."""
        place_P = self._places(codes_C)
        code_P = codes_C[place_P]
        state_P = self._begun.take(code_P, mode="clip")
        beyond_P = code_P >= _PLANE - 1
        state_P[beyond_P] = self._next(np.zeros_like(state_P[beyond_P]), code_P[beyond_P])
        found = [self._ends(place_P, place_P + 1, state_P)]
        goes_on_P = self._pairs[_pairs(code_P, codes_C[place_P + 1])] & (state_P >= 0)
        start_P, state_P = place_P[goes_on_P], state_P[goes_on_P]
        place_P = start_P + 1
        while len(place_P):
            state_P = self._next(state_P, codes_C[place_P])
            goes_on_P = state_P >= 0
            start_P, place_P, state_P = start_P[goes_on_P], place_P[goes_on_P] + 1, state_P[goes_on_P]
            found.append(self._ends(start_P, place_P, state_P))
            inside_P = place_P < len(codes_C)
            start_P, place_P, state_P = start_P[inside_P], place_P[inside_P], state_P[inside_P]
        return Hits(*map(np.concatenate, zip(*found, strict=True)))

    def _next(self, state_P: NDArray[np.int64], code_P: Codes) -> NDArray[np.int64]:
        """The states behind a character each; -1 where the trie does not go on."""
        step_P = state_P << _CODE_BITS | code_P
        edge_P = np.minimum(np.searchsorted(self._edge_E, step_P), len(self._edge_E) - 1)
        return np.where(self._edge_E[edge_P] == step_P, self._next_E[edge_P], -1)

    def _ends(self, start_P: NDArray[np.int64], end_P: NDArray[np.int64], state_P: NDArray[np.int64]) -> Hits:
        """The literals that end in these states; -1 is none."""
        literal_P = self._literal_S[state_P]
        ends_P = (literal_P >= 0) & (state_P >= 0)
        return Hits(start_P[ends_P], end_P[ends_P], literal_P[ends_P])

    def _places(self, codes_C: Codes) -> NDArray[np.int64]:
        """Where a literal may begin."""
        places = [np.empty(0, np.int64)]
        for start in range(0, len(codes_C) - 1, _BLOCK):
            block = codes_C[start : start + _BLOCK + 1].astype(np.intp)
            buckets = self._begins.take(block[:-1], mode="clip") & self._continues.take(block[1:], mode="clip")
            places.append(np.flatnonzero(buckets) + start)
        return np.concatenate(places)


def _pairs(first_P: Codes, second_P: Codes) -> NDArray[np.uint32]:
    """Pairs of characters as numbers of _PAIR_BITS, by multiplicative hashing (Knuth, volume 3, section 6.4)."""
    return ((first_P * np.uint32(0x9E3779B1)) ^ (second_P * np.uint32(0x85EBCA6B))) >> np.uint32(32 - _PAIR_BITS)
