"""What every section of the configuration has in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen group of keys; unknown keys are refused, numbers must be finite.

    No field has a default: every value lives in one YAML file under conf/.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, strict=False, validate_default=True
    )


def field(description: str, **constraints: Any) -> Any:
    """Declare a required, described key; `constraints` are pydantic's (gt, ge, le, ...)."""
    return Field(..., description=description, **constraints)
