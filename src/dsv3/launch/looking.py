"""What schedulers say of runs that were handed in, beside what their files say."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dsv3.errors import Dsv3Error
from dsv3.launch.launchers import SCHEDULERS
from dsv3.launch.scheduler import Job, Scheduler, SchedulerError
from dsv3.launch.submission import Place, Submission, place_of
from dsv3.runs.directory import RunDirectory


@dataclass(frozen=True)
class Seen:
    """A run that was handed in: its job, if the scheduler knows one, and how that ended last."""

    place: Place
    job: Job | None
    problem: str | None

    @property
    def live(self) -> bool:
        """Whether a scheduler has it."""
        return self.job is not None and self.job.live

    @property
    def output(self) -> Path:
        """What its job printed."""
        return Submission(self.place.submission).output(self.place.index)


@dataclass(frozen=True)
class Look:
    """Runs by directory, and why schedulers could not be asked."""

    seen: dict[Path, Seen]
    problems: list[str]

    @property
    def any_live(self) -> bool:
        """Whether a scheduler has any of them."""
        return any(each.live for each in self.seen.values())


def look(runs: Iterable[RunDirectory]) -> Look:
    """Ask once for all of them; where nobody answers, files are all there is."""
    places: dict[Path, Place] = {}
    problems: list[str] = []
    for run in runs:
        try:
            place = place_of(run)
        except Dsv3Error as error:
            problems.append(str(error))
            continue
        if place is not None:
            places[run.path] = place
    jobs = _jobs(places.values(), problems)
    seen = {
        path: Seen(place, jobs.get((place.key, place.index)), _problem(place))
        for path, place in places.items()
    }
    return Look(seen, problems)


def scheduler_of(place: Place) -> Scheduler:
    """The scheduler a run was handed in to."""
    return SCHEDULERS[Submission(place.submission).intent().launcher]()


def _jobs(places: Iterable[Place], problems: list[str]) -> dict[tuple[str, int], Job]:
    keys: dict[str, set[str]] = {}
    for place in {place.key: place for place in places}.values():
        try:
            kind = Submission(place.submission).intent().launcher
        except Dsv3Error as error:
            problems.append(str(error))
            continue
        keys.setdefault(kind, set()).add(place.key)
    found: dict[tuple[str, int], Job] = {}
    for kind, wanted in keys.items():
        scheduler = SCHEDULERS[kind]()
        try:
            now = scheduler.jobs(sorted(wanted))
        except SchedulerError as error:
            problems.append(str(error))
            continue
        rest = wanted - {job.key for job in now}
        for job in [*(scheduler.past(sorted(rest)) if rest else []), *now]:
            if job.live or (job.key, job.index) not in found:
                found[job.key, job.index] = job
    return found


def _problem(place: Place) -> str | None:
    """What the job said of its last end, unless it saved and goes on."""
    try:
        ended = Submission(place.submission).ending(place.index)
    except Dsv3Error:
        return None
    if ended is None or ended.get("requeue") or not ended.get("problems"):
        return None
    return str(ended["problems"][0])
