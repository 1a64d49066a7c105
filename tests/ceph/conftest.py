"""Clusters for the tests of this folder.

The shared one lasts for the session, one for each conftest that names it: tests with Ceph belong below this folder.
"""

from tests.support.ceph import ceph_cluster, image_name, private_cluster

__all__ = ["ceph_cluster", "image_name", "private_cluster"]
