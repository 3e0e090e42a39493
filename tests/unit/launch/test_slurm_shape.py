"""Nodes, tasks and GPUs follow from the layout; what does not fit names both sides."""

import pytest

from dsv3.config.compose import compose
from dsv3.errors import CapacityError, ConfigError
from dsv3.launch.launchers import launcher_of
from dsv3.launch.slurm.profile import Profile, load_profile, profile_names
from dsv3.launch.slurm.shape import refuse_too_small, shape_of

QUANTUM = "schedule.batch_size_quantum=8"
NODE = Profile(time="1:00:00", cpus_per_node=64, gpus_per_node=8)


def config(*words: str):
    return compose(["model=moe_nano", "launcher=slurm", "launcher.profile=test", *words]).config


@pytest.mark.parametrize(
    ("layout", "nodes", "ranks", "gpus"),
    [("single", 1, 1, 1), ("ep2_dp2", 1, 4, 4), ("ep8", 1, 8, 8), ("ep8_dp4", 4, 8, 8)],
)
def test_a_layout_fills_nodes(layout, nodes, ranks, gpus):
    shape = shape_of(
        compose(
            ["model=moe_16b", "launcher=slurm", "launcher.profile=h800", f"parallelism={layout}"]
        ).config,
        NODE,
    )
    assert (shape.nodes, shape.ranks_per_node, shape.gpus_per_node) == (nodes, ranks, gpus)
    assert shape.cpus_per_rank == 8, "of a full node, so that a rank has as many on any"
    assert shape.time == "1:00:00"


def test_what_the_launcher_says_comes_before_the_profile():
    shape = shape_of(
        config("launcher.time=90", "launcher.threads_per_rank=3", "launcher.device=cpu"), NODE
    )
    assert (shape.time, shape.cpus_per_rank, shape.gpus_per_node) == ("90", 3, 0)


@pytest.mark.parametrize(
    ("words", "changes", "both"),
    [
        (["parallelism=dp8", QUANTUM], {"ranks_per_node": 3}, ["8 ranks", "profile=test"]),
        (
            ["parallelism=dp8", QUANTUM],
            {"ranks_per_node": 2, "max_nodes": 2},
            ["8 ranks", "max_nodes"],
        ),
        (["launcher.device=cuda"], {"gpus_per_node": 0}, ["device=cuda", "gpus_per_node=0"]),
        ([], {"ranks_per_node": 9}, ["ranks_per_node=9", "gpus_per_node=8"]),
        (["launcher.threads_per_rank=65"], {}, ["threads_per_rank=65", "cpus_per_node=64"]),
        (["parallelism=dp8", QUANTUM], {"cpus_per_node": 4}, ["cpus_per_node=4", "8 ranks"]),
    ],
)
def test_a_mismatch_names_both(words, changes, both):
    with pytest.raises(ConfigError) as caught:
        shape_of(config(*words), NODE.model_copy(update=changes))
    for word in both:
        assert word in str(caught.value)


def test_nodes_too_small_for_the_state_are_refused():
    small = NODE.model_copy(update={"gpu_memory_gib": 1.0})
    big = compose(["model=moe_16b", "launcher=slurm", "launcher.profile=h800"]).config
    with pytest.raises(CapacityError, match=r"a GPU here has 1\.0 GiB"):
        refuse_too_small(big, small)
    refuse_too_small(big, NODE.model_copy(update={"gpu_memory_gib": 141.0}))


def test_the_hosts_of_a_cluster_are_not_asked_for_what_is_installed_here():
    """Transformer Engine may be there and not here; a rank finds out."""
    words = ["model=moe_16b", "launcher=slurm", "launcher.profile=h800", "precision=fp8_block"]
    refuse_too_small(compose(words).config, NODE.model_copy(update={"gpu_memory_gib": 141.0}))


def test_runs_of_one_shape_share_an_array():
    first = config("seed=1"), config("seed=2"), config("parallelism=dp2", "seed=3")
    arrays = launcher_of(first).arrays(first, "x")
    assert [array.runs for array in arrays] == [(0, 1), (2,)]


def test_runs_of_two_launchers_are_no_command():
    with pytest.raises(ConfigError, match="one launcher"):
        launcher_of([config(), compose(["model=moe_nano"]).config])


# Profiles


def put(tmp_path, text: str, name: str = "mine") -> None:
    home = tmp_path / "launchers" / "profiles"
    home.mkdir(parents=True, exist_ok=True)
    (home / f"{name}.yaml").write_text(text)


def test_every_shipped_profile_is_one():
    assert {"test", "h800", "h800_pyxis"} <= set(profile_names())
    assert all(load_profile(name).time for name in profile_names())


def test_a_users_own_profile_shadows_ours_and_numbers_stay_as_written(tmp_path):
    put(
        tmp_path,
        "time: 4:00:00\ncpus_per_node: 3\nenvironment: {A: 0.10, B: 1e3, C: 010}\n",
        "test",
    )
    mine = load_profile("test", tmp_path)
    assert (mine.time, mine.cpus_per_node) == ("4:00:00", 3)
    assert mine.environment == {"A": "0.10", "B": "1e3", "C": "010"}


def test_a_users_own_template_shadows_ours(tmp_path):
    put(tmp_path, "time: 60\ncpus_per_node: 1\n")
    words = ["model=moe_nano", "launcher=slurm", "launcher.profile=mine"]
    mine = compose(words, config_dir=tmp_path).config
    (tmp_path / "launchers" / "slurm.sh.j2").write_text("#!/bin/bash\n# {{ shape.ranks }} mine\n")
    [array] = launcher_of([mine], tmp_path).arrays([mine], "x")
    assert array.script("0" * 12, tmp_path) == "#!/bin/bash\n# 1 mine\n"
    (tmp_path / "launchers" / "slurm.sh.j2").write_text("{{ shape.rank }}")
    with pytest.raises(ConfigError, match="no attribute 'rank'"):
        array.script("0" * 12, tmp_path)
    put(tmp_path, "time: 60\ncpus_per_node: 1\ntemplate: other.j2\n")
    [array] = launcher_of([mine], tmp_path).arrays([mine], "x")
    with pytest.raises(ConfigError, match=r"no other\.j2 in"):
        array.script("0" * 12, tmp_path)


def test_everything_wrong_with_a_profile_is_said_at_once(tmp_path):
    put(tmp_path, "tme: 1\ncpus_per_node: -1\nenvironment: {'a b': x}\n")
    with pytest.raises(ConfigError) as caught:
        load_profile("mine", tmp_path)
    said = str(caught.value)
    for words in ("did you mean time?", "cpus_per_node=-1", "no name of a variable", "time: field"):
        assert words in said
    with pytest.raises(ConfigError, match=r"did you mean mine\?"):
        load_profile("mien", tmp_path)
