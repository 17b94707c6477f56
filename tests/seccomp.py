"""The system call filters of a systemd unit without systemd: what its service is refused is refused to a thread.

Filters belong to a thread and are inherited by the processes it starts, so the other tests go on without them. Built
here are SystemCallFilter=, MemoryDenyWriteExecute= and RestrictAddressFamilies=, as systemd.exec(5) describes them.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

_ALLOW: Final = 0x7FFF0000
_REFUSE: Final = 0x00050000  # with the error number in the lower half
_EQUAL: Final = 4
_MASKED_EQUAL: Final = 7
_SHM_EXEC: Final = 0o100000
_FAMILIES: Final = 46  # AF_MAX of Linux 6
_WRITE_EXECUTE: Final = mmap.PROT_WRITE | mmap.PROT_EXEC

Result = TypeVar("Result")


class _Comparison(ctypes.Structure):
    _fields_ = (("argument", ctypes.c_uint), ("operator", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


# A system call, and what its arguments have to be for the rule to hold.
_Rule = tuple[str, Sequence[_Comparison]]


def confined(unit: Mapping[str, Sequence[str]], call: Callable[[], Result]) -> Result:
    """What `call` returns in a thread of its own under the filters of a unit (directive -> its values in order).

    Raises OSError if the kernel does not take a filter, and whatever `call` raises.
    """
    allowed = [(name, ()) for name in sorted(allowed_calls(unit["SystemCallFilter"]))]
    families = {getattr(socket, name) for value in unit["RestrictAddressFamilies"] for name in value.split()}
    refused = [("socket", (_Comparison(0, _EQUAL, family, 0),)) for family in set(range(_FAMILIES)) - families]

    def run() -> Result:
        if unit.get("MemoryDenyWriteExecute") == ["yes"]:
            _load(_ALLOW, _REFUSE | errno.EPERM, _new_code())
        _load(_ALLOW, _REFUSE | errno.EAFNOSUPPORT, refused)
        _load(_REFUSE | errno.EPERM, _ALLOW, allowed)
        return call()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(run).result()


def allowed_calls(filters: Iterable[str]) -> set[str]:
    """The system calls that the values of SystemCallFilter= leave, the first of which is a list of allowed ones."""
    allowed = _members("@default")
    for value in filters:
        names = {name for word in value.lstrip("~").split() for name in _members(word)}
        allowed = allowed - names if value.startswith("~") else allowed | names
    return allowed


def _members(name: str) -> set[str]:
    """A system call, or all of a group of systemd's, those of its groups included."""
    if not name.startswith("@"):
        return {name}
    listed = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    lines = (line.strip() for line in listed.stdout.splitlines()[1:])
    return {call for line in lines if line and not line.startswith("#") for call in _members(line)}


def _new_code() -> list[_Rule]:
    """What MemoryDenyWriteExecute= refuses: memory to write and run, and memory that becomes code later on."""
    executable = (_Comparison(2, _MASKED_EQUAL, mmap.PROT_EXEC, mmap.PROT_EXEC),)
    return [
        ("mmap", (_Comparison(2, _MASKED_EQUAL, _WRITE_EXECUTE, _WRITE_EXECUTE),)),
        ("mprotect", executable),
        ("pkey_mprotect", executable),
        ("shmat", (_Comparison(2, _MASKED_EQUAL, _SHM_EXEC, _SHM_EXEC),)),
    ]


def _load(otherwise: int, action: int, rules: Iterable[_Rule]) -> None:
    """Adds a filter to this thread, for good."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(otherwise))
    for name, comparisons in rules:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            continue  # of another processor
        arguments = (_Comparison * len(comparisons))(*comparisons)
        _check(library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(comparisons), arguments))
    _check(library.seccomp_load(context))
    library.seccomp_release(context)


def _check(result: int) -> None:
    if result:
        raise OSError(-result, os.strerror(-result))
