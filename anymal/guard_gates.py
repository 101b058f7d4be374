"""The gates of the guard's promotion: rules of the profile's section `promote_guard`, and pure functions that judge a guard by them.

As in anymal/gates.py nothing is read here, and a figure that is missing refuses. What a guard's figures come from (results/safety.json) are
not samples that two guards share one by one, so a comparison with the champion is one of figures: its margin has to be as wide as their noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from anymal.config import check
from anymal.errors import ConfigError
from anymal.gates import INPUT, SHA256, Champion, Evidence, Limit, Result, judge_files, judge_limits, judge_revision, lookup, twice

SECTION = "promote_guard"
REQUIRED = ("safety.json", "integrity.json")
"""Evidence without which no guard is promoted."""
MADE_FROM = "safety_data"
"""What a guard must say it was trained on."""


class GuardRegression(BaseModel):
    """A figure in which a guard must not fall behind the champion by more than a margin."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    figure: str = Field(pattern=r"^(safety|integrity)(\.[A-Za-z0-9_\-]+)+$")
    better: Literal["higher", "lower"]
    margin: float = Field(ge=0)


class GuardRules(BaseModel):
    """The section `promote_guard` of a profile."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    checks: list[Literal["text", "image", "pair"]] = Field(min_length=1)
    """Classifiers that the guard must have."""
    floors: list[Limit]
    ceilings: list[Limit]
    regressions: list[GuardRegression]
    revision: Literal["any", "known", "clean"]
    """Of the code that registered it: unknown will do, it is known, or known and without local changes."""


def guard_rules_of(section: object) -> GuardRules:
    """The rules of a profile's section.

    Raises:
        ConfigError: naming all that is wrong with it.
    """
    if problems := guard_rules_problems(section):
        raise ConfigError("\n".join(problems))
    return check(GuardRules, section, SECTION)


def guard_rules_problems(section: object) -> list[str]:
    """All that is wrong with the section `promote_guard`: its schema, figures of other models, and rules that come twice."""
    try:
        rules = check(GuardRules, section, SECTION)
    except ConfigError as error:
        return str(error).split("\n")
    limits = {"floors": rules.floors, "ceilings": rules.ceilings}
    problems = [f"{SECTION}.{name}: {rule.figure} is no figure of a guard; name one of safety.… or integrity.…" for name, found in limits.items()
                for rule in found if rule.figure.partition(".")[0] not in {"safety", "integrity"}]
    return problems + twice(SECTION, {
        **{name: [(rule.figure, rule.part) for rule in found] for name, found in limits.items()},
        "regressions": [rule.figure for rule in rules.regressions], "checks": rules.checks})


def judge_guard(rules: GuardRules, evidence: Evidence, champion: Champion | None, *, document: Mapping[str, Any] | None, problem: str | None,
                tags: Mapping[str, str]) -> list[Result]:
    """What every rule says of a guard.

    Args:
        evidence: `safety` and `integrity`, and the SHA-256 of their files.
        champion: the version to compare with, if there is one.
        document: the guard's `guard.json`, after every file was compared with the manifest.
        problem: why there is none.
        tags: of the version.
    """
    inputs = {key.removeprefix(INPUT): value for key, value in tags.items() if key.startswith(INPUT)}
    known = bool(SHA256.fullmatch(inputs.get(MADE_FROM, "")))
    origin = ("names the data that it was trained on by SHA-256" if known else
              f"does not say what it was trained on: no SHA-256 in its tag {INPUT}{MADE_FROM}")
    return [*(Result("lineage", name, False, f"{name}: {why}.") for name, why in sorted(evidence.unreadable.items())),
            *judge_limits(rules.floors, rules.ceilings, evidence), *(_regression(rule, evidence, champion) for rule in rules.regressions),
            _whole(rules, document, problem), *judge_files(REQUIRED, evidence, inputs),
            Result("lineage", "inputs", known, f"The version {origin}."), judge_revision(rules.revision, tags)]


def _whole(rules: GuardRules, document: Mapping[str, Any] | None, problem: str | None) -> Result:
    if document is None:
        return Result("bundle", "guard", False, f"The guard cannot be used: {problem}.")
    checks = list(document["checks"])
    if lacking := sorted(set(rules.checks) - set(checks)):
        return Result("bundle", "checks", False, f"The guard checks {', '.join(checks)}, but not {', '.join(lacking)}.")
    return Result("bundle", "guard", True, f"The guard is whole and checks {', '.join(checks)}.")


def _regression(rule: GuardRegression, evidence: Evidence, champion: Champion | None) -> Result:
    own = _value(evidence, rule.figure)
    passed, value = True, None
    if own is None:
        passed, text = False, "was not measured, so it cannot be compared with a champion's"
    elif champion is None:
        text = "there is no champion yet to fall behind"
    elif champion.evidence.empty:
        passed = False
        text = (f"the champion (version {champion.version}) was registered without evidence, so nothing can be compared; take its alias off in "
                "MLflow, and the next promotion is the first")
    elif (theirs := _value(champion.evidence, rule.figure)) is None:
        text = f"the champion (version {champion.version}) was not measured on it, so there is nothing to fall behind"
    else:
        value = own - theirs
        passed = value >= -rule.margin if rule.better == "higher" else value <= rule.margin
        text = (f"{own:.4g} against {theirs:.4g} of the champion (version {champion.version}), {rule.better} being better: "
                f"{'within' if passed else 'beyond'} the margin of {rule.margin:.4g}")
    return Result("regression", rule.figure, passed, f"{rule.figure}: {text}.", value, rule.margin)


def _value(evidence: Evidence, figure: str) -> float | None:
    found = lookup(evidence, figure)
    number = found.get("value") if isinstance(found, Mapping) else found
    return float(number) if isinstance(number, int | float) and not isinstance(number, bool) else None
