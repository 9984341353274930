"""The trees of btrfs, followed level by level, many trees at once.

A node names its children by logical address and generation; every one is
checked as the kernel does: checksum, its own address, file system, level,
generation, order of keys, and that its keys are those its parent says.  A node
that two trees share (a snapshot and its source) is read once.  Within one tree
a node may be met once, so that no image, however made, can lead in circles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.files.btrfs import layout as on_disk
from cbtlab.files.btrfs.checksum import right
from cbtlab.files.btrfs.chunks import Chunks
from cbtlab.files.btrfs.superblock import Btrfs
from cbtlab.files.extents import NOWHERE, Array
from cbtlab.files.volume import structure

_BYTES_AT_ONCE = 16 << 20
_MOST_VISITS = 1 << 22  # nodes met, counted for every tree that shares them
_MOST_NOTES = 20

Bytes = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.bytes_]  # 17 bytes that sort as keys do
LEAST, MOST = b"", b"\xff" * on_disk.KEY_BYTES
_ORDER = [*range(7, -1, -1), 8, *range(16, 8, -1)]
_REASONS = (
    "",
    "has a wrong checksum",
    "is of another file system or place",
    "is of the wrong level",
    "is of another generation than its parent says",
    "has an impossible number of entries",
    "has its keys in disorder",
    "has items that overlap",
)


@dataclass(frozen=True)
class Root:
    """Where a tree begins.  Nodes before the key ``dropped`` are gone: it is being deleted."""

    tree: int  # the number of the tree, which its nodes name as owner
    bytenr: int
    level: int
    generation: int
    shared: bool = False  # whether the owner may be any subvolume, this one's source
    leaves: bool = True  # whether what they hold is wanted
    dropped: bytes = LEAST


@dataclass(frozen=True)
class Leaves:
    """Some leaves and their items.  ``flat`` is their bytes, one after the other.

    Items: the ``leaf`` they lie in (a position in ``bytenr``), their key, and where in ``flat``
    their ``size`` bytes begin.  Visits: ``tree`` (a position in the list of roots) and the leaf,
    ascending; a leaf of two trees has two.
    """

    flat: Bytes
    bytenr: Array
    physical: Array  # of the copy that was read
    nodesize: int
    leaf: Array
    objectid: npt.NDArray[np.uint64]
    type: npt.NDArray[np.uint8]
    offset: npt.NDArray[np.uint64]
    place: Array
    size: Array
    visit_tree: Array
    visit_leaf: Array

    def of_trees(self, rows: Array, wanted: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
        """The items ``rows`` once for every wanted tree that holds them: which, and the tree."""
        mine = wanted[self.visit_tree]
        tree, leaf = self.visit_tree[mine], self.visit_leaf[mine]
        low = np.searchsorted(leaf, self.leaf[rows])
        many = np.searchsorted(leaf, self.leaf[rows], side="right") - low
        which = np.repeat(np.arange(len(rows)), many)
        at = np.arange(len(which)) - np.repeat(np.cumsum(many) - many, many) + low[which]
        return rows[which], tree[at]

    def records(self, rows: Array, kind: np.dtype[Any]) -> Any:
        """The start of each of these items as a structured type; they must be long enough."""
        return at_places(self.flat, self.place[rows], kind)

    def item(self, row: int) -> bytes:
        """The bytes of one item."""
        place = int(self.place[row])
        return self.flat[place : place + int(self.size[row])].tobytes()

    def on_disk(self, place: Array) -> Array:
        """Where on the disk places in ``flat`` were read."""
        return np.asarray(self.physical[place // self.nodesize] + place % self.nodesize, np.int64)


def at_places(flat: Bytes, place: Array, kind: np.dtype[Any]) -> Any:
    """The structures that lie at these places of some bytes."""
    return structure(flat[place[:, None] + np.arange(kind.itemsize)], kind)


@dataclass(frozen=True)
class _Level:
    """Nodes to visit: of which root, where, and what they must be."""

    root: Array
    bytenr: Array
    generation: npt.NDArray[np.uint64]
    first: Keys
    end: Keys

    @classmethod
    def of(cls, roots: list[Root], level: int, nodesize: int) -> _Level:
        mine = [at for at, root in enumerate(roots) if root.level == level]
        return cls(
            np.array(mine, np.int64),
            np.array([roots[at].bytenr for at in mine], np.uint64).astype(np.int64),
            np.array([roots[at].generation for at in mine], np.uint64),
            np.full(len(mine), LEAST, "S17"),
            np.full(len(mine), MOST, "S17"),
        )

    def __getitem__(self, which: Any) -> _Level:
        return _Level(*(getattr(self, name)[which] for name in _FIELDS))

    @classmethod
    def join(cls, parts: list[_Level]) -> _Level:
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in _FIELDS))


_FIELDS = ("root", "bytenr", "generation", "first", "end")


@dataclass
class Walker:
    """Follows trees; ``blocks`` collects, for each tree number, the addresses of its nodes."""

    btrfs: Btrfs
    chunks: Chunks
    blocks: dict[int, list[Array]] = field(default_factory=dict)
    _visits: int = 0

    def walk(self, roots: list[Root], found: Callable[[Leaves], None]) -> None:
        """Give all leaves of the trees, some at a time.  Raises InputError for a damaged node."""
        level = _Level.of([], 0, self.btrfs.nodesize)
        for depth in range(on_disk.MOST_LEVELS - 1, -1, -1):
            level = _Level.join([level, _Level.of(roots, depth, self.btrfs.nodesize)])
            level = self._claim(roots, level)
            if depth == 0:
                read = np.array([root.leaves for root in roots], np.bool_)
                level = level[read[level.root]] if len(level.root) else level
            level = self._visit(roots, level, depth, found)

    def _claim(self, roots: list[Root], level: _Level) -> _Level:
        """Note whose these nodes are.  In one tree none may be met twice."""
        self._visits += len(level.root)
        if self._visits > _MOST_VISITS:
            raise self.btrfs.fault("has too many snapshots to go through", "delete some on a copy")
        level = level[np.lexsort((level.root, level.bytenr))]
        again = (np.diff(level.bytenr) == 0) & (np.diff(level.root) == 0)
        if again.any():
            bad = int(level.bytenr[1:][again][0])
            raise self.btrfs.fault(f"the tree block {bad} is met twice in one tree")
        numbers = np.array([root.tree for root in roots], np.uint64)[level.root]
        for tree in np.unique(numbers).tolist():
            self.blocks.setdefault(tree, []).append(np.unique(level.bytenr[numbers == tree]))
        return level

    def _visit(
        self, roots: list[Root], level: _Level, depth: int, found: Callable[[Leaves], None]
    ) -> _Level:
        below = [_Level.of([], 0, 0)]
        unique, first = np.unique(level.bytenr, return_index=True)
        ends = np.append(first[1:], len(level.bytenr))
        own = np.array([0 if root.shared else root.tree for root in roots], np.uint64)
        step = max(1, _BYTES_AT_ONCE // self.btrfs.nodesize)
        for at in range(0, len(unique), step):
            part = slice(at, at + step)
            nodes, physical = self._read(unique[part], level.generation[first[part]], depth)
            visits = level[int(first[at]) : int(ends[part][-1])]
            node = np.searchsorted(unique[part], visits.bytenr)
            self._check_visits(nodes, visits, node, own)
            if depth:
                below.append(self._children(roots, nodes, visits, node))
            else:
                self._check_ends(nodes, visits, node)
                found(self._leaves(nodes, (unique[part], physical), visits, node))
        return _Level.join(below)

    # Nodes ----------------------------------------------------------------------------------

    def _read(
        self, bytenr: Array, generation: npt.NDArray[np.uint64], depth: int
    ) -> tuple[Bytes, Array]:
        """The nodes at these addresses, each from the first copy that is good, and its place."""
        places = self.chunks.places(bytenr, self.btrfs.nodesize)
        outside = (places[:, 0] == NOWHERE) | (bytenr % self.btrfs.sectorsize != 0)
        if outside.any():
            raise self.btrfs.fault(f"a tree block at {int(bytenr[outside][0])} lies in no chunk")
        nodes = self._copy(places[:, 0])
        bad = self._check(nodes, bytenr, generation, depth)
        again = np.flatnonzero((bad != 0) & (places[:, 1] != NOWHERE))
        if len(again):
            nodes[again] = self._copy(places[again, 1])
            second = self._check(nodes[again], bytenr[again], generation[again], depth)
            self.btrfs.notes += [
                f"the first copy of tree block {int(bytenr[row])} {_REASONS[bad[row]]}"
                for row in again[second == 0][:_MOST_NOTES].tolist()
            ]
            bad[again] = second
            places[again, 0] = places[again, 1]
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise self.btrfs.fault(f"the tree block {int(bytenr[at])} {_REASONS[bad[at]]}")
        return nodes, places[:, 0]

    def _copy(self, place: Array) -> Bytes:
        sector, size = self.btrfs.sectorsize, self.btrfs.nodesize
        number = (place // sector)[:, None] + np.arange(size // sector)
        return self.btrfs.volume.blocks(number.reshape(-1), sector).reshape(-1, size)

    def _check(
        self, nodes: Bytes, bytenr: Array, generation: npt.NDArray[np.uint64], depth: int
    ) -> npt.NDArray[np.int64]:
        """What is wrong with each node, as a code into the reasons."""
        head = structure(nodes, on_disk.HEADER)
        entry = on_disk.KEY_PTR if depth else on_disk.ITEM
        room = (self.btrfs.nodesize - on_disk.HEADER_BYTES) // entry.itemsize
        fsid = np.frombuffer(self.btrfs.fsid, "V16")[0]
        count = head["nritems"].astype(np.int64)
        code = np.zeros(len(nodes), np.int64)

        def wrong(where: npt.NDArray[np.bool_], reason: int) -> None:
            code[where & (code == 0)] = reason

        wrong(~right(nodes, self.btrfs.csum_type), 1)
        wrong((head["fsid"] != fsid) | (head["bytenr"].astype(np.int64) != bytenr), 2)
        wrong(head["level"] != depth, 3)
        wrong(head["generation"] != generation, 4)
        wrong((count > room) | ((count == 0) & (depth > 0)), 5)
        used = np.arange(room) < np.minimum(count, room)[:, None]
        table: Any = entries(nodes, entry)
        here, slot = np.nonzero(used)
        if not len(here):
            return code
        keys = sortable(table["raw"][here, slot])
        follows = here[1:] == here[:-1]
        wrong(_any(here[1:][follows & (keys[1:] <= keys[:-1])], len(nodes)), 6)
        if depth == 0:
            start = table["offset"][here, slot].astype(np.int64)
            end = start + table["size"][here, slot].astype(np.int64)
            limit = np.full(len(here), self.btrfs.nodesize - on_disk.HEADER_BYTES)
            limit[1:][follows] = start[:-1][follows]
            bad = (end != limit) | (start < count[here] * entry.itemsize)
            wrong(_any(here[bad], len(nodes)), 7)
        return code

    def _check_visits(
        self, nodes: Bytes, visits: _Level, node: Array, own: npt.NDArray[np.uint64]
    ) -> None:
        """What each tree says of a node must be so, and its owner the tree, or any subvolume."""
        head = structure(nodes, on_disk.HEADER)[node]
        owner = own[visits.root]
        first = sortable(np.ascontiguousarray(nodes[:, 101:118]).view("V17")[:, 0])[node]
        bad = head["generation"] != visits.generation
        files = (head["owner"] >= on_disk.FIRST_FREE) & (head["owner"] <= on_disk.LAST_FREE)
        files |= head["owner"] == on_disk.FS_TREE
        bad |= np.where(owner == 0, ~files, head["owner"] != owner)
        bad |= (visits.first != LEAST) & ((first != visits.first) | (head["nritems"] == 0))
        if bad.any():
            at = int(visits.bytenr[bad][0])
            raise self.btrfs.fault(f"the tree block {at} is not what its parent says")

    def _check_ends(self, nodes: Bytes, visits: _Level, node: Array) -> None:
        count = structure(nodes, on_disk.HEADER)["nritems"].astype(np.int64)
        keys = entries(nodes, on_disk.ITEM)["raw"][np.arange(len(nodes)), np.maximum(count, 1) - 1]
        bad = (count[node] > 0) & (sortable(keys)[node] >= visits.end)
        if bad.any():
            at = int(visits.bytenr[bad][0])
            raise self.btrfs.fault(f"the tree block {at} holds keys that belong to the next")

    def _children(self, roots: list[Root], nodes: Bytes, visits: _Level, node: Array) -> _Level:
        table: Any = entries(nodes, on_disk.KEY_PTR)
        count = structure(nodes, on_disk.HEADER)["nritems"].astype(np.int64)
        here, slot = np.nonzero(np.arange(table.shape[1]) < count[:, None])
        keys = sortable(table["raw"][here, slot])
        start = np.cumsum(count) - count
        many = count[node]
        visit = np.repeat(np.arange(len(node)), many)
        at = np.arange(len(visit)) - np.repeat(np.cumsum(many) - many, many)
        last = at == many[visit] - 1
        child = start[node][visit] + at
        end = np.where(last, visits.end[visit], keys[np.minimum(child + 1, len(keys) - 1)])
        if (keys[child] >= end).any():
            raise self.btrfs.fault("a tree block holds keys that belong to the next")
        found = _Level(
            visits.root[visit],
            table["blockptr"][here, slot][child].astype(np.int64),
            table["generation"][here, slot][child].astype(np.uint64),
            keys[child],
            end,
        )
        dropped = np.array([root.dropped for root in roots], "S17")
        return found[found.end > dropped[found.root]]

    def _leaves(
        self, nodes: Bytes, place: tuple[Array, Array], visits: _Level, node: Array
    ) -> Leaves:
        table: Any = entries(nodes, on_disk.ITEM)
        count = structure(nodes, on_disk.HEADER)["nritems"].astype(np.int64)
        here, slot = np.nonzero(np.arange(table.shape[1]) < count[:, None])
        items = table[here, slot]
        base = here * self.btrfs.nodesize + on_disk.HEADER_BYTES
        return Leaves(
            flat=nodes.reshape(-1),
            bytenr=place[0],
            physical=place[1],
            nodesize=self.btrfs.nodesize,
            leaf=here,
            objectid=items["objectid"],
            type=items["type"],
            offset=items["key_offset"],
            place=base + items["offset"].astype(np.int64),
            size=items["size"].astype(np.int64),
            visit_tree=visits.root,
            visit_leaf=node,
        )


def entries(nodes: Bytes, kind: np.dtype[Any]) -> Any:
    """The room for entries behind the header of each node, as structures."""
    room = (nodes.shape[1] - on_disk.HEADER_BYTES) // kind.itemsize
    part = nodes[:, on_disk.HEADER_BYTES : on_disk.HEADER_BYTES + room * kind.itemsize]
    return np.ascontiguousarray(part).view(kind)


def sortable(raw: npt.NDArray[Any]) -> Keys:
    """Keys as bytes that sort as btrfs sorts keys."""
    if not len(raw):
        return np.empty(0, "S17")
    rows = np.ascontiguousarray(raw).view(np.uint8).reshape(-1, on_disk.KEY_BYTES)
    return np.ascontiguousarray(rows[:, _ORDER]).view("S17")[:, 0]


def _any(rows: Array, count: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(count, np.bool_)
    mask[rows] = True
    return mask
