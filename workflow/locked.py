"""Run a command as the only one on a build folder: python locked.py BUILD COMMAND…

The lock belongs to the process and vanishes with it, however it ends: nothing must be cleaned up.
The command replaces this process, so that its id is the one to stop.
"""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path


def cancel_orphans(prefix: str) -> None:
    """Cancel Slurm jobs that a killed run on this build folder left. We hold its lock."""
    listed = ["squeue", "--me", "--noheader", "--format=%A %j"]
    jobs = [line.split() for line in subprocess.check_output(listed, text=True).splitlines()]
    if lost := sorted({number for number, name in jobs if name.startswith(prefix)}):
        print(f"[g2g] cancelling {len(lost)} Slurm job(s) of a run that is gone", file=sys.stderr)
        subprocess.run(["scancel", *lost], check=True)


def take(build: Path) -> int:
    """Lock the folder and write down the holder; stop with one line if another run has it."""
    build.mkdir(parents=True, exist_ok=True)
    lock = os.open(build / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(lock, 200).decode().strip() or "unknown"
        sys.exit(
            f"run_all.sh: another run (process {owner}) is at work on {build}: "
            "wait for it or stop it, or set G2G_BUILD to another folder"
        )
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()} on {socket.gethostname()}\n".encode())
    return lock


def main() -> None:
    """Take the lock, then become the command."""
    build = Path(sys.argv[1])
    try:
        lock = take(build)
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(f"run_all.sh: the disk of {build} is full: make room there")
    os.set_inheritable(lock, True)
    prefix = os.environ.get("G2G_SLURM_PREFIX")
    if prefix and "--dry-run" not in sys.argv:
        cancel_orphans(prefix)
    elif not prefix:  # Jobs watch this process and end with it (workflow/run_notebook.py).
        os.environ["G2G_CONTROLLER"] = f"{socket.gethostname()}:{os.getpid()}"
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
