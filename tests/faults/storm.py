"""Kills a run at random times, asks for it again, and compares what becomes of it."""

import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from dsv3.runs.rank import RANK_MODULE
from dsv3.runs.records import read_lines
from faults.small_run import metrics, overrides, write_text
from patience import GONE_S, HANG_S, Stopwatch

STEPS, SAVE_EVERY, EVALUATE_EVERY = 32, 4, 10
POLL_S = 0.004
IN_A_SAVE, IN_TRAINING = "saving", "training"
WANTED = {"run.digests": "true", "schedule.micro_batch_size": 1}


def words(home: Path, *, steps: int, layout: str) -> list[str]:
    """What asks for the run of a storm: two data ranks with half the experts, two micro batches."""
    text = home / "text.jsonl"
    if not text.exists():
        write_text(text)
    return [
        *overrides(text, steps=steps),
        *(f"{key}={value}" for key, value in WANTED.items()),
        f"parallelism={layout}",
        "mtp=depth1",
        "balance=aux_free",
        f"checkpoint.every_steps={SAVE_EVERY}",
        f"evaluation.every_steps={EVALUATE_EVERY}",
        "health.window_steps=6",  # windows that checkpoints cut
    ]


def lines(run: Path, name: str) -> list[str]:
    """The whole lines of a file that may not be there, or not be finished."""
    path = run / name
    text = path.read_text() if path.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def steps_done(run: Path) -> int:
    """The last step in metrics.jsonl."""
    last = lines(run, "metrics.jsonl")[-1:]
    return int(json.loads(last[0])["step"]) if last else 0


def starts(run: Path) -> list[int]:
    """The step each attempt went on from."""
    return [line["step"] for line in read_lines(run / "events.jsonl") if line["event"] == "started"]


def newest_save(run: Path | None) -> int:
    """The step of the newest checkpoint, 0 without any."""
    paths = [] if run is None else run.glob("checkpoints/step-*")
    return max((int(path.name.removeprefix("step-")) for path in paths), default=0)


def writing(run: Path) -> bool:
    """Whether a save is under way, or was when the run died."""
    return any((run / "checkpoints").glob(".step-*.writing"))


