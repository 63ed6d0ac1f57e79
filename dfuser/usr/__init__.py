"""usr: programs that run inside the kernel's world. They see system calls and sysctl only.

Counterpart: DragonFly's bin, sbin and usr.sbin.
"""
