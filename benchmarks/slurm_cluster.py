"""A SLURM cluster of one node in a temporary folder, to try things that need one; gone when the command has ended.

    apt-get install slurm-wlm slurmdbd mariadb-server munge      # Debian and Ubuntu; once, as root
    python benchmarks/slurm_cluster.py -- bash                   # sinfo, sbatch, squeue and sacct work in this shell
    python benchmarks/slurm_cluster.py --no-accounting -- nio-pydra ... --worker slurm

Key, database, logs and sockets lie in a folder of their own, ports are free ones. So it disturbs no SLURM, MariaDB or
MUNGE that this machine has otherwise, and ends only the processes that it started. It must be started as root, because
slurmd must. Memory limits are kept by SLURM's own accounting of processes, not by cgroups, so that it runs in
containers too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "scontrol")
WITH_ACCOUNTING = ("mariadb-install-db", "mariadbd", "mariadb", "slurmdbd", "sacctmgr")
START_SECONDS = 120.0
END_SECONDS = 20.0
SHARE = 0.9
"""Of the machine's memory, that of the node."""
OWN = """\
ClusterName=trial
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={slurmctld}
SlurmdPort={slurmd}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
{accounting}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP
"""
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd}
AccountingStoragePass={folder}/munge.socket
"""
DATABASE = """\
DbdHost=localhost
DbdPort={slurmdbd}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""


@contextmanager
def cluster(*, accounting: bool = True) -> Iterator[dict[str, str]]:
    """Start a cluster, and end it afterwards.

    Parameters
    ----------
    accounting : bool
        Whether there is an accounting database, so that sacct works.

    Yields
    ------
    dict of str to str
        Environment in which SLURM's commands ask this cluster.
    """
    missing = [name for name in (*PROGRAMS, *(WITH_ACCOUNTING if accounting else ())) if not _program(name)]
    if missing:
        sys.exit(f"{', '.join(missing)}: not found; apt-get install slurm-wlm slurmdbd mariadb-server munge")
    if os.geteuid() != 0:
        sys.exit("slurmd must be started as root: this needs root's rights, in a container for example.")
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as name:
        folder, started = Path(name), []
        folder.chmod(0o755)
        try:
            environment = _start(folder, accounting, started)
            try:
                yield environment
            finally:
                _end_jobs(environment)
        finally:
            for process in reversed(started):
                process.terminate()
                try:
                    process.wait(END_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            _end_supervisors(folder)


def _start(folder: Path, accounting: bool, started: list[subprocess.Popen[bytes]]) -> dict[str, str]:
    """Start the daemons, one after the other, and return the environment that leads to them."""
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    for variable in [name for name in environment if name.startswith(("SLURM_", "SBATCH_"))]:
        if variable != "SLURM_CONF":
            del environment[variable]

    def start(*command: str | Path) -> None:
        program = _program(str(command[0]))
        with (folder / f"{command[0]}.log").open("wb") as stream:
            process = subprocess.Popen(
                [str(program), *map(str, command[1:])], env=environment, stdin=subprocess.DEVNULL, stdout=stream,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        started.append(process)

    def until(what: str, *command: str | Path, answer: str = "") -> None:
        program = str(_program(str(command[0])))
        limit = time.monotonic() + START_SECONDS
        while time.monotonic() < limit and all(process.poll() is None for process in started):
            done = subprocess.run(
                [program, *map(str, command[1:])], env=environment, capture_output=True, text=True, timeout=60
            )
            if done.returncode == 0 and answer in done.stdout:
                return
            time.sleep(0.5)
        logs = "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-2000:]}" for log in folder.glob("*.log"))
        sys.exit(f"{what} does not answer.\n{logs}")

    ports = dict(zip(("slurmctld", "slurmd", "slurmdbd", "mariadb"), _free_ports(4), strict=True))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    start("munged", "--foreground", f"--socket={folder}/munge.socket", f"--key-file={key}",
          f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.own.log", f"--seed-file={folder}/munge.seed",
          "--num-threads=2", "--force")  # fmt: skip
    until("munged", "munge", f"--socket={folder}/munge.socket", "--no-input")
    filled = {"folder": folder, "host": socket.gethostname(), **ports}
    if accounting:
        data = folder / "mariadb"
        subprocess.run(
            [str(_program("mariadb-install-db")), "--no-defaults", f"--datadir={data}", "--user=root",
             "--auth-root-authentication-method=normal", "--skip-test-db"],
            check=True, capture_output=True,
        )  # fmt: skip
        start("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={folder}/mariadb.socket",
              "--bind-address=127.0.0.1", f"--port={ports['mariadb']}", f"--pid-file={folder}/mariadb.pid",
              "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900",
              "--innodb-use-native-aio=0")  # fmt: skip
        client = ("mariadb", "--no-defaults", f"--socket={folder}/mariadb.socket", "-e")
        until("mariadbd", *client, "select 1")
        until("mariadbd", *client, "create user slurm@localhost identified by 'slurm'; "
              "create user slurm@'127.0.0.1' identified by 'slurm'; grant all on slurm.* to slurm@localhost; "
              "grant all on slurm.* to slurm@'127.0.0.1'")  # fmt: skip
        (folder / "slurmdbd.conf").write_text(DATABASE.format(**filled))
        (folder / "slurmdbd.conf").chmod(0o600)
    own = OWN.format(
        **filled,
        accounting=ACCOUNTING.format(**filled) if accounting else "AccountingStorageType=accounting_storage/none",
        cpus=len(os.sched_getaffinity(0)),
        memory_mb=int(SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20),
    )
    (folder / "slurm.conf").write_text(own)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    if accounting:
        start("slurmdbd", "-D")
        until("slurmdbd", "sacctmgr", "--immediate", "--noheader", "list", "cluster")
        until("slurmdbd", "sacctmgr", "--immediate", "--quiet", "add", "cluster", "trial")
    start("slurmctld", "-D", "-c")
    start("slurmd", "-D")
    until("slurmd", "sinfo", "--noheader", "--format=%T", answer="idle")
    return environment


def _end_jobs(environment: dict[str, str]) -> None:
    """Cancel all jobs of the cluster, and wait for their end."""
    ask = {"env": environment, "capture_output": True, "text": True}
    subprocess.run(["scancel", "--user=root"], **ask)  # type: ignore[call-overload]
    limit = time.monotonic() + END_SECONDS
    while time.monotonic() < limit:
        if not subprocess.run(["squeue", "--noheader"], **ask).stdout.strip():  # type: ignore[call-overload]
            return
        time.sleep(0.5)


def _end_supervisors(folder: Path) -> None:
    """Kill what supervised the jobs of this cluster, known by its environment, if the cluster ended before it."""
    mark = f"SLURM_CONF={folder}/slurm.conf".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (
                mark in (entry / "environ").read_bytes().split(b"\0")
                and b"slurmstepd" in (entry / "cmdline").read_bytes()
            ):
                os.kill(int(entry.name), signal.SIGKILL)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def end_once(number: int, frame: object) -> None:
    """End by SIGTERM as by an error, so that the cluster is taken down; a second signal must not disturb that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command beside a cluster; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--no-accounting", action="store_true", help="no database, so that sacct does not work")
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, end_once)
    with cluster(accounting=not options.no_accounting) as environment:
        return subprocess.run(options.command, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
