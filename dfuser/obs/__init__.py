"""obs: the kernel seen from outside: metrics and traces, computed from live structures.

Counterpart: vmstat(8), systat(1), ktrdump(8).
"""
