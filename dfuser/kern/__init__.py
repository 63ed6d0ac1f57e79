"""kern: processes and what they own.

Credentials of running programs, process and LWP records, and the system calls' upper
half. Knows the VFS and the network, and is not known by them.

Counterpart: kern/kern_proc.c, kern/kern_prot.c, kern/kern_fork.c and their relatives.
"""
