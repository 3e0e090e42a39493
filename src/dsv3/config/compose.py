"""From overrides to validated RunConfigs; the only importer of Hydra and OmegaConf.

Hydra merges files and parses the override grammar. Everything else is ours: which words are
allowed, sweeps, messages. All problems are found before anything starts, and are raised together.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice, product
from pathlib import Path
from typing import Any
from warnings import catch_warnings

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.core.override_parser.types import Quote, QuotedString, Transformer
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from pydantic import ValidationError

from dsv3.config import rules
from dsv3.config.complaints import about_others, complaint, named
from dsv3.config.locations import shipped
from dsv3.config.options import RECIPE, Catalogue, catalogue
from dsv3.config.overrides import (
    Override,
    Word,
    check,
    check_option,
    home_expanded,
    take_apart,
    text_key,
    unreadable,
)
from dsv3.config.problems import translate
from dsv3.config.root import RunConfig
from dsv3.config.yaml_text import read_vetted
from dsv3.errors import ConfigError, Problem

MAX_ARMS = 1000


@dataclass(frozen=True)
class Composed:
    """A validated configuration, the overrides (canonical) that made it, and the options in it."""

    config: RunConfig
    overrides: tuple[str, ...]
    choices: Mapping[str, str] = field(default_factory=dict)


def compose(overrides: Sequence[str] = (), *, config_dir: Path | None = None) -> Composed:
    """Compose and validate one run.

    `config_dir` holds the user's own groups; its options shadow shipped ones of the same name.
    Raises ConfigError with every problem found.
    """
    return _compose_all(overrides, config_dir=config_dir, sweeping=False)[0]


def compose_sweep(overrides: Sequence[str], *, config_dir: Path | None = None) -> list[Composed]:
    """Compose and validate every arm of a sweep (`a,b`, `range()`, `choice()`, `glob()`).

    The last override varies fastest; arms that repeat an earlier one are left out. Raises
    ConfigError with every problem of every arm, each once.
    """
    return _compose_all(overrides, config_dir=config_dir, sweeping=True)


def read_words(
    lists: Sequence[Sequence[str]], *, config_dir: Path | None = None
) -> list[tuple[list[Override], list[Problem]]]:
    """For each list: the overrides that make sense by themselves, and the problems of the others.

    Nothing is composed; of each key the last override counts; values may be lists.
    """
    options = catalogue(config_dir)
    with _hydra(config_dir):
        return [_parse(words, options, sweeping=True) for words in lists]


def merged_recipe(name: str, *, config_dir: Path | None = None) -> Any:
    """Plain data of a recipe, merged with those in its defaults list; not validated.

    Raises ConfigError if there is no such recipe, or if its files do not fit together.
    """
    options = catalogue(config_dir)[RECIPE]
    if problems := list(check_option(RECIPE, name, name, options)):
        raise ConfigError(problems)
    own = None if config_dir is None else config_dir / RECIPE
    try:
        with (
            _hydra(own if own is not None and own.is_dir() else None, shipped("recipes")),
            catch_warnings(action="ignore"),  # a list without _self_ is fine: what is written wins
        ):
            return OmegaConf.to_container(hydra_compose(name), resolve=True)
    except RecursionError:
        rule, remedy = "inherits from itself", "give a recipe that begins with another its own name"
        raise ConfigError(Problem(str(options[name].path), rule, remedy)) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(Problem(str(options[name].path), complaint(error).rule)) from None


def _compose_all(
    words: Sequence[str], *, config_dir: Path | None, sweeping: bool
) -> list[Composed]:
    options = catalogue(config_dir)
    with _hydra(config_dir):
        parsed, problems = _parse(words, options, sweeping=sweeping)
        arms, bases = _arms(parsed), _Bases(options)
        # What is wrong by itself is left out; rules about these groups and keys would mislead.
        left_out = [name for p in problems if (name := p.setting.partition("=")[0].strip("+~"))]
        built: list[Composed] = []
        found: dict[Problem, list[int]] = {}
        for number, arm in enumerate(arms):
            composed, wrong = _build(arm, left_out, bases)
            for problem in wrong:
                found.setdefault(problem, []).append(number)
            if composed is not None:
                built.append(composed)
    problems += [named(problem, numbers, arms) for problem, numbers in found.items()]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return built


def _parse(
    words: Sequence[str], options: Catalogue, *, sweeping: bool
) -> tuple[list[Override], list[Problem]]:
    """Overrides that make sense, the last of each key; and the problems of those that do not."""
    good: dict[str, Override] = {}
    problems: list[Problem] = []
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    for written in words:
        word = take_apart(written, options)
        override = _read(word, options, parser) if isinstance(word, Word) else word
        if isinstance(override, Problem):
            problems.append(override)
            continue
        wrong = list(check(override, options, sweeping=sweeping))
        problems += wrong
        if not wrong:
            good.pop(override.key, None)
            good[override.key] = override
    return list(good.values()), problems


def _read(word: Word, options: Catalogue, parser: OverridesParser) -> Override | Problem:
    """Parse the value with Hydra's grammar; a text that does not obey it is taken as it stands."""
    is_text = text_key(word, options) is not None
    try:
        parsed = parser.parse_overrides([f"{word.key}={word.value}"])[0]
        if is_text and isinstance(parsed.value(), bool | int | float):
            return Override(word, (_quoted(word.value),), is_sweep=False)
        return Override(word, _values(parsed, is_text=is_text), parsed.is_sweep_override())
    except (HydraException, ValueError, ArithmeticError) as error:
        if is_text and word.value[:1] not in ("'", '"'):
            return Override(word, (_quoted(home_expanded(word.value)),), is_sweep=False)
        return unreadable(word, _reason(error))