def processes(home: Path) -> list[psutil.Process]:
    """Everything alive that was started with a path in `home` among its arguments."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        named = any(f"{home}/" in word for word in process.info["cmdline"] or ())
        if named and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@dataclass
class Attempt:
    """The run as asked for once: `dsv3 train` and its ranks."""

    home: Path
    run_root: str
    command: list[str]
    steps: int = STEPS
    began_s: float = field(default_factory=time.monotonic)
    first_step_s: float | None = None

    def __post_init__(self) -> None:
        self.root = self.home / self.run_root  # absolute: ranks are known by it
        self.has_begun = False
        self.ranks: list[psutil.Process] = []
        self.starts_before = len(starts(run)) if (run := self.run) is not None else 0
        with (self.home / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dsv3", "train", *self.command, f"run_root={self.root}"],
                cwd=self.home,
                stdout=output,
                stderr=output,
            )

    @property
    def run(self) -> Path | None:
        """The directory of the run, once it is made."""
        found = [path for path in self.root.glob("*") if not path.name.startswith(".")]
        return found[0] if found else None

    @property
    def steps_made(self) -> int:
        """Steps of this attempt; none before the ranks know where they go on."""
        run = self.run
        if run is None or len(began := starts(run)) == self.starts_before:
            return 0
        self.has_begun = True
        return steps_done(run) - began[-1]

    def made_its_first_step(self, ago_s: float) -> bool:
        """Whether that is so long ago."""
        return self.first_step_s is not None and time.monotonic() >= self.first_step_s + ago_s

    def watch(self, until: Callable[[], bool]) -> bool:
        """Wait for `until`; False if the attempt ends first. Notes when its first step is done."""
        while self.process.poll() is None:
            if self.first_step_s is None and self.steps_made > 0:
                self.first_step_s = time.monotonic()
                self.ranks = self._find_ranks()
            if until():
                return True
            assert time.monotonic() - self.began_s < HANG_S, "HANG: nobody killed it"
            time.sleep(POLL_S)
        return False

    def kill(self, draw: random.Random) -> str | None:
        """SIGKILL the launcher or a rank; what it was doing, None if it had ended. All follow."""
        launcher = psutil.Process(self.process.pid)
        self.ranks = self.ranks or self._find_ranks()
        victim = draw.choice([launcher, *self.ranks])
        saves = self.run is not None and writing(self.run)
        with suppress(psutil.NoSuchProcess):
            victim.kill()
        watch = Stopwatch()
        while self.process.poll() is None or processes(self.home):
            left = [process.pid for process in processes(self.home)]
            assert watch.look() < GONE_S, f"HANG: {left} outlived a kill of {victim}"
            time.sleep(10 * POLL_S)  # looking at all processes takes a while
        if self.process.returncode == 0:
            return None
        assert self.process.returncode in (-signal.SIGKILL, 8), self.process.returncode
        return self._phase(saves)

    def _find_ranks(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # one that asks git, say
                if RANK_MODULE in child.cmdline():
                    found.append(child)
        return found

    def _phase(self, saves: bool) -> str:
        """What it was doing, as far as the files tell, which nobody changes any more."""
        run, made = self.run, self.steps_made
        if run is None or not self.has_begun:
            return "starting" if self.ranks else "launching"
        if saves or writing(run):
            return IN_A_SAVE
        if (done := steps_done(run)) == self.steps:
            return "ending"
        if made == 0:
            return "before a step"
        last = json.loads(lines(run, "metrics.jsonl")[-1])
        evaluates = done % EVALUATE_EVERY == 0 and last.get("kind") != "eval"
        return "evaluating" if evaluates else IN_TRAINING


@dataclass
class Tally:
    """What became of the kills so far."""

    phases: Counter[str] = field(default_factory=Counter)
    exact: int = 0
    lost_steps: list[int] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """How many have fired."""
        return self.phases.total()

    def __str__(self) -> str:
        fell = ", ".join(f"{phase} {count}" for phase, count in self.phases.most_common())
        text = f"{self.kills} kills ({fell}): EXACT {self.exact}"
        if self.recovery_s:
            tail = sorted(self.recovery_s)[int(0.95 * len(self.recovery_s))]
            text += f", from kill to new step {statistics.median(self.recovery_s):.1f} s median"
            text += f" {tail:.1f} s p95"
        if self.lost_steps:
            median, most = statistics.median(self.lost_steps), max(self.lost_steps)
            text += f", steps lost {median:g} median {most} most"
        return text


class Storm:
    """Kills until enough have fired; every run that gets through must equal the reference."""

    def __init__(self, home: Path, *, seed: int, steps: int = STEPS, layout: str = "ep2") -> None:
        self.home = home
        self.seed = seed
        self.steps = steps
        self.tally = Tally()
        self.runs = 0
        self._draw = random.Random(seed)
        self._words = words(home, steps=steps, layout=layout)
        self._unrecovered: list[float] = []
        whole = self._ask("whole")
        assert whole.watch(lambda: whole.steps_made > 1), self.output()
        assert len(processes(home)) >= 3, "orphans would not be found"
        assert not whole.watch(lambda: False) and whole.process.returncode == 0, self.output()
        assert whole.first_step_s is not None
        self._startup_s = whole.first_step_s - whole.began_s
        self._training_s = time.monotonic() - whole.first_step_s
        assert whole.run is not None
        self.reference = whole.run

    def output(self) -> str:
        """What the launchers said."""
        return (self.home / "output.txt").read_text()[-4000:]

    def run(self, kills: int) -> None:
        """Storm over run after run until `kills` have fired and the last run is complete."""
        while self.tally.kills < kills:
            self.runs += 1
            self._one_run(f"storm-{self.runs}", kills)

    def _one_run(self, run_root: str, kills: int) -> None:
        fired = 0
        while True:
            attempt = self._ask(run_root)
            if self.tally.kills >= kills or not attempt.watch(self.moment(attempt, self._draw)):
                attempt.watch(lambda: False)
                break
            self._recovered(attempt)
            if (phase := attempt.kill(self._draw)) is None:
                break
            self._unrecovered.append(time.monotonic())
            self.tally.phases[phase] += 1
            fired += 1
            self._count_lost_steps(attempt, phase)
            if self.tally.kills % 10 == 0:
                print(self.tally, flush=True)
        code = attempt.process.returncode
        assert code == 0, f"LOST, exit code {code}, {self.where()}: {self.output()}"
        self._recovered(attempt)
        assert attempt.run is not None
        require_equal(attempt.run, self.reference, self.steps, self.where())
        assert not processes(self.home), f"orphans, {self.where()}"
        self.tally.exact += fired
        shutil.rmtree(self.home / run_root)

    def _ask(self, run_root: str) -> Attempt:
        return Attempt(self.home, run_root, self._words, self.steps)

    def where(self) -> str:
        """What repeats this storm."""
        return f"seed {self.seed}, after {self.tally}"

    def moment(self, attempt: Attempt, draw: random.Random) -> Callable[[], bool]:
        """When to kill: at a random time; of four one in a save, one after the first step."""
        turn = self.tally.kills % 4
        if turn == 3:
            return in_a_save(attempt, draw.randint(1, 2))
        training_s = self._training_s * (1 - newest_save(attempt.run) / self.steps)
        if turn == 1:
            delay_s = draw.uniform(0, training_s)
            return lambda: attempt.made_its_first_step(delay_s)
        moment = attempt.began_s + draw.uniform(0, self._startup_s + training_s)
        return lambda: time.monotonic() >= moment

    def _recovered(self, attempt: Attempt) -> None:
        if attempt.first_step_s is not None:
            self.tally.recovery_s += [attempt.first_step_s - each for each in self._unrecovered]
            self._unrecovered = []

    def _count_lost_steps(self, attempt: Attempt, phase: str) -> None:
        run = attempt.run
        if run is None or not attempt.has_begun:
            return  # nothing was done
        lost = steps_done(run) - newest_save(run)
        self.tally.lost_steps.append(lost)
        # While a save is being written training may go on, to the next one at most.
        most = 2 * SAVE_EVERY if phase == IN_A_SAVE else SAVE_EVERY
        assert 0 <= lost <= most, f"{lost} steps lost {phase}, {self.where()}"


def in_a_save(attempt: Attempt, number: int) -> Callable[[], bool]:
    """Whether the attempt is in its `number`-th save."""
    seen: set[Path] = set()

    def saving() -> bool:
        if attempt.has_begun and attempt.run is not None:
            seen.update(attempt.run.glob("checkpoints/.step-*.writing"))
        return len(seen) >= number

    return saving


class DenseStorm(Storm):
    """Kills after as many steps as in a machine that fails every other checkpoint."""

    def moment(self, attempt: Attempt, draw: random.Random) -> Callable[[], bool]:
        """When to kill: after steps whose mean is two intervals, without memory."""
        steps = draw.expovariate(1 / (2 * SAVE_EVERY))
        return lambda: attempt.has_begun and attempt.steps_made >= steps


def require_equal(run: Path, reference: Path, steps: int, where: str) -> None:
    """Assert that a run is the reference bit for bit, and left nothing behind."""
    digests, wanted = lines(run, "digests.jsonl"), lines(reference, "digests.jsonl")
    for ours, theirs in zip(digests, wanted, strict=False):
        assert ours == theirs, f"SILENT-WRONG, {where}"
    assert len(digests) == len(wanted) == steps + 1, f"SILENT-WRONG, {where}"
    assert metrics(run) == metrics(reference), f"SILENT-WRONG, {where}"
    names, kept = (
        {path.name for path in (each / "checkpoints").iterdir()} for each in (run, reference)
    )
    # Killed after its last save but before that removed the oldest, a run keeps one more.
    assert kept <= names and len(names - kept) <= 1, f"{names}, {where}"
    hidden = [str(path) for path in run.rglob(".*")]
    assert hidden == [], f"left behind: {hidden}, {where}"
    assert (run / "DONE").exists() and not (run / "FAILED").exists(), where
