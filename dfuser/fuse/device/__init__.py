"""device: the transport that speaks the FUSE protocol itself, on the mounted descriptors.

pyfuse3 mounts the root and unmounts it, fusermount3 the mounts inside; the requests of all of them
are read, served and answered here. ``connection`` is one mount of the host, ``handlers`` its
opcodes, ``loop`` reads and answers, ``idle`` keeps trio out of the way while nothing else runs,
``fusermount`` attaches further mounts. The bytes are `dfuser.fuse.wire`'s business, the operations
`dfuser.fuse.ops`'.
"""
