"""hammer2: DragonFly's file system on disk.

The lower half knows bytes only; nothing in it waits or opens a file::

    ondisk     every structure of the media as a record          hammer2_disk.h
    check      check codes                                       hammer2_chain.c
    compress   LZ4, zlib, zeroes                                 hammer2_strategy.c
    volume     header copies and devices make a volume           hammer2_vfsops.c
    tree       blocks, verified; trees of blockrefs, in order    hammer2_chain.c
    reader     PFSs, names, inodes, data of a volume at rest
    errors     what can be wrong, in one sentence each

The reader serves the tools that look at an image without mounting it, and is what tests compare
a mounted file system with.

Counterpart: sys/vfs/hammer2.
"""
