"""boot: puts a kernel together, starts it, stops it, and buries it when it panics.

The only place that knows all rooms: it makes every object, hands lower rooms what they
need from higher ones, and registers what they declare.

Counterpart: kern/init_main.c, platform/vkernel64.
"""
