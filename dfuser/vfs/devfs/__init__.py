"""devfs: the devices of the kernel as files, mounted on ``/dev``."""
