"""fuse: the bridge between Linux's VFS and ours, through pyfuse3.

The only package that imports pyfuse3. A request borrows a kernel context, runs the
synchronous core, and its answer goes back in Linux's numbers.

Counterpart: none; DragonFly's own sys/vfs/fuse is the other side of such a bridge.
"""
