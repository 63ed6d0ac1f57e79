"""Virtual memory: the frames of physical memory and the objects that own them.

Counterpart: sys/vm of DragonFly.
"""