def _reason(error: Exception) -> str:
    """What went wrong in `range()` and its like; nothing of the grammar's own complaints."""
    if not isinstance(error, HydraException):
        return str(error)
    return next((line for line in str(error).splitlines() if "while evaluating" in line), "")


def _values(parsed: HydraOverride, *, is_text: bool) -> tuple[str, ...]:
    """The value, or the values of a sweep, in the spelling in which they are recorded."""

    def spelled(value: Any) -> str:
        if isinstance(value, bool | int | float):
            plain = str(value).lower() if isinstance(value, bool) else str(value)
            return _quoted(plain) if is_text else plain
        return str(Transformer.str(value))

    if not parsed.is_sweep_override():
        value = parsed.value()
        return (spelled(value) if isinstance(value, bool) else parsed.get_value_element_as_str(),)
    if not parsed.is_discrete_sweep():
        raise ValueError("interval() is for a search; give values, range() or choice()")
    values = tuple(islice(map(spelled, parsed.sweep_iterator()), MAX_ARMS + 1))
    if len(values) > MAX_ARMS:
        raise ValueError(f"more than {MAX_ARMS} values")
    return values


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def _arms(overrides: Iterable[Override]) -> list[tuple[str, ...]]:
    """Cartesian product of all values, without repetitions."""
    arms = dict.fromkeys(islice(product(*(o.settings() for o in overrides)), MAX_ARMS + 1))
    if len(arms) > MAX_ARMS:
        raise ConfigError(f"the sweep has more than {MAX_ARMS} arms; split it into several")
    return list(arms)


