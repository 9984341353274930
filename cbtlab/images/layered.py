"""A qcow2 image over its backing files: where each piece comes from, found for all at once."""

from __future__ import annotations

import os
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbtlab.images.base import Bytes, Image
from cbtlab.images.raw import RawLayer
from cbtlab.qcow2.reader import DATA, HOLE, PACKED, ZEROS, Hosts, Kinds, Qcow2Layer


class LayeredImage(Image):
    """A qcow2 image over its backing files, the topmost layer first."""

    def __init__(self, layers: list[Qcow2Layer | RawLayer]) -> None:
        super().__init__(layers[0].name, layers[0].size)
        self.layers = layers
        # The largest piece that no layer's cluster and no shorter backing file divides.
        grains = [layer.grain for layer in layers if isinstance(layer, Qcow2Layer)]
        ends = [-(-layer.size // 512) * 512 for layer in layers[1:] if layer.size < self.size]
        self.grain = gcd(*grains, *ends)

        about = [os.fstat(layer.fd) for layer in layers]
        self._files = [(file.st_dev, file.st_ino) for file in about]

    def close(self) -> None:
        for layer in self.layers:
            layer.close()

    def locate(self, first: int, count: int) -> tuple[Kinds, Hosts, NDArray[np.int16]]:
        """Say of ``count`` grains from grain ``first`` on what, where, and in which layer they are.

        Kinds are as in ``cbtlab.qcow2.reader``, with no HOLE left.
        """
        kinds = np.full(count, HOLE, np.uint8)
        hosts = np.zeros(count, np.int64)
        owner = np.zeros(count, np.int16)
        end = self.size  # where the layers above can still see the one below
        for number, layer in enumerate(self.layers):
            end = min(end, layer.size)
            inside = min(count, -(-end // self.grain) - first)
            todo = kinds[: max(0, inside)] == HOLE
            if not todo.any():
                break
            kind, host = layer.locate(first * self.grain, inside, self.grain)
            take = todo & (kind != HOLE)
            kinds[:inside][take] = kind[take]
            hosts[:inside][take] = host[take]
            owner[:inside][take] = number
        kinds[kinds == HOLE] = ZEROS
        return kinds, hosts, owner

    def shares(self, other: Image, offset: int, length: int) -> bool:
        """Whether both read these bytes from the same clusters of the same files."""
        if not isinstance(other, LayeredImage) or other.grain != self.grain:
            return False
        first = offset // self.grain
        count = -(-(offset + length) // self.grain) - first
        kinds, hosts, owner = self.locate(first, count)
        kinds_there, hosts_there, owner_there = other.locate(first, count)
        if (kinds != kinds_there).any():
            return False
        numbers = {file: number for number, file in enumerate(self._files)}
        own = np.arange(len(self._files))
        theirs = np.array([numbers.get(file, -1) for file in other._files])
        same = (hosts == hosts_there) & (own[owner] == theirs[owner_there])
        return bool((same | (kinds == ZEROS)).all())

    def load(self, offset: int, length: int) -> Bytes | None:
        first = offset // self.grain
        skip = offset - first * self.grain
        kinds, hosts, owner = self.locate(first, -(-(skip + length) // self.grain))
        if (kinds == ZEROS).all():
            return None
        out = np.zeros(len(kinds) * self.grain, np.uint8)
        packed = kinds == PACKED
        step = np.where(kinds == DATA, self.grain, 0)
        joined = (
            (kinds[1:] == kinds[:-1])
            & (owner[1:] == owner[:-1])
            & (hosts[1:] == hosts[:-1] + step[:-1])
        )
        # Runs: consecutive in one file, or all of one compressed cluster.
        starts = np.flatnonzero(np.concatenate(([True], ~joined)))
        ends = np.append(starts[1:], len(kinds))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if kinds[start] == ZEROS:
                continue
            layer = self.layers[owner[start]]
            piece = out[start * self.grain : end * self.grain]
            if packed[start]:
                self._unpack(layer, piece, first + start, int(hosts[start]))
            else:
                layer.read_plain(piece, int(hosts[start]))
        return out[skip : skip + length]

    def _unpack(self, layer: Any, piece: Bytes, grain: int, entry: int) -> None:
        """Fill ``piece``, which begins at ``grain``, from clusters that share one entry."""
        data = np.frombuffer(layer.unpack(entry), np.uint8)
        begin = grain * self.grain % layer.cluster
        if begin + len(piece) <= layer.cluster:
            piece[:] = data[begin : begin + len(piece)]
        else:
            piece[:] = np.resize(np.roll(data, -begin), len(piece))
