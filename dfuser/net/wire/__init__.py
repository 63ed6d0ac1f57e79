"""wire: packets as bytes and as values, and nothing else.

Each protocol has two levels:

* a **view** (`TcpView`) lies over a buffer. Its constructor checks every length once; from then
  on each field has a known offset inside the buffer. It copies nothing.
* a **value** (`TcpRepr`) is small, immutable and legal. ``parse`` makes it from a view, ``emit``
  writes it; a value that no packet can carry is refused when it is emitted.

The rules, which the tests hold for every protocol:

1. Reading any bytes gives a value or raises `WireError`; never another exception.
2. ``parse(emit(value)) == value`` for every legal value.
3. ``emit(parse(packet)) == packet`` for every canonical packet: reserved bits zero, padding zero
   and no longer than needed, the right checksum.
4. What is unknown is kept if the protocol says "ignore", and refused if it says "discard".
5. `WireError.why` has the name of the counter that DragonFly increments in that case.
6. No state, no clock, no input or output. Addresses are bytes, as on the wire.

Files::

    base        WireError, Why, View          addr       addresses as text
    ethernet    Ethernet II, 802.1Q           arp        ARP
    ipv4        IPv4  + ip_options            ipv6       IPv6  + ip6_ext
    icmp        ICMP                          icmp6      ICMPv6: errors, echo, parse
    udp         UDP                           nd6        neighbor discovery + nd6_options
    tcp         TCP   + tcp_options           mld6       MLD, versions 1 and 2
    vnet        virtio-net header of a TAP    pcap       pcap files; pcapng: the other kind
    protocols   IPPROTO_*                     icmp6_message  what ICMPv6 messages share

Counterpart: the headers of sys/net, sys/netinet and sys/netinet6, and the length checks at the
head of each protocol's input function.
"""
