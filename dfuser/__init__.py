"""dfuser: DragonFly BSD's kernel as one ordinary Linux process that can be mounted.

A map of the house. A package may use the packages on lower floors only; ``|`` marks
neighbours that do not know each other::

    cli                       the command line, one file a verb
    soak                      load, faults and long runs
    fuse | ctl | ddb | obs    the FUSE bridge, control socket, debugger, metrics
    boot                      Kernel: configuration, start, stop, panic; owns everything
    usr                       programs inside the kernel's world
    kern                      processes, credentials, descriptors, system calls
    net | vfs                 network stack; vnodes, namecache, mounts, file systems
    dev                       devices and disks
    vm                        pages and objects
    lwkt                      threads, ports, messages, tokens, locks, sleeping, timers
    hw                        the door to the host: CPUs, clock, memory, entropy
    libkern                   errno, constants, credentials, sysctl, KTR, the kernel log

``client`` talks to a running dfuser from any host program and needs nothing but the
standard library. Importing ``dfuser`` alone loads none of the above.
"""

from __future__ import annotations

__version__ = "0.1.0"
