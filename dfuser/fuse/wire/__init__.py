"""wire: the FUSE protocol as bytes, without a device, a clock or a kernel.

Everything between ``/dev/fuse`` and a file system that is only a matter of bytes: requests are
parsed into records, answers become bytes or short lists of buffers for ``writev``, messages to the
kernel are built, and INIT is negotiated from one table. Both directions exist for everything, so
that one end tests the other. Nothing here reads, writes or waits.

::

    read(device) -> bytearray, n
        header = parse_header(buffer, n)              request.py
        body = parsers[header.opcode](buffer, end)    request.py   inputs.py   ext.py
            the file system works
        reply = emit_entry(unique, packed) ...        reply.py     outputs.py  attr.py  dirent.py
    writev(device, reply)
        emit_inval_inode(...) ...                     notify.py
    once, at the start of a connection
        negotiate(init, wishes)                       init.py      flags.py

Two rules hold everywhere. Parsing raises `layout.WireError` and nothing else, whatever the bytes
are. Emitting trusts its caller: a number that does not fit its member is a bug and raises
``struct.error``.

``const`` has the numbers, ``layout`` says how a structure becomes a record, ``operations`` is the
table of all opcodes with what dfuser answers; docs/fuse-protocol.md shows the same table.
`show` and ``words`` say in a line what a message says, for `dfuser trace`.

Counterpart: include/uapi/linux/fuse.h of Linux, protocol 7.45; the oldest version served is 7.12.
"""
