"""Rules of launchers: a cluster has a profile, this machine has none."""

import re
from collections.abc import Iterator

from dsv3.config.launcher import TIME_LIMIT
from dsv3.config.root import RunConfig
from dsv3.errors import Problem

PROFILES = "launchers/profiles/NAME.yaml, shipped or in --config-dir"


def a_cluster_has_its_profile(config: RunConfig) -> Iterator[Problem]:
    """No account, partition or size of a node can be guessed."""
    launcher = config.launcher
    if launcher.kind == "slurm" and launcher.profile is None:
        rule = "needs launcher.profile: what a node of the cluster has, and whose account it is"
        yield Problem("launcher=slurm", rule, f"write launcher.profile=NAME; that is {PROFILES}")


def this_machine_has_no_profile(config: RunConfig) -> Iterator[Problem]:
    """Whoever names a cluster means to train there."""
    launcher = config.launcher
    if launcher.kind == "local" and launcher.profile is not None:
        rule = "names a cluster, but launcher.kind=local trains on this machine"
        yield Problem(f"launcher.profile={launcher.profile}", rule, "add launcher=slurm")


def a_profile_is_a_name(config: RunConfig) -> Iterator[Problem]:
    """It becomes part of a path."""
    profile = config.launcher.profile
    if profile is not None and not re.fullmatch(r"\w[\w.-]*", profile, re.ASCII):
        rule = "must be a name: letters, digits, `_`, `.` and `-`"
        yield Problem(f"launcher.profile={profile}", rule, f"it is the NAME of {PROFILES}")


def a_time_limit_is_one(config: RunConfig) -> Iterator[Problem]:
    """Slurm reads `90` as minutes; anything else it would refuse much later."""
    time = config.launcher.time
    if time is not None and not re.fullmatch(TIME_LIMIT, time, re.ASCII):
        rule = "must be minutes, or [days-]hours:minutes:seconds"
        yield Problem(f"launcher.time={time}", rule, "as in launcher.time=4:00:00 or 2-00:00:00")


RULES = (
    a_cluster_has_its_profile,
    this_machine_has_no_profile,
    a_profile_is_a_name,
    a_time_limit_is_one,
)
