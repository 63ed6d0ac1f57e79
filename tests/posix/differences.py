"""The differences between the mount and the host's tmpfs that are allowed, each with its reason.

A difference that is not here fails the tests, and one that is here but does not show any more
fails them, too. So this file is, at any time, the whole truth about what the mount cannot do, or
does otherwise on purpose. It has three parts: what holds on every transport (mostly what the host
kernel decides before it asks any FUSE server), what only pyfuse3 cannot carry, and what only shows
on our own transport, because there DragonFly's rules are in force and not the host's.

An entry is a case (`subject.name`, all of its rows) or some of its rows (`subject.name[a|b]`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.posix.case import all_cases
from tests.posix.transports import DEVICE, STOCK

Reasons = dict[str, tuple[str, ...]]

_EVERYWHERE: Reasons = {
    "the host kernel lets epoll take any file of a FUSE mount, for a server may have events": (
        "readiness.epoll_refuses_files",
    ),
    "the host kernel keeps no file flags of FUSE files: statx has no attributes to tell": (
        "fileflags.told_by_statx",
    ),
    "the host kernel keeps no file flags of FUSE files: F_SETFL is not checked against them": (
        "fileflags.append_only_descriptor_stays_so",
    ),
    "DragonFly has no such file flag": ("fileflags.carried[noatime]",),
    "DragonFly's tmpfs asks whether a directory is empty before it looks at its flags": (
        "fileflags.immutable_directory_stays[full]",
    ),
}

_SPARSE = (
    "all-hole|hole-first|hole-last|hole-in-the-middle|data-in-the-middle|one-by-one"
    "|holes-at-both-ends|long-hole"
)

_PYFUSE3: Reasons = {
    "pyfuse3 has no fallocate handler: the kernel is told EOPNOTSUPP; posix_fallocate(3) works": (
        "data.fallocate",
        "allocating.allocate",
        "allocating.allocate_in_holes",
        "allocating.allocate_keeping_the_size",
        "allocating.allocate_twice",
        "allocating.appending_descriptor",
        "allocating.punch",
        "allocating.punch_all_and_refill",
        "allocating.punch_under_a_mapping",
        "allocating.punching_beside_a_writer",
        "allocating.set_user_id_is_cleared",
        "allocating.size_limit",
        "allocating.space_is_taken_and_given_back",
        "allocating.times_and_bits",
        "allocating.too_much",
        "allocating.unlinked",
        "copying.holes_are_not_shared",
        f"seeking.punched[{_SPARSE}]",
        "seeking.refilled",
    ),
    "pyfuse3 has no tmpfile handler: O_TMPFILE is EOPNOTSUPP": (
        "opening.tmpfile_has_no_name",
        "opening.tmpfile_can_be_linked",
        "opening.tmpfile_exclusive_cannot_be_linked",
        "tmpfiles.access_modes",
        "tmpfiles.birth",
        "tmpfiles.default_list",
        "tmpfiles.everything_works_on_it",
        "tmpfiles.exclusive_gets_none",
        "tmpfiles.five_hundred",
        "tmpfiles.gets_a_name",
        "tmpfiles.gets_a_name_by_descriptor",
        "tmpfiles.gets_several_names",
        "tmpfiles.is_a_file",
        "tmpfiles.name_is_taken",
        "tmpfiles.needs_permission",
        "tmpfiles.nobody_sees_it",
        "tmpfiles.opened_again",
        "tmpfiles.owner_is_the_caller",
        "tmpfiles.replaces_by_rename",
        "tmpfiles.space_is_given_back",
        "tmpfiles.space_is_given_back_at_death",
        "tmpfiles.two_are_two",
        "tmpfiles.umask",
    ),
    "pyfuse3 has no lseek handler: the kernel treats the whole file as data, as POSIX allows": (
        "data.seek_hole_and_data",
        f"seeking.written[{_SPARSE}]",
        f"seeking.pages[{_SPARSE}]",
        f"seeking.each_offset[{_SPARSE}]",
        "seeking.copied_sparsely",
        "seeking.far_data",
        "seeking.odd_hole_at_the_end",
        "seeking.offset_moves",
        "seeking.reading_makes_no_data",
        "seeking.truncation_cuts_and_grows",
        "seeking.unlinked",
        "seeking.zeroes_are_data",
    ),
    "pyfuse3 has no statx handler: GETATTR carries no birth time": (
        "times.birth_time",
        "statx.any_mask[birth|all]",
        "statx.birth",
        "statx.birth_of_a_copy",
        "statx.birth_of_the_directory",
        "statx.birth_stays",
    ),
    "pyfuse3 has no ioctl handler: file flags cannot be read or set through the mount": (
        "system.flags_by_ioctl",
        "fileflags.append_only_directory",
        "fileflags.append_only_forbids",
        "fileflags.carried[nodump|immutable|append|several]",
        "fileflags.held_open_before",
        "fileflags.immutable_directory",
        "fileflags.immutable_directory_stays[empty]",
        "fileflags.immutable_forbids",
        "fileflags.on_directories",
        "fileflags.owner_cannot_lift",
        "fileflags.through_every_name",
        "fileflags.told_as_xflags",
        "fileflags.touching_now",
        "fileflags.unknown_flags",
        "fileflags.who_may",
    ),
    "pyfuse3 cannot ask the kernel for FUSE_DONT_MASK: the umask is taken from the mode before the "
    "server sees it, so a default list is cut by the umask, which it should not be": (
        "acls.default_is_inherited_by_files",
        "acls.default_is_inherited_by_directories",
    ),
}

_DEVICE: Reasons = {
    "DragonFly keeps flock and fcntl locks of a file in one list: they do conflict": (
        "flocks.no_business_of_record_locks",
        "flocks.both_kinds_in_one_process",
    ),
    "DragonFly looks for deadlocks on one file only: over two files both wait until a signal": (
        "lock_waits.deadlock_over_two_files",
    ),
    "DragonFly calls it a deadlock when the owner in the way waits on the same file himself": (
        "lock_waits.chain_is_no_deadlock",
    ),
    "FUSE does not tell an OFD lock from a process's: a ring of them is a deadlock": (
        "lock_waits.descriptions_never_deadlock",
    ),
    "FUSE does not tell an OFD lock from a process's: who took it is told as its owner": (
        "record_locks.descriptions_have_no_process",
    ),
    "the host kernel tells F_OFD_GETLK no process when a FUSE server answers": (
        "record_locks.process_is_told_to_descriptions",
    ),
}

_ONLY = {STOCK: _PYFUSE3, DEVICE: _DEVICE}


def differences(transport: str) -> dict[str, str]:
    """Title and reason of each case that is allowed to fail on this transport."""
    titles = [case.title for case in all_cases()]
    return dict(_expand({**_EVERYWHERE, **_ONLY[transport]}, titles))


def entries() -> Iterator[str]:
    """Every entry as it is written here."""
    for reasons in (_EVERYWHERE, *_ONLY.values()):
        for names in reasons.values():
            yield from names


def titles_of(entry: str, titles: Iterable[str]) -> list[str]:
    """The titles among `titles` that an entry means."""
    name, bracket, rows = entry.rstrip("]").partition("[")
    wanted = {f"{name}[{row}]" for row in rows.split("|")} if bracket else None
    return [
        title
        for title in titles
        if (title in wanted if wanted is not None else title.partition("[")[0] == name)
    ]


def _expand(reasons: Reasons, titles: list[str]) -> Iterator[tuple[str, str]]:
    for reason, names in reasons.items():
        for entry in names:
            for title in titles_of(entry, titles):
                yield title, reason
