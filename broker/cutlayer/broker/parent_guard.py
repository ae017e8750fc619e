"""Runs a program so that it ends with its parent: `python parent_guard.py PARENT_PID USER PROGRAM [ARGUMENT ...]`.

A script of its own rather than `preexec_fn`, which is not safe in a parent with threads. It imports the standard
library only, gives root's rights up (USER is `-` to keep them), asks the kernel for SIGTERM when the parent ends,
and becomes the program.

Linux only; elsewhere the program outlives a parent that is killed. Linux counts the *thread* that started the
program as the parent, so start brokers from one that lives as long as they shall.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become the program.

    Args:
        arguments: The parent's process id, the user to become or `-`, the program's path and its arguments.

    Raises:
        SystemExit: When the parent is gone already.
    """
    parent, user, *program = arguments
    if user != "-":
        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    if sys.platform == "linux":
        # After setuid: a change of user clears it. It survives execv.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before the kernel was asked to tell
        sys.exit(f"parent {parent} is gone")
    os.execv(program[0], program)  # noqa: S606 - no shell on purpose


if __name__ == "__main__":
    main(sys.argv[1:])
