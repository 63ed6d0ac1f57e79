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

The upper half changes a volume. It is synchronous and never waits; what it needs of the outside
are devices with `read_at`, `write_at`, `flush`, and a clock::

    newfs      a new volume                              sbin/newfs_hammer2
    xops       operations on names and attributes        hammer2_xops.c, hammer2_vnops.c
    dirent     names in directories                      hammer2_inode.c
    strategy   file data                                 hammer2_strategy.c
    dedup      equal blocks, found again
    inode      inodes in memory                          hammer2_inode.c
    pfs        a file system of the volume               struct hammer2_pfs
    snapshot   PFSs made, copied, deleted                hammer2_ioctl.c
    dev        the volume: all of this put together      struct hammer2_dev
    chain      a block in memory; copy-on-write          struct hammer2_chain
    chains     the trees they make                       hammer2_chain.c
    freemap    the allocator                             hammer2_freemap.c
    bulkfree   what nobody uses any more becomes free    hammer2_bulkfree.c
    flush      a transaction becomes a durable header    hammer2_flush.c
    io         write-behind and barriers                 hammer2_io.c
    tunables   limits                                    sysctl vfs.hammer2

A change is held by memory until a sync. A sync is the whole volume's: what was acknowledged is
there after a power cut, and of what was not either everything up to a sync or nothing.

Counterpart: sys/vfs/hammer2.
"""
