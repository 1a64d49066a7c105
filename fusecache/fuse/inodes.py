"""Which node a kernel inode number stands for.

Owns the table from nodeids to nodes and their lookup counts. Pure.

A node's nodeid is its ``inode``, which derives from what it is and is the same after a restart. A file with
``fresh_lookups`` gets another nodeid at every lookup: a counter in the lowest 16 bits.
"""

from collections.abc import Iterable

from fusecache.api.errors import ImageGone
from fusecache.images.node import DirectoryNode, FileNode, Node

_COUNTER_MASK = 0xFFFF


class NodeTable:
    """Nodes the kernel knows. The root is always known."""

    def __init__(self, root: DirectoryNode) -> None:
        self._nodes: dict[int, Node] = {root.inode: root}
        self._counts: dict[int, int] = {}
        self._root = root.inode
        self._counter = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, nodeid: int) -> Node:
        try:
            return self._nodes[nodeid]
        except KeyError:
            raise ImageGone(f"inode {nodeid:#x} is not known any more") from None

    def looked_up(self, node: Node) -> int:
        """Count one lookup of *node* and return its nodeid for this lookup."""
        nodeid = node.inode
        if isinstance(node, FileNode) and node.fresh_lookups:
            self._counter = (self._counter + 1) & _COUNTER_MASK
            nodeid |= self._counter
        # The newest node is the true one: it has the present name.
        self._nodes[nodeid] = node
        self._counts[nodeid] = self._counts.get(nodeid, 0) + 1
        return nodeid

    def refresh(self, node: Node) -> None:
        """Put *node* in the place of an older one of the same inode, if the kernel knows that."""
        if node.inode in self._nodes:
            self._nodes[node.inode] = node

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        """Take lookups back; a node without any is dropped."""
        for nodeid, lookups in forgotten:
            left = self._counts.get(nodeid, 0) - lookups
            if left > 0:
                self._counts[nodeid] = left
            elif nodeid != self._root:
                self._counts.pop(nodeid, None)
                self._nodes.pop(nodeid, None)
