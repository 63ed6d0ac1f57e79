"""stock: the transport that leaves the serving of requests to pyfuse3.

The reference. It serves what pyfuse3 can carry, one mount a process; docs/bridge.md lists what it
cannot. The operations themselves (`dfuser.fuse.ops`) are the same as on the device.
"""
