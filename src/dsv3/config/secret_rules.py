"""The rule that keeps secrets out of configurations: these are written down, shown and uploaded."""

from collections.abc import Iterator

from dsv3.config.diff import leaves
from dsv3.config.root import RunConfig
from dsv3.errors import Problem
from dsv3.redaction import HIDDEN, holder_of_secret


def no_value_holds_a_secret(config: RunConfig) -> Iterator[Problem]:
    """Ranks read config.yaml as it stands and directories are named by it: nothing can be hidden.

    The one rule that looks at the environment: what is secret, only its variables know.
    """
    for key, value in leaves(config.model_dump(mode="json")):
        holder = holder_of_secret(value) if isinstance(value, str) else None
        if holder is not None:
            yield Problem(
                f"{key}={HIDDEN}",
                f"holds {holder}, and configurations are kept and shown",
                "give another value; programs that need the secret find it in the environment",
            )
