"""net: the network stack.

Counterpart: sys/net, sys/netinet, sys/netinet6, kern/uipc_*.c.
"""
