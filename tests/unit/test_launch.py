"""Groups of processes: what Slurm says becomes what accelerate wants."""

import json
import os
import zlib
from types import SimpleNamespace

import pytest


@pytest.fixture
def launch(script):
    return script("workflow/launch.py")


TASK = {
    "SLURM_JOB_ID": "12345",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_JOB_NODELIST": "gpu07",
}


def option(words, name):
    return words[words.index(name) + 1]


def test_a_job_starts_one_task_a_process(launch):
    words = launch.command(["4", "1", "train.py", "--seed", "1"], {"SLURM_JOB_ID": "12345"})
    assert words[:4] == ["srun", "-n", "4", "--gpus-per-task=1"]
    assert words[-6:] == ["--in-step", "4", "1", "train.py", "--seed", "1"]
    assert "--gpus-per-task=1" not in launch.command(["4", "0", "x"], {"SLURM_JOB_ID": "12345"})


def test_a_task_meets_the_others_by_slurms_environment(launch):
    words = launch.command(["--in-step", "4", "1", "train.py"], TASK)
    assert option(words, "--num_machines") == option(words, "--num_processes") == "4"
    assert option(words, "--machine_rank") == "3"
    assert option(words, "--main_process_ip") == "gpu07"
    same = launch.command(["--in-step", "4", "1", "train.py"], TASK | {"SLURM_PROCID": "0"})
    port = option(words, "--main_process_port")
    assert port == option(same, "--main_process_port") and 1024 < int(port) < 65536
    assert words[-1] == "train.py"


def test_the_first_host_of_a_list_is_asked_of_slurm(launch, monkeypatch):
    monkeypatch.setattr(
        launch.subprocess, "check_output", lambda words, text: f"{words[-1][:3]}03\ngpu04\n"
    )
    assert launch.first_host("gpu[03-04]") == "gpu03"


def test_without_slurm_one_machine_starts_all(launch):
    words = launch.command(["2", "0", "train.py"], {})
    assert option(words, "--num_machines") == "1" and option(words, "--num_processes") == "2"


def test_resources_of_one_process_and_of_a_group(launch):
    one = SimpleNamespace(gpu=1, mem_mb=10, runtime=5, processes=1)
    group = SimpleNamespace(gpu=1, mem_mb=10, runtime=5, processes=4)
    assert launch.resources(one) == {"gpu": 1, "mem_mb": 10, "runtime": 5}
    assert launch.prefix("python", one) == ["python"]
    found = launch.resources(group)
    assert found["gpu"] == found["tasks"] == 4 and found["mpi"] == "srun"
    assert launch.prefix("python", group)[2:] == ["4", "1"]


def test_partition_and_account_of_the_command_line_leave_the_defaults(launch, monkeypatch):
    job = SimpleNamespace(gpu=0, mem_mb=10, runtime=5, processes=1)
    monkeypatch.setenv("G2G_SLURM_PARTITION", "gpu")
    monkeypatch.delenv("G2G_SLURM_ACCOUNT", raising=False)
    assert launch.resources(job)["slurm_partition"] == "gpu"
    assert "slurm_account" not in launch.resources(job)
    monkeypatch.setenv("G2G_SLURM_ACCOUNT", "mine")
    assert launch.resources(job)["slurm_account"] == "mine"


def test_a_later_task_of_an_array_becomes_its_own_job(launch, monkeypatch):
    """The first task, and a job outside of an array, go on as they are."""
    calls = {"2": zlib.compress(b"snakemake of the second").hex()}
    arguments = ["--cores", "1", f"--slurm-jobstep-array-execs={json.dumps(calls)}", "all"]
    became = []
    monkeypatch.setattr(os, "execv", lambda path, words: became.append(words))
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    launch.become_own_array_task(arguments)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    launch.become_own_array_task(arguments)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    launch.become_own_array_task(["--cores", "1"])
    assert became == []
    launch.become_own_array_task(arguments)
    assert became == [["/bin/sh", "-c", "snakemake of the second"]]
