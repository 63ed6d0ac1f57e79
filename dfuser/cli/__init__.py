"""cli: the command line, one file a verb.

A verb that talks to a running kernel sends messages through `dfuser.client` and imports nothing of
the kernel; a verb that runs one uses `server`. Data goes to stdout, everything else to stderr.
"""
