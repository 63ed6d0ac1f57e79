"""kernfs: live views of the kernel as text files, mounted on ``/kern``."""
