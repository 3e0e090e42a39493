"""What goes wrong while configurations are composed, in words: whose problem it is, and why."""

from collections.abc import Iterable, Sequence

from dsv3.errors import Problem


def named(problem: Problem, numbers: list[int], arms: list[tuple[str, ...]]) -> Problem:
    """Say which arms a problem belongs to, unless it is all of them."""
    if len(numbers) == len(arms):
        return problem
    varied = [{setting for arm in arms for setting in (arm[i],)} for i in range(len(arms[0]))]
    first = arms[numbers[0]]
    label = " ".join(setting for setting, seen in zip(first, varied, strict=True) if len(seen) > 1)
    others = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
    return Problem(problem.setting, f"{problem.rule} [arm {label}{others}]", problem.remedy)


def about_others(problems: Iterable[Problem], names: Sequence[str]) -> list[Problem]:
    """Problems that mention none of `names`."""
    return [problem for problem in problems if not any(name in str(problem) for name in names)]


def complaint(error: BaseException) -> Problem:
    """What Hydra or OmegaConf says, without its search path and internals."""
    lines = str(error).partition("\nConfig search path")[0].splitlines()
    if error.__cause__ is not None:
        lines += str(error.__cause__).splitlines()
    noise = ("full_key:", "object_type=", "To append to your config")
    said = [line.strip() for line in lines if line.strip() and not line.strip().startswith(noise)]
    key = getattr(error, "full_key", None) or getattr(error.__cause__, "full_key", None) or ""
    return Problem(
        key, "; ".join(said).rstrip(".") or type(error).__name__, "see `dsv3 config show` and `ls`"
    )
