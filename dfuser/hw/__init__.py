"""The door to the host: everything the kernel consumes from outside comes through here.

Counterpart: platform/ and cpu/x86_64 of DragonFly (a port to the machine "one Linux
process"). Each resource has a real side and a fake twin with the same interface, so that
a whole kernel boots in a test on virtual time, given CPUs and seeded entropy.
"""
