"""The disk layer: from a driver that moves sectors to devices named vn0s1a.

===================  ======================================================================
module               what is in it
===================  ======================================================================
``bio``              requests: `Bio`, `Buf`, completion, tracking
``bioq``             the order in which a driver takes them
``devstat``          what each device did
``table``            slices found on a disk; what the codecs of slice tables share
``mbr``, ``gpt``     slice tables: parse and emit
``label``            what the two disk labels share
``disklabel32/64``   the labels: parse, check, emit
``slices``           `Diskslice`, minors, the check of every transfer against its slice
``layer``            `DiskLayer`: disk_create, probing, names
``diskdev``          `Disk`, and what its devices do: open, close, strategy
``jobs``             several transfers in a row, waiting or not
``device``           `StrategyOps`, and how a bio gets to a device
``ioctl``            DIOCGPART and its relatives
``physio``           reading and writing a disk device as a file
``hwdisk``           the driver ``vkd``: a disk of `dfuser.hw.disk` behind the disk layer
``md``               the memory disk
``ddbshow``          what the debugger shows
===================  ======================================================================

``table``, ``mbr``, ``gpt``, ``label`` and the labels are sans-IO: they turn bytes into values and
back and ask their caller for sectors.

Counterpart: kern/subr_disk*.c, kern/subr_devstat.c, sys/bio.h, dev/disk/md.
"""
