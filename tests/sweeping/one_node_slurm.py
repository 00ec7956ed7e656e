"""A Slurm cluster of this machine alone: ``python -m tests.sweeping.one_node_slurm FOLDER COMMAND...``.

Starts munged, slurmctld and slurmd with all their files in FOLDER, runs the command with ``SLURM_CONF`` set, and ends
them. On Debian they come with ``apt-get install slurm-wlm munge``.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
ReturnToService=2
JobRequeue=1
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in NEEDED if shutil.which(name, path=SEARCHED) is None]


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which sbatch finds the cluster."""
    folder = folder.absolute()
    for part in (folder, folder / "state", folder / "spool"):
        part.mkdir(mode=0o755, parents=True, exist_ok=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    conf = folder / "slurm.conf"
    facts = {"host": socket.gethostname(), "user": getpass.getuser(), "folder": folder, "cores": os.cpu_count()}
    conf.write_text(CONF.format(ports=_free_ports(2), **facts))
    environment = {**os.environ, "SLURM_CONF": str(conf), "PATH": SEARCHED}
    (folder / "munged.d").mkdir(mode=0o755, exist_ok=True)
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munged.d/pid", f"--log-file={folder}/munged.d/log"]
    munge += [f"--seed-file={folder}/munged.d/seed"]
    running: list[subprocess.Popen] = []
    try:
        for command in (munge, ["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", str(facts["host"])]):
            log = (folder / f"{command[0]}.out").open("w")
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
            time.sleep(1)
        _wait(environment, running, folder)
        yield environment
    finally:
        subprocess.run(["scancel", "--user", facts["user"]], env=environment, check=False)
        until = time.monotonic() + 30  # what runs is ended by slurmd, as long as there is one
        while time.monotonic() < until and _squeue(environment):
            time.sleep(0.5)
        for process in reversed(running):
            process.terminate()
        for process in running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _squeue(environment: dict[str, str]) -> str:
    """Jobs that wait, run or end."""
    told = subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True, text=True, check=False)
    return told.stdout.strip()


def _wait(environment: dict[str, str], running: list[subprocess.Popen], folder: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for process in running:
            if process.poll() is not None:
                name = Path(process.args[0]).name
                raise RuntimeError(f"{name} ended: {(folder / f'{name}.out').read_text()[-500:]}")
        told = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, check=False)
        if told.stdout.strip() in ("idle", "mixed", "allocated"):
            return
        time.sleep(0.5)
    raise RuntimeError(f"the node did not come up: {told.stdout} {told.stderr}; see {folder}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


if __name__ == "__main__":
    if lacking := missing():
        sys.exit(f"not installed: {', '.join(lacking)} (apt-get install slurm-wlm munge)")
    with cluster(Path(sys.argv[1])) as found:
        sys.exit(subprocess.run(sys.argv[2:], env=found, check=False).returncode)
