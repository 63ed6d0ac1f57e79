"""What POSIX and Linux promise of a file system, as small cases that run on any directory.

`python -m tests.posix DIR` runs every case in DIR and prints one line a subject. The pytest front
(`test_posix.py`) runs the same cases on the host's tmpfs and on a mounted dfuser, and allows only
the differences that `differences.py` lists with their reasons.
"""
