"""sysctlfs: the sysctl tree as directories and files, mounted on ``/sysctl``."""
