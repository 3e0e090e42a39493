"""`evaluation`: the loss on held-out text."""

from dsv3.config.section import Section, field


class EvaluationConfig(Section):
    """Always at the end of a run, and every so many steps if asked."""

    every_steps: int | None = field("Also evaluate every so many steps; null: at the end only.", gt=0)
    sequences: int = field("Held-out sequences per evaluation, spread over domains.", gt=0)
