"""TMPFS: a file system whose files live in the kernel's memory and end with the mount.

Reading order::

    node.py       what a file is: attributes, times, and one class for each kind
    dir.py        what a directory holds: names, and cookies that outlive changes
    mount.py      limits and accounting of a mount, its table of files
    vfsops.py     options; mounting, unmounting and the rest of the VFS operations
    vnops.py      the operation vector, put together from the six below
    vnops_attr.py   attributes, access, times, flags
    vnops_file.py   reading, writing, locks, events, the end of a file
    vnops_range.py  reserving, holes, copying
    vnops_name.py   looking up, listing, creating, linking, removing
    vnops_rename.py moving, replacing and exchanging names
    vnops_xattr.py  extended attributes and access control lists

Counterpart: sys/vfs/tmpfs.
"""
