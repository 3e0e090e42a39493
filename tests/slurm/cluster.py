"""A real Slurm of several nodes on this machine: `python tests/slurm/cluster.py up DIRECTORY`.

Own munge, own ports, own directories, nodes that claim eight CPUs and fake GPUs. Every node is this
machine, hence they share its file systems, and each other's loopback. Needs root: slurmd gives
processes to users, and device files stand for GPUs. `down` ends what `up` started, and no more.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from slurm.configuration import Shape, free_ports, gres_conf, slurm_conf, version
from slurm.jobs import ENDED, FORMAT, Job, details, parse
from slurm.packages import SBIN, ensure, search_path
from slurm.processes import Daemons, kill, with_environment

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
HOSTS = Path("/etc/hosts")
START_S = 60
POLL_S = 0.05
CONTROLLER, MUNGE = "slurmctld", "munged"
# Marks the daemons of a node, and through them the steps' own processes.
NODE_VARIABLE = "DSV3_TEST_NODE"


class ClusterError(RuntimeError):
    """The cluster did not do in time what was waited for; with what its logs say."""


class Cluster:
    """A cluster below `base`; nothing is started by making one.

    It ends with this process, unless it is to `stay` until `down`.
    """

    def __init__(self, base: Path, shape: Shape | None = None, *, stay: bool = False) -> None:
        self.base = base
        self.shape = shape or Shape()
        self.conf = base / "etc" / "slurm.conf"
        # A way to `base` that leaves room: slurmd refuses a socket of more than 107 characters.
        name = hashlib.sha256(os.fsencode(base)).hexdigest()[:8]
        self._short = Path(tempfile.gettempdir()) / f"dsv3-slurm-{name}"
        self._daemons = Daemons(base / "run" / "daemons.json", stay=stay)

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes."""
        return self.shape.names

    @property
    def env(self) -> dict[str, str]:
        """What a program needs in its environment to meet this cluster."""
        return {"SLURM_CONF": str(self.conf), "PATH": search_path()}

    # Start and end

    def up(self) -> None:
        """Install, configure and start; returns once every node is idle.

        Raises:
            MissingProgramError, ClusterError: it cannot be had here; says why.
        """
        ensure(*PROGRAMS)
        if os.geteuid() != 0:
            raise ClusterError("a test cluster needs root: its nodes start jobs, and hold devices")
        self._configure()
        self._name_nodes()
        self._start_munge()
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        self.wait(self._all_idle, "every node to be idle", START_S)

    def down(self) -> None:
        """End every process of this cluster, and take its nodes out of /etc/hosts."""
        if self._daemons.running(CONTROLLER):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.run("scancel", "--user=root", timeout=10)
        # Without patience: slurmd waits for its jobs, and nobody will read what they leave.
        for name in [each for each in self._daemons.names() if each != MUNGE]:
            self._daemons.end(name, signal.SIGKILL)
        kill([pid for node in self.nodes for pid in self._of_node(node)])
        self._daemons.end(MUNGE)
        self._short.unlink(missing_ok=True)
        _edit_hosts(lambda line: not line.endswith(self._mark))

    def _configure(self) -> None:
        for name in ("etc", "state", "log", "run", "dev"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for directory in (self.base, self.base / "run"):
            directory.chmod(0o755)  # munged wants its socket reachable, and safe from others
        command = [_daemon(CONTROLLER), "-V"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        ports = free_ports(1 + len(self.nodes))
        self._short.unlink(missing_ok=True)
        self._short.symlink_to(self.base)
        conf = slurm_conf(self.base, self._short, self.shape, ports, version(said))
        self.conf.write_text(conf)
        (self.base / "etc" / "gres.conf").write_text(gres_conf(self.base, self.shape))
        (self.base / "etc" / "cgroup.conf").write_text("")
        for number in range(self.shape.gpus):
            device = self.base / "dev" / f"gpu{number}"
            if not device.exists():
                os.mknod(device, 0o20666, os.makedev(1, 3))
        for node in self.nodes:
            (self.base / f"spool-{node}").mkdir(exist_ok=True)

    @property
    def _mark(self) -> str:
        return f"# test cluster in {self.base}"

    def _name_nodes(self) -> None:
        _edit_hosts(
            lambda line: not line.endswith(self._mark),
            f"127.0.0.1 {' '.join(self.nodes)} {self._mark}",
        )

    def _start_munge(self) -> None:
        key = self.base / "etc" / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        run, log = self.base / "run", self.base / "log"
        # --force: below a shared directory, and as root. Nobody else speaks to it.
        options = {
            "key-file": key,
            "socket": self._short / "run" / "munge.socket",
            "pid-file": run / "munged.pid",
            "log-file": log / "munged.log",
            "seed-file": run / "munge.seed",
        }
        command = [_daemon("munged"), "--foreground", "--force"]
        command += [f"--{name}={path}" for name, path in options.items()]
        self._daemons.start(MUNGE, command, dict(os.environ), log / "munged.out")
        self.wait(options["socket"].exists, "munged", 10)

    def _all_idle(self) -> bool:
        said = self.run("sinfo", "-h", "-N", "-p", "normal", "-o", "%T").stdout.split()
        return said == ["idle"] * len(self.nodes)

    # Controls

    def start_controller(self) -> None:
        """Start slurmctld, which goes on with the jobs it knew; returns once it answers."""
        command = [_daemon(CONTROLLER), "-D", "-f", str(self.conf)]
        self._daemons.start(CONTROLLER, command, self._env(), self.base / "log" / "slurmctld.out")
        self.wait(lambda: self.run("scontrol", "ping").returncode == 0, "the controller", START_S)

    def stop_controller(self, number: int = signal.SIGTERM) -> None:
        """End slurmctld; jobs run on. By SIGKILL it forgets up to five seconds of its state."""
        self._daemons.end(CONTROLLER, number)

    @property
    def controller_pid(self) -> int:
        """The process of slurmctld."""
        return self._daemons.pid(CONTROLLER)

    def freeze_controller(self) -> None:
        """Have slurmctld accept connections, and answer none of them."""
        os.kill(self.controller_pid, signal.SIGSTOP)

    def thaw_controller(self) -> None:
        """Have it go on."""
        os.kill(self.controller_pid, signal.SIGCONT)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        command = [_daemon("slurmd"), "-D", "-N", node, "-f", str(self.conf)]
        env = self._env() | {NODE_VARIABLE: node}
        self._daemons.start(node, command, env, self.base / "log" / f"slurmd-{node}.out")

    def kill_node(self, node: str, *, noticed: bool = True) -> None:
        """Have a node lose its power: slurmd and every process of a job there, by kill -9.

        With `noticed` the controller is told so at once, instead of after NODE_TIMEOUT_S.
        """
        self._daemons.end(node, signal.SIGKILL)
        kill(self._of_node(node))
        if noticed:
            self.check("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power")

    def revive_node(self, node: str) -> None:
        """Start a node that was killed; returns once it can take jobs."""
        self.start_node(node)
        self.wait(lambda: self.node_state(node) in {"idle", "mixed"}, f"{node} to be back", 60)

    def node_state(self, node: str) -> str:
        """`idle`, `mixed`, `allocated`, `down`, ...; a `*` when it does not answer."""
        said = self.check("sinfo", "-h", "-N", "-p", "normal", "-n", node, "-o", "%T")
        return said.strip()

    def restore(self) -> None:
        """Whatever a test did: no job, the controller up, every node idle."""
        if not self._daemons.running(CONTROLLER):
            self.start_controller()
        self.thaw_controller()
        self.run("scancel", "--user=root")
        for node in self.nodes:
            kill(self._tasks_of(node))  # they may wait for TERM to be over, or be orphans
            if not self._daemons.running(node):
                self.start_node(node)
            if "d" in self.node_state(node).replace("idle", "").replace("allocated", ""):
                # Down or drained: by the test, or by Slurm, after a controller that forgot a job.
                self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
        self.wait(self._all_idle, "every node to be idle", 2 * START_S)

    def _of_node(self, node: str) -> list[int]:
        """Processes of jobs on a node, and the daemons of their steps."""
        daemons = {"SLURM_CONF": str(self.conf), NODE_VARIABLE: node}
        return self._tasks_of(node) + with_environment(daemons)

    def _tasks_of(self, node: str) -> list[int]:
        return with_environment({"SLURM_CONF": str(self.conf), "SLURMD_NODENAME": node})

    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.env}

    # Programs and questions

    def run(self, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a program of Slurm (or any) against this cluster."""
        defaults: dict[str, object] = {"capture_output": True, "text": True, "timeout": 60}
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            command, **{"env": self._env(), **defaults, **options}
        )

    def check(self, *command: str) -> str:
        """The output of a program that has to succeed."""
        done = self.run(*command)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr}")
        return done.stdout

    def sbatch(self, body: str, *options: str) -> str:
        """Submit a shell script by its text; the job's id. Its output goes below `base`."""
        output = f"--output={self.base}/log/job-%j-%t.out"
        done = self.run(
            "sbatch", "--parsable", output, "--open-mode=append", *options,
            input=f"#!/bin/bash\n{body}\n",
        )  # fmt: skip
        if done.returncode:
            raise ClusterError(f"sbatch refused: {done.stderr}")
        return done.stdout.strip()

    def jobs(self, key: str | None = None) -> list[Job]:
        """Every job the controller remembers, or those with `key` as comment or name."""
        listing = self.check("squeue", "-h", "-r", "-t", "all", "-o", FORMAT)
        return [job for job in parse(listing) if key is None or key in (job.comment, job.name)]

    def job(self, number: str) -> Job:
        """One job, or one task of an array by `ARRAY_TASK`."""
        [found] = [each for each in self.jobs() if each.id == number]
        return found

    def details(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of it: Restarts, ExitCode, Reason, ..."""
        return details(self.check("scontrol", "show", "job", "-o", number).strip())

    def wait(self, true: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
        """Wait until something holds.

        Raises:
            ClusterError: it does not in time.
        """
        until = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > until:
                raise ClusterError(f"waited {timeout_s:g} s for {what}\n{self.evidence()}")
            time.sleep(POLL_S)

    def wait_state(self, number: str, *states: str, timeout_s: float = 30) -> Job:
        """Wait until a job is in one of these states."""
        self.wait(lambda: self.job(number).state in states, f"job {number}: {states}", timeout_s)
        return self.job(number)

    def wait_ended(self, number: str, timeout_s: float = 30) -> Job:
        """Wait until a job has ended for good."""
        return self.wait_state(number, *ENDED, timeout_s=timeout_s)

    def output(self, number: str) -> str:
        """What the script of `sbatch` and its steps printed so far."""
        return "".join(
            path.read_text() for path in sorted(self.base.glob(f"log/job-{number}-*.out"))
        )

    def evidence(self) -> str:
        """The jobs, the nodes and the ends of all logs: for a failed test."""
        parts = []
        if self._daemons.running(CONTROLLER):
            with contextlib.suppress(subprocess.TimeoutExpired):
                for command in (["squeue", "-t", "all"], ["sinfo", "-N", "-l"]):
                    parts.append(self.run(*command, timeout=10).stdout)
        for path in sorted((self.base / "log").glob("*.[lo][ou][gt]")):
            if text := path.read_text(errors="replace")[-1500:]:
                parts.append(f"-- {path.name}\n{text}")
        return "\n".join(parts)


def _daemon(name: str) -> str:
    path = shutil.which(name, path=search_path())
    assert path is not None, f"{name} is in none of {SBIN}"
    return path


def _edit_hosts(keep: Callable[[str], bool], *more: str) -> None:
    """In place: in containers the file is a mount, and cannot be replaced."""
    lines = [line for line in HOSTS.read_text().splitlines() if keep(line)]
    HOSTS.write_text("".join(f"{line}\n" for line in [*lines, *more]))


def main(argv: list[str] | None = None) -> int:
    """`up` and `down` by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("up", "down"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--nodes", type=int, default=2)
    parsed = parser.parse_args(argv)
    cluster = Cluster(parsed.directory.resolve(), Shape(nodes=parsed.nodes), stay=True)
    if parsed.verb == "down":
        cluster.down()
        return 0
    cluster.up()
    print(cluster.run("sinfo").stdout)
    print(f"export SLURM_CONF={cluster.conf}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
