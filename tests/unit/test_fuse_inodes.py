"""Nodes stay known as long as the kernel has looked them up more often than it forgot them."""

import pytest

from fusecache.api.errors import ImageGone
from fusecache.fuse.inodes import NodeTable
from tests.support.nodes import Folder, ScriptedNode


def test_a_node_is_known_from_its_lookup_until_it_is_forgotten() -> None:
    table = NodeTable(Folder())
    node = ScriptedNode(77)
    with pytest.raises(ImageGone, match="inode 0x4d is not known"):
        table[77]
    assert [table.looked_up(node) for _ in range(3)] == [77] * 3
    table.forget([(77, 2)])
    assert table[77] is node
    table.forget([(77, 1)])
    with pytest.raises(ImageGone):
        table[77]
    assert len(table) == 1


def test_the_root_is_never_forgotten() -> None:
    root = Folder()
    table = NodeTable(root)
    table.looked_up(root)
    table.forget([(1, 1), (1, 100)])
    assert table[1] is root


def test_forgetting_what_is_not_known_is_harmless() -> None:
    table = NodeTable(Folder())
    table.forget([(5, 1), (6, 0)])
    assert len(table) == 1


def test_the_newest_node_of_an_inode_stands_for_it() -> None:
    table = NodeTable(Folder())
    old, new, newest = ScriptedNode(77), ScriptedNode(77), ScriptedNode(77)
    table.looked_up(old)
    table.looked_up(new)
    assert table[77] is new
    table.refresh(newest)
    assert table[77] is newest
    table.forget([(77, 2)])
    table.refresh(newest)
    assert len(table) == 1


def test_a_file_with_fresh_lookups_gets_another_nodeid_each_time() -> None:
    table = NodeTable(Folder())
    node = ScriptedNode(5 << 16, fresh=True)
    found = [table.looked_up(node) for _ in range(1000)]
    assert len(set(found)) == 1000
    assert all(nodeid >> 16 == 5 and nodeid & 0xFFFF for nodeid in found)
    table.forget([(nodeid, 1) for nodeid in found[1:]])
    assert table[found[0]] is node
    assert len(table) == 2


def test_fresh_nodeids_start_over_and_stay_counted() -> None:
    table = NodeTable(Folder())
    node = ScriptedNode(5 << 16, fresh=True)
    found = [table.looked_up(node) for _ in range(65537)]
    assert found[0] == found[-1]
    table.forget([(found[0], 1)])
    assert table[found[0]] is node