class _Bases:
    """What files alone make of each choice of options; values are set in copies of it.

    Merging the files is most of a composition, and the arms of a sweep choose few sets of them.
    """

    def __init__(self, options: Catalogue) -> None:
        self._options = options
        self._found: dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]] = {}

    def merge(self, settings: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """Plain data and the option of each group.

        Raises ConfigError if files do not fit together, a value is missing or a reference is wrong.
        """
        chosen = tuple(s for s in settings if s.partition("=")[0] in self._options)
        values = [setting for setting in settings if setting not in chosen]
        try:
            if chosen not in self._found:
                self._found[chosen] = _files_merged(chosen)
            ours, choices = self._found[chosen]
            ours = deepcopy(ours)
            for override in OverridesParser.create().parse_overrides(values):
                # Forced, so that a key below a null section can be set; that it exists is known.
                key = override.key_or_group
                OmegaConf.update(ours, key, override.value(), merge=True, force_add="." in key)
            return _resolved(ours), choices
        except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
            raise ConfigError(complaint(error)) from None


def _files_merged(chosen: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    merged = hydra_compose("config", overrides=list(chosen), return_hydra_config=True)
    choices = {
        str(group): str(option)
        for group, option in merged.hydra.runtime.choices.items()
        if option is not None and not str(group).startswith("hydra/")
    }
    ours = OmegaConf.masked_copy(merged, [str(key) for key in merged if key != "hydra"])
    OmegaConf.set_struct(ours, True)
    return ours, choices


def _build(
    arm: tuple[str, ...], left_out: Sequence[str], bases: _Bases
) -> tuple[Composed | None, list[Problem]]:
    """Compose and validate one arm; rules about groups and keys in `left_out` are not told."""
    try:
        plain, choices = bases.merge(arm)
        config = RunConfig.model_validate(plain)
    except ConfigError as error:
        return None, list(error.problems)
    except ValidationError as error:
        findings = list(translate(error))
        wrong = [*left_out, *(key for key, _ in findings)]
        return None, [problem for _, problem in findings] + _rules_of_the_rest(arm, wrong, bases)
    return Composed(config, arm, choices), about_others(rules.broken(config), left_out)


def _rules_of_the_rest(arm: tuple[str, ...], wrong: Sequence[str], bases: _Bases) -> list[Problem]:
    """Rules broken without the wrong overrides: people should not meet problems one by one."""
    rest = tuple(setting for setting in arm if setting.partition("=")[0] not in wrong)
    if rest == arm:
        return []
    try:
        config = RunConfig.model_validate(bases.merge(rest)[0])
    except (ConfigError, ValidationError):
        return []
    return about_others(rules.broken(config), wrong)


def _resolved(ours: DictConfig) -> dict[str, Any]:
    """Plain data, references replaced by what they refer to."""
    try:
        missing = sorted(OmegaConf.missing_keys(ours))
        if missing:
            raise ConfigError(
                [Problem(f"{key}=???", "has no value yet", "give it one") for key in missing]
            )
        plain: Any = OmegaConf.to_container(ours, resolve=True)
    except InterpolationResolutionError as error:
        others, own = _wrong_besides(ours), complaint(error)
        # A key that is missing is told as such, not also by who refers to it.
        referred = (f"'{other.setting}{end}" for other in others for end in ("'", "."))
        if not any(words in own.rule for words in referred):
            others.append(own)
        raise ConfigError(others) from None
    return plain  # type: ignore[no-any-return]


def _wrong_besides(ours: DictConfig) -> list[Problem]:
    """What is wrong with the keys that refer to no other."""
    try:
        RunConfig.model_validate(OmegaConf.to_container(ours, resolve=False))
    except ValidationError as error:
        return [problem for _, problem in translate(error) if "${" not in problem.setting]
    return []


def _share_of_reference(part: float, whole: float = 1, *, _root_: DictConfig) -> int:
    """`${share_of_reference:0.8}` and `${share_of_reference:4,5}`: a place on the curves' axis.

    Exact where the share is, so that a curve written in shares fits any `reference_tokens`.
    """
    share = Fraction(str(part)) / Fraction(str(whole))
    return round(share * int(_root_.schedule.reference_tokens))


OmegaConf.register_new_resolver("share_of_reference", _share_of_reference, replace=True)


# The user's directory in Hydra's search path ------------------------------------------------------

_OWN: ContextVar[Path | None] = ContextVar("config_dir", default=None)


class OwnOptions(ConfigSource):
    """The user's directory: files are vetted before a loader sees them."""

    @staticmethod
    def scheme() -> str:
        """Prefix of this source in the search path."""
        return "dsv3-own"

    def available(self) -> bool:
        """Whether the directory is there."""
        return self.is_group("")

    def is_group(self, config_path: str) -> bool:
        """Whether `config_path` is a directory of options."""
        return Path(self.path, config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        """Whether `config_path` is a YAML file."""
        return Path(self.path, self._normalize_file_name(config_path)).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Names of the groups and options in a directory."""
        found: list[str] = []
        for entry in Path(self.path, config_path).iterdir():
            inside = str(Path(config_path, entry.name))
            self._list_add_result(found, inside, entry.name, results_filter)
        return sorted(set(found))

    def load_config(self, config_path: str) -> ConfigResult:
        """Read and vet one file; ConfigError if it is not fit."""
        path = Path(self.path, self._normalize_file_name(config_path))
        if not path.exists():
            raise ConfigLoadError(f"Config not found: {path}")
        text = read_vetted(path)
        config = OmegaConf.load(io.StringIO(text))
        return ConfigResult(self.provider, self.full_path(), config, self._get_header_dict(text))


class OwnFirst(SearchPathPlugin):
    """Put the user's directory before the shipped one; Hydra's own --config-dir comes after it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Prepend the directory of this composition, if there is one."""
        own = _OWN.get()
        if own is not None:
            search_path.prepend("dsv3", f"{OwnOptions.scheme()}://{own.resolve()}", anchor="main")


@contextmanager
def _hydra(own: Path | None, main: Path | None = None) -> Iterator[None]:
    """Hydra initialised for one composition, whatever state it was in before.

    It looks into `own` first, then into `main`: conf/ unless it is given.
    """
    token = _OWN.set(own)
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        Plugins.instance().register(OwnOptions)
        Plugins.instance().register(OwnFirst)
        with initialize_config_dir(str(main or shipped("conf")), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = before
        _OWN.reset(token)
