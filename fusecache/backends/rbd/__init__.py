"""The rbd backend: every image of a Ceph pool, or of one namespace of it, is an image under its own name.

The only package that imports Ceph's bindings; :func:`fusecache.backends.rbd.backend.open_backend` opens it. It must not
know layers, files or FUSE.
"""
