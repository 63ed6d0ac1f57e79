"""lwkt: light weight kernel threads and everything they wait with.

Threads are pinned to logical CPUs, each CPU elects the next one itself, and threads
talk through message ports. Tokens, locks, sleeping, timers and IPI queues live here
too, since each of them is a rule about when a thread may run.

Counterpart: kern/lwkt_*.c, kern/kern_synch.c, kern/kern_timeout.c and their relatives.
"""
