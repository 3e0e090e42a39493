import json
from pathlib import Path

import pytest

from dsv3.config.recipe import Recipe
from dsv3.errors import CheckpointError, ConfigError
from dsv3.sweep.record import (
    SweepRecord,
    SweepRun,
    find,
    find_or_refuse,
    keep,
    load,
    new_record,
    record_path,
    records,
    sweep_id,
)

RECIPE = Recipe.model_validate(
    {
        "question": "Which?",
        "axis": ["balance"],
        "baseline": "one",
        "arms": {"one": ["balance=none"], "two": ["balance=aux_free"]},
        "seeds": [1],
        "metric": "loss",
        "rule": {"better": "lower"},
    }
)


def record(root: Path, *, name: str = "table5", seeds: tuple[int, ...] = (1, 2), **more: object):
    runs = [
        SweepRun(id=f"{arm}-s{seed}", arm=arm, seed=seed, overrides=(f"balance={arm}",))
        for arm in ("one", "two")
        for seed in seeds
    ]
    values = {"recipe": RECIPE, "baseline": "one", "model": "moe_nano", "command": ["dsv3"]}
    return new_record(name=name, run_root=root / "runs", runs=runs, **{**values, **more})


def test_the_same_sweep_is_the_same_file_written_once(tmp_path: Path) -> None:
    root = tmp_path / "sweeps"
    first = keep(record(tmp_path), root)
    path = record_path(root, first.id)
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert keep(record(tmp_path, command=["another"]), root) == first
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert load(path) == first
    assert [entry.name for entry in root.iterdir()] == [path.name], "nothing else is left"
    assert first.arms == ("one", "two")
    assert first.directory(first.runs[0]).path == tmp_path / "runs" / "one-s1"


def test_the_id_is_made_of_recipe_and_runs_alone(tmp_path: Path) -> None:
    one = record(tmp_path)
    assert record(tmp_path / "elsewhere", command=["x"], model="y").id == one.id
    assert record(tmp_path, seeds=(1, 3)).id != one.id
    assert record(tmp_path, recipe=None).id != one.id
    assert record(tmp_path, name="other").id.startswith("other-")
    assert sweep_id("n", None, ["b", "a"]) == sweep_id("n", None, ["a", "b"])


def test_secrets_are_not_kept(tmp_path: Path) -> None:
    run = SweepRun(id="r", arm="a", seed=1, overrides=("tracking.api_key=sentinel",))
    made = record(tmp_path, command=["dsv3", "tracking.api_key=sentinel"]).model_copy()
    made = new_record(
        name="n",
        recipe=None,
        baseline="a",
        model="m",
        run_root=tmp_path,
        command=["dsv3", "--token", "sentinel", "tracking.api_key=sentinel"],
        runs=[run],
    )
    keep(made, tmp_path / "sweeps")
    assert "sentinel" not in record_path(tmp_path / "sweeps", made.id).read_text()


def test_runs_elsewhere_are_refused_and_moved_ones_followed(tmp_path: Path) -> None:
    root = tmp_path / "sweeps"
    here = keep(record(tmp_path / "a"), root)
    (tmp_path / "a/runs").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"write run_root={tmp_path}/a/runs"):
        keep(record(tmp_path / "b"), root)
    (tmp_path / "a").rename(tmp_path / "b")
    assert keep(record(tmp_path / "b"), root).run_root == tmp_path / "b/runs" != here.run_root


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "invalid JSON"),
        (lambda text: "", "invalid JSON"),
        (lambda text: "[]", "should be a valid dict|Input should be an object"),
        (lambda text: text.replace('"one-s1"', '"one-s9"'), "its content is that of"),
        (lambda text: text.replace('"one-s1"', '"../../etc"'), r"runs\.0\.id"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "has format 2"),
        (lambda text: text.replace('"seed": 1', '"seed": "x"'), r"runs\.0\.seed"),
        (lambda text: text.replace('"baseline"', '"base"'), "base"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_with_the_remedy(tmp_path, damage, said) -> None:
    root = tmp_path / "sweeps"
    path = record_path(root, keep(record(tmp_path), root).id)
    text = path.read_text()
    path.write_text(damage(text))
    assert path.read_text() != text
    for attempt in (
        lambda: load(path),
        lambda: find(path.stem, root),
        lambda: find(str(path), root),
    ):
        with pytest.raises(CheckpointError, match=f"(?is){said}.*ask for the same sweep again"):
            attempt()
    with pytest.raises(CheckpointError, match="remove it"):
        keep(record(tmp_path), root)
    assert list(records(root)) == [], "others are still found"


def test_a_sweep_is_found_by_path_id_beginning_and_recipe(tmp_path: Path) -> None:
    root = tmp_path / "sweeps"
    old = keep(record(tmp_path).model_copy(update={"created_at": "2026-01-01"}), root)
    new = keep(record(tmp_path, seeds=(3,)).model_copy(update={"created_at": "2026-02-01"}), root)
    other = keep(record(tmp_path, name="table4"), root)

    def found(word: str) -> SweepRecord:
        return find_or_refuse(word, root)[0]

    assert found(str(record_path(root, old.id))) == old
    assert found(old.id) == old
    assert found("table5") == new, "the newest of the recipe"
    assert found(old.id[:-2]) == old
    assert found("table4-") == other
    with pytest.raises(ConfigError, match="several sweeps begin so: .*write more"):
        found("tab")
    with pytest.raises(ConfigError, match=f"no such sweep in {root}; did you mean {old.id}"):
        found(f"{old.id[:-1]}_")
    with pytest.raises(ConfigError, match="sweep_root=DIR looks elsewhere"):
        find_or_refuse("x", tmp_path / "nowhere")
    assert [each.id for each in records(root)][1:] == [new.id, old.id]
    assert find("", root) is None


def test_what_is_written_is_plain_json(tmp_path: Path) -> None:
    made = keep(record(tmp_path, recipe=None), tmp_path / "sweeps")
    data = json.loads(record_path(tmp_path / "sweeps", made.id).read_text())
    assert data["format"] == 1 and data["recipe"] is None
    assert data["run_root"] == str(tmp_path / "runs")
