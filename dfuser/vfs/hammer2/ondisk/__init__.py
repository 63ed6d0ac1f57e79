"""ondisk: every structure of the HAMMER2 media as a record over bytes.

::

    const      numbers, types, flags, methods
    volhdr     the volume header and its CRCs
    blockref   the reference that everything hangs together by; directory entries
    inode      attributes, and 512 bytes of data or blockrefs
    bmap       entries of a freemap leaf
    geometry   where headers, reserved segments and freemap blocks lie
    keys       hashes of names, sizes of blocks
    indkey     which range a new indirect block takes over

Nothing here reads a device. What the bytes may be is decided elsewhere: records take whatever
numbers the bytes say, and only a buffer of the wrong length raises.

Counterpart: vfs/hammer2/hammer2_disk.h.
"""
