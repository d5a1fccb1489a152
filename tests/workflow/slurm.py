"""A real Slurm with one node, on loopback, for as long as a test needs it.

Nothing of the system's own Slurm or MUNGE is touched: configuration, key, socket, state and logs
lie in one folder, ports are free ones, and the three daemons are children of this process.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIG = """
ClusterName=g2g
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ctld}
SlurmdPort={slurmd}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
MinJobAge=3600
KillWait=20
ReturnToService=2
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=9
"""


def missing() -> str:
    """Why no Slurm can be started here; empty if one can."""
    if absent := [name for name in (*DAEMONS, "sbatch") if not _binary(name)]:
        return f"no {', '.join(absent)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd runs jobs only when started by root"


def _binary(name: str) -> str | None:
    """Path of a program; daemons lie in sbin."""
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")


def _ports(count: int) -> list[int]:
    """Free ports of loopback."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _configure(folder: Path) -> None:
    """Write slurm.conf, MUNGE's key, and an srun that knows the configuration.

    Snakemake's job step drops SLURM_CONF; where the configuration has its usual place that is well.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    ctld, slurmd = _ports(2)
    host = socket.gethostname().split(".")[0]
    text = CONFIG.format(host=host, folder=folder, user="root", ctld=ctld, slurmd=slurmd)
    (folder / "slurm.conf").write_text(text)
    (folder / "bin").mkdir()
    srun = folder / "bin" / "srun"
    call = f'SLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"'
    srun.write_text(f"#!/bin/sh\n{call}\n")
    srun.chmod(0o755)


@contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons; yields the environment in which sbatch and the others find this Slurm."""
    _configure(folder)
    files = [f"--{k}={folder}/munge.{k.split('-')[0]}" for k in ("socket", "key-file", "pid-file")]
    more = [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    config = str(folder / "slurm.conf")
    commands = [
        ["munged", "-F", "--force", *files, *more],
        ["slurmctld", "-D", "-c", "-f", config],
        ["slurmd", "-D", "-c", "-f", config],
    ]
    path = f"{folder}/bin:{os.environ['PATH']}"
    environment = {**os.environ, "SLURM_CONF": config, "PATH": path}
    started = []
    try:
        for name, *arguments in commands:
            with open(folder / f"{name}.out", "w") as out:
                started.append(
                    subprocess.Popen(
                        [_binary(name), *arguments], stdout=out, stderr=out, env=environment
                    )
                )
            if name == "munged":
                _wait(lambda: (folder / "munge.socket").exists(), folder)
        _wait(lambda: _idle(environment), folder)
        yield environment
    finally:
        _cancel_all(environment)
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _cancel_all(environment: dict[str, str], seconds: float = 10) -> None:
    """Kill every job and wait until none is left."""
    end = time.time() + seconds
    listed = ["squeue", "-h", "-o", "%A"]
    while time.time() < end:
        told = subprocess.run(listed, env=environment, capture_output=True, text=True)
        if not (jobs := sorted(set(told.stdout.split()))):
            return
        kill = ["scancel", "--signal=KILL", "--full"]
        subprocess.run([*kill, *jobs], env=environment, capture_output=True)
        subprocess.run(["scancel", *jobs], env=environment, capture_output=True)
        time.sleep(0.5)


def _idle(environment: dict[str, str]) -> bool:
    """True once the node takes jobs."""
    told = subprocess.run(
        ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True
    )
    return "idle" in told.stdout


def _wait(condition, folder: Path, seconds: float = 30) -> None:
    """Until a condition holds; the daemons' last lines if it does not."""
    end = time.time() + seconds
    while not condition():
        if time.time() > end:
            logs = [p for p in folder.iterdir() if p.suffix in (".log", ".out")]
            tails = [f"{p.name}: {p.read_text()[-400:]}" for p in logs]
            raise AssertionError("Slurm did not start\n" + "\n".join(tails))
        time.sleep(0.1)
