"""inet: the protocols of IPv4 and above. Counterpart: sys/netinet."""
