"""cli: the dfuser command, one file a verb. The only package that prints.

Counterpart: the tools of sbin and usr.sbin.
"""
