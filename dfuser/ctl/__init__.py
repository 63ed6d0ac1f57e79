"""ctl: the control socket, through which host programs send messages to kernel ports.

Counterpart: none in the kernel; lwkt(7)'s idea that a system call is a message.
"""
