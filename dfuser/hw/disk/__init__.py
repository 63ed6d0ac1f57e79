"""Disks: what the kernel stores on, behind one interface.

=============  ===========================================================================
module         what is in it
=============  ===========================================================================
``disk``       the interface: `Disk`, requests, counters, and what all disks share
``executor``   work that leaves the kernel's thread and comes back as an interrupt
``image``      a file of the host as a disk; ``lock`` keeps a second writer away from it
``ram``        a disk in memory, with cheap copies
``nbd``        a network block device; ``nbdwire`` its protocol, ``nbdsession`` its memory
``fault``      the middleware that breaks any disk in a planned way
``record``     the log of all writes, and every state a power cut could leave behind
``spec``       opening a disk by a text such as ``file:/srv/root.img?ro``
=============  ===========================================================================

Counterpart: dev/virtual/vkernel/disk (vkd) of DragonFly, and the controllers below.
"""
