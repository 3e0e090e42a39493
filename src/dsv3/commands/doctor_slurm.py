"""The part of `dsv3 doctor` about a cluster: Slurm, the profile, its nodes and their disks."""

import json
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dsv3
from dsv3.commands.check import Check
from dsv3.commands.handing import verdicts
from dsv3.config.root import RunConfig
from dsv3.errors import Dsv3Error
from dsv3.launch.launchers import launcher_of
from dsv3.launch.slurm.launcher import SlurmLauncher
from dsv3.launch.slurm.probe import PREFIX, WRITTEN_HERE
from dsv3.launch.slurm.script import container_options
from dsv3.launch.slurm.shape import Shape, shape_of
from dsv3.launch.slurm.tools import Answer, ask
from dsv3.plan.quantities import plural

ANSWER_S = 30.0
NODES_S = 180.0
"""How long nodes are waited for: a full cluster has none free."""
_SEEN_WITHIN_S = 10.0


def check_slurm() -> Iterator[Check]:
    """Is there a Slurm that this machine can hand jobs in to?"""
    if shutil.which("sbatch") is None:
        yield Check("Slurm", "ok", "no sbatch here: launcher=slurm works on a machine of a cluster")
        return
    version = ask(["sbatch", "--version"], seconds=ANSWER_S)
    yield Check("Slurm", "ok", version.said)
    ping = ask(["scontrol", "ping"], seconds=ANSWER_S)
    if ping.code == 0 and " UP" in ping.out:
        yield Check("Slurm controller", "ok", ping.said)
    else:
        remedy = "nothing can be handed in until it answers; ask those who run the cluster"
        yield Check("Slurm controller", "fail", ping.said, remedy)
        return
    yield _check_books(ask(["scontrol", "show", "config"], seconds=ANSWER_S))


def check_cluster(config: RunConfig, config_dir: Path | None) -> Iterator[Check]:
    """Does the cluster of this configuration take its job, and do its nodes see what we see?"""
    try:
        launcher = launcher_of([config], config_dir)
        assert isinstance(launcher, SlurmLauncher)
        launcher.refuse(config)
        shape = shape_of(config, launcher.cluster)
        [(_, verdict, taken)] = verdicts(launcher, [config], "doctor")
    except Dsv3Error as error:
        yield Check("profile", "fail", "; ".join(map(str, error.problems)), "see docs/slurm.md")
        return
    name = f"profile {launcher.profile}"
    if not taken:
        yield Check(name, "fail", verdict, "correct the profile, or choose another layout")
        return
    yield Check(name, "ok", verdict)
    if launcher.cluster.container is not None:
        yield _check_container(ask(["srun", "--help"], seconds=ANSWER_S))
    yield from _check_nodes(config, launcher, shape)


def _check_books(answer: Answer) -> Check:
    kept = re.search(r"AccountingStorageType\s*=\s*(\S+)", answer.out)
    age = re.search(r"MinJobAge\s*=\s*(\S+ \S+)", answer.out)
    signal = re.search(r"(preempt_)?send_user_signal", answer.out)
    detail = f"accounting {kept[1] if kept else 'unknown'}, ended jobs are known for "
    detail += age[1] if age else "an unknown time"
    if signal is None:
        remedy = "PreemptParameters=send_user_signal gives preempted runs their grace time to save"
        return Check("Slurm configuration", "warn", f"{detail}, no send_user_signal", remedy)
    return Check("Slurm configuration", "ok", detail)


def _check_container(answer: Answer) -> Check:
    if "--container-image" in answer.out:
        return Check("container plugin", "ok", "srun has --container-image")
    detail = "srun has no --container-image: the pyxis plugin is not installed"
    return Check("container plugin", "fail", detail, "use a profile without container")


def _check_nodes(config: RunConfig, launcher: SlurmLauncher, shape: Shape) -> Iterator[Check]:
    root = Path(config.run_root).expanduser().absolute()
    there = next(parent for parent in (root, *root.parents) if parent.exists())
    try:
        directory = Path(tempfile.mkdtemp(prefix=".dsv3-doctor-", dir=there))
    except OSError as error:
        yield Check("shared files", "fail", str(error), "choose another run_root=")
        return
    try:
        token = uuid.uuid4().hex
        (directory / WRITTEN_HERE).write_text(token, encoding="ascii")
        answer = ask(_command(launcher, shape, directory, token), seconds=NODES_S)
        told = [json.loads(line) for line in re.findall(f"{PREFIX}(.*)", answer.out)]
        if not told:
            remedy = "ask again when nodes are free; `dsv3 logs` shows what a job says"
            yield Check("nodes", "warn", answer.said, remedy)
            return
        for node in told:
            yield _check_node(node, directory, token, shape)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _command(launcher: SlurmLauncher, shape: Shape, directory: Path, token: str) -> list[str]:
    import sys

    profile = launcher.cluster
    command = ["srun", f"--nodes={shape.nodes}", "--ntasks-per-node=1", "--time=5", "--quiet"]
    if shape.gpus_per_node:
        kind = f"{profile.gpu_type}:" if profile.gpu_type else ""
        command.append(f"--gpus-per-node={kind}{shape.gpus_per_node}")
    for name in ("account", "partition", "qos", "constraint", "reservation"):
        if (value := getattr(profile, name)) is not None:
            command.append(f"--{name}={value}")
    variables = ",".join(["ALL", *(f"{k}={v}" for k, v in profile.environment.items())])
    if "," not in "".join(profile.environment.values()):
        command.append(f"--export={variables}")
    command += [*profile.sbatch_options, *profile.srun_options]
    command += container_options(profile, directory)
    python = profile.python or sys.executable
    return [*command, python, "-P", "-m", "dsv3.launch.slurm.probe", str(directory), token]


def _check_node(told: dict[str, Any], directory: Path, token: str, shape: Shape) -> Check:
    name, gpus = f"node {told['node']}", len(told["gpus"])
    problems = []
    if not told.get("sees"):
        problems.append(f"it does not see {directory}")
    elif not told.get("writes"):
        problems.append("fsync or rename do not work there")
    elif not _seen_here(directory / f"from-{told['node']}", token):
        problems.append(f"what it writes is not seen here within {_SEEN_WITHIN_S:g} s")
    if "problem" in told:
        problems.append(told["problem"])
    if gpus < shape.gpus_per_node:
        problems.append(f"{plural(gpus, 'GPU')} through NVML, {shape.gpus_per_node} wanted")
    if (told["dsv3"], told["numerics"]) != (dsv3.__version__, dsv3.NUMERICS_VERSION):
        problems.append(f"dsv3 {told['dsv3']} there, {dsv3.__version__} here")
    if problems:
        remedy = "run_root= has to be on a file system that all nodes share, with one dsv3"
        return Check(name, "fail", "; ".join(problems), remedy)
    variables = ", ".join(f"{k}={v}" for k, v in told["variables"].items()) or "none"
    detail = f"sees, syncs and renames files of run_root; {plural(gpus, 'GPU')}"
    return Check(name, "ok", f"{detail}; communication variables: {variables}")


def _seen_here(path: Path, token: str) -> bool:
    until_s = time.monotonic() + _SEEN_WITHIN_S
    while time.monotonic() < until_s:
        if path.exists() and path.read_text(encoding="ascii") == token:
            return True
        time.sleep(0.2)
    return False
