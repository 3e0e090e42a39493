"""One launch per world size for all tests of this directory."""

from collections.abc import Callable

import pytest

from distributed.ranks import Report, launch


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, list[Report]]]:
    """By world size: what every rank reports, by case."""
    launched: dict[int, dict[str, list[Report]]] = {}
    failed: dict[int, str] = {}

    def of_world(world: int) -> dict[str, list[Report]]:
        if world not in launched and world not in failed:
            try:
                launched[world] = launch(world, tmp_path_factory.mktemp(f"world{world}"))
            except Exception as error:
                failed[world] = str(error).splitlines()[0]  # told once in full, not started again
                raise
        assert world not in failed, f"{world} ranks were started before: {failed[world]}"
        return launched[world]

    return of_world
