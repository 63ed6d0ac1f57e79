"""net: the network stack.

::

    cksum     the internet checksum
    wire/     packets as bytes and as values: two levels for each protocol
    inet/     IPv4 and above; ip_frag puts fragments together

What is here is sans-IO: it reads no clock and no device, and waits for nothing.

Counterpart: sys/net, sys/netinet, sys/netinet6, kern/uipc_*.c.
"""
