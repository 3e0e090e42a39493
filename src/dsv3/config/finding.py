"""What the linter says: a configuration that is possible and yet probably not what was meant."""

from dataclasses import dataclass

from dsv3.errors import Problem


@dataclass(frozen=True)
class Finding:
    """A warning: stable id, the setting as the user would write it, the reason, the way out."""

    id: str
    setting: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"warning[{self.id}]: {self.setting}: {self.reason}; {self.remedy}"

    def as_problem(self) -> Problem:
        """The same as an error, where warnings are not accepted."""
        return Problem(self.setting, f"{self.reason} [{self.id}]", self.remedy)
