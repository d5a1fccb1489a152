"""Run a training as a group of processes: python workflow/launch.py PROCESSES GPUS COMMAND…

In a Slurm job `srun` starts one task per process. Each joins the group with `accelerate launch`,
which finds the others through Slurm's environment: number of tasks, own number, first host, and a
port made from the job's number. Elsewhere `accelerate launch` starts them all on this machine.
Without GPUs the processes talk over gloo.
"""

import argparse
import os
import subprocess
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIRST_PORT, PORTS = 20000, 20000  # ports are drawn from this range by the job's number
STEP = "--in-step"


def become_own_array_task(arguments: list[str]) -> None:
    """Go on as the Snakemake of this array task, from the task's arguments (tasks 2, 3, …).

    The Slurm plugin starts every task as the *first* job, whose files it then looks for: a task
    failed where the first one failed or was slower (snakemake-executor-plugin-slurm, issue 447).
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--slurm-jobstep-array-execs", dest="calls", default="")
    calls, task = parser.parse_known_args(arguments)[0].calls, os.environ.get("SLURM_ARRAY_TASK_ID")
    if calls and task:
        from snakemake_executor_plugin_slurm_jobstep import parse_array_execs

        own = parse_array_execs(calls).get(task)  # none for the first task
        if own is not None:
            call = zlib.decompress(bytes.fromhex(own)).decode()
            os.execv("/bin/sh", ["/bin/sh", "-c", call])


def resources(job: Any) -> dict[str, Any]:
    """Snakemake's resources of a rule, from the profile and the options of run_all.sh."""
    found = {"gpu": job.gpu * job.processes, "mem_mb": job.mem_mb, "runtime": job.runtime}
    for name in ("slurm_partition", "slurm_account"):  # of the command line, over the defaults
        if given := os.environ.get(f"G2G_{name.upper()}"):
            found[name] = given
    if job.processes > 1:  # `mpi`: the job's own srun starts the tasks
        found |= {"tasks": job.processes, "mpi": "srun"}
        found |= {"tasks_per_gpu": 1} if job.gpu else {}
    return found


def prefix(python: str, job: Any) -> list[str]:
    """Words in front of a training's command; none for a single process."""
    words = [python, str(Path(__file__).resolve()), str(job.processes), str(job.gpu)]
    return words if job.processes > 1 else [python]


def command(arguments: list[str], environment: Mapping[str, str]) -> list[str]:
    """Command of this process: srun, or one accelerate launch."""
    step = arguments[0] == STEP
    processes, gpus, *script = arguments[1:] if step else arguments
    if "SLURM_JOB_ID" in environment and not step:
        tasks = ["srun", "-n", processes, *(["--gpus-per-task=1"] if int(gpus) else [])]
        return [*tasks, sys.executable, __file__, STEP, *arguments]
    group = rendezvous(environment) if step else ["--num_machines", "1"]
    fixed = ["--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no"]
    threads = ["--num_cpu_threads_per_process", environment.get("OMP_NUM_THREADS", "1")]
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    return [*accelerate, *fixed, *threads, "--num_processes", processes, *group, *script]


def rendezvous(environment: Mapping[str, str]) -> list[str]:
    """Address of the group, from the environment of a Slurm task."""
    job = int(environment["SLURM_JOB_ID"])
    return [
        "--num_machines",
        environment["SLURM_NTASKS"],
        "--machine_rank",
        environment["SLURM_PROCID"],
        "--main_process_ip",
        first_host(environment["SLURM_JOB_NODELIST"]),
        "--main_process_port",
        str(FIRST_PORT + job % PORTS),
    ]


def first_host(nodes: str) -> str:
    """First host of Slurm's compressed list, such as gpu[03-07]."""
    if not set(nodes) & set("[,"):
        return nodes
    told = subprocess.check_output(["scontrol", "show", "hostnames", nodes], text=True)
    return told.split()[0]


def main() -> None:
    """Replace this process by that command."""
    words = command(sys.argv[1:], os.environ)
    if not int(sys.argv[3 if sys.argv[1] == STEP else 2]):
        os.environ["ACCELERATE_USE_CPU"] = "true"
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
