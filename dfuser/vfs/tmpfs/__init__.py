"""TMPFS: a file system whose files live in the kernel's memory and end with the mount.

Reading order::

    node.py       what a file is: attributes, times, and one class for each kind
    dir.py        what a directory holds: names, and cookies that outlive changes
    mount.py      limits and accounting of a mount, its table of files
    vfsops.py     options; mounting, unmounting and the rest of the VFS operations
    vnops.py      the operation vector, put together from the four below
    vnops_attr.py   attributes, access, times, flags
    vnops_file.py   reading, writing, size, holes, locks, events
    vnops_name.py   everything that changes or walks a directory
    vnops_xattr.py  extended attributes and access control lists

Counterpart: sys/vfs/tmpfs.
"""
