"""soak: long runs under load, with faults, that end with the invariants checked.

Counterpart: test/stress in DragonFly's tree.
"""
