"""ddb: the kernel debugger, a reader of live structures.

Counterpart: sys/ddb.
"""
