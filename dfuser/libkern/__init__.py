"""libkern: the words all rooms share. Nothing in here waits or talks to the host.

What a C kernel keeps in its headers and its small library lives here: error numbers and
`KError`, limits, modes and open flags, credentials, and the ways in which a class says
something about itself to the rest of the kernel: a tunable (`sysctl`), a trace point
(`ktr`), a boot step (`sysinit`), a debugger command (`ddbcmd`). The declarations are
immutable; what they make is owned by one booted kernel, so that many can live in one
process.

Counterpart: sys/sys, sys/libkern and the lowest files of sys/kern.
"""
