"""procfs: the processes of the kernel as directories, mounted on ``/proc``.

The engine is here; what the files say comes from the room that has processes.
"""
