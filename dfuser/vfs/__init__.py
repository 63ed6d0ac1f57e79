"""vfs: files, names and mounts.

Vnodes and their operations, the namecache, the walk along a path, mounts, and one
folder a file system. The cores are plain functions: they answer, raise `KError`, or say
that they must wait before they have changed anything.

Counterpart: kern/vfs_*.c and sys/vfs.
"""
