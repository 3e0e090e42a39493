"""The configuration of the test cluster: what slurm.conf, gres.conf and munged are told.

Everything lives below one directory and listens on the loopback alone, so that several clusters
and a Slurm of the machine's own do not meet.
"""

import re
import socket
from dataclasses import dataclass
from pathlib import Path

# Seconds that a credential lives. A requeued job waits that long before it may start (120 by
# default); Slurm takes nothing below 5.
CREDENTIAL_S = 5
# Between USR1 and TERM of a preempted job, and between TERM and KILL of any.
GRACE_S = 20
KILL_WAIT_S = 5
# A client gives up on a controller that is down, or does not answer, after about as long.
MESSAGE_TIMEOUT_S = 5
# A node that does not answer for so long is down.
NODE_TIMEOUT_S = 20


@dataclass(frozen=True)
class Shape:
    """How large the cluster is; nodes claim more than the machine has."""

    nodes: int = 2
    cpus: int = 8
    gpus: int = 4
    memory_mb: int = 64000

    @property
    def names(self) -> list[str]:
        """Names of the nodes; rank 0 of a job finds its master by them."""
        return [f"dsv3-node{number}" for number in range(1, self.nodes + 1)]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def version(said: str) -> tuple[int, int]:
    """Year and month of a release: (22, 5) of `slurm-wlm 22.05.8`."""
    found = re.search(r"(\d+)\.(\d+)", said)
    assert found, f"no version in {said!r}"
    return int(found[1]), int(found[2])


def slurm_conf(
    base: Path, short: Path, shape: Shape, ports: list[int], release: tuple[int, int]
) -> str:
    """slurm.conf of a cluster below `base`; `ports` are the controller's, then one of each node.

    `short` leads to `base` too; what has a socket in it is named by it.
    """
    host = socket.gethostname().split(".")[0]
    # Renamed in 23.02, and refused under the other name by either.
    user_signal = (
        "PreemptParameters=send_user_signal"
        if release >= (23, 2)
        else "SlurmctldParameters=preempt_send_user_signal"
    )
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={shape.cpus} "
        f"RealMemory={shape.memory_mb} Gres=gpu:{shape.gpus} Feature=h800 State=UNKNOWN"
        for name, port in zip(shape.names, ports[1:], strict=True)
    )
    return f"""\
ClusterName=dsv3
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={short}/run/munge.socket,cred_expire={CREDENTIAL_S}
SlurmctldPort={ports[0]}
{user_signal}
SlurmdParameters=config_overrides
StateSaveLocation={base}/state
SlurmdSpoolDir={short}/spool-%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd-%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MailProg=/bin/true
MpiDefault=none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
MessageTimeout={MESSAGE_TIMEOUT_S}
SlurmdTimeout={NODE_TIMEOUT_S}
KillWait={KILL_WAIT_S}
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=OFF
PartitionName=preemptable Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 \
PreemptMode=REQUEUE GraceTime={GRACE_S}
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def gres_conf(base: Path, shape: Shape) -> str:
    """gres.conf: the same device files on every node."""
    names = ",".join(shape.names)
    return f"NodeName={names} Name=gpu File={base}/dev/gpu[0-{shape.gpus - 1}]\n"
