"""dev: device drivers and what is between a driver and a file.

Counterpart: sys/dev, kern/kern_conf.c, kern/subr_disk*.c.
"""
