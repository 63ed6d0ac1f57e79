"""NULLFS: a directory that is already in the tree, shown at a second place.

Counterpart: sys/vfs/nullfs.
"""
