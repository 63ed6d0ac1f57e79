"""The memory management unit of x86-64 as a sans-IO core: page tables in, translations out.

Start with ``unit.py``, the MMU of one CPU; ``walk.py`` reads the page tables, ``tlb.py`` keeps
what was read, ``fault.py`` holds the one rule both decide by. Page tables are the architecture's
own 64-bit entries in physical memory (``pte.py``), so an emulator or a hypervisor that maps the
same memory sees the same mappings.

Counterpart: none; it is the part of the processor that cpu/x86_64 and pmap.c program.
"""
