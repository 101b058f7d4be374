"""The gates of promotion: rules of the profile's section `promote`, and pure functions that judge a model by them.

Nothing here reads a file or asks a server: what was measured comes in, one `Result` a rule comes out. A figure that is missing refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from anymal.config import check
from anymal.errors import AnymalError, ConfigError

SECTION = "promote"
EVIDENCE = {"evaluation.json": "evaluation", "samples.jsonl": "samples", "leakage.json": "leakage", "safety.json": "safety",
            "integrity.json": "integrity"}
"""File that goes with a version -> what it was called when the model was registered."""
REQUIRED = ("evaluation.json", "samples.jsonl", "leakage.json")
SHA256 = re.compile(r"[0-9a-f]{64}")
INPUT = "input."
"""Tags of a version: what it was made from -> SHA-256."""


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Limit(_Rule):
    """A number that a figure must not pass."""

    figure: str = Field(pattern=r"^(evaluation|safety|integrity|leakage)(\.[A-Za-z0-9_\-]+)+$")
    """Document and dotted name: `evaluation.image.vqa.accuracy`, `safety.text.auroc`, `integrity.text.harmless.guarded.refused`."""
    part: Literal["value", "low", "high", "n"]
    """What of the figure: its value, an end of its interval, or how many items are behind it. A plain number has a value only."""
    limit: float


class Regression(_Rule):
    """A figure in which a model must not fall behind the champion, by more than a margin."""

    figure: str = Field(pattern=r"^evaluation(\.[A-Za-z0-9_\-]+){2,}$")
    """`evaluation.image.vqa.accuracy`: the score `accuracy` of the samples of branch `image.vqa`."""
    better: Literal["higher", "lower"]
    margin: float = Field(ge=0)
    """In units of the figure. The interval of the paired difference must lie wholly on its better side."""


class Rules(_Rule):
    """The section `promote` of a profile."""

    seed: int = Field(ge=0)
    resamples: int = Field(ge=100)
    """Of the bootstrap that compares with the champion."""
    modalities: list[str] = Field(min_length=1)
    """Which the bundle must read."""
    grounding: list[Literal["shuffled", "blank", "similar"]] = Field(min_length=1)
    """Controls that every task must be better than, its interval clear of zero."""
    floors: list[Limit]
    ceilings: list[Limit]
    regressions: list[Regression]
    common: float = Field(gt=0, le=1)
    """Share of the champion's samples that the model must have been measured on as well."""
    revision: Literal["any", "known", "clean"]
    """Of the code that registered it: unknown will do, it is known, or known and without local changes."""


@dataclass(frozen=True)
class Result:
    """What one rule says."""

    rule: str
    """`floor`, `ceiling`, `grounding`, `regression`, `bundle` or `lineage`."""
    subject: str
    """The figure, task or thing it is about."""
    passed: bool
    sentence: str
    value: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Evidence:
    """What was measured of a model; None what was not, or cannot be read."""

    evaluation: Mapping[str, Any] | None = None
    """`results/evaluate.json`."""
    samples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
    """Branch -> the scores of its samples (`reports/samples.jsonl`)."""
    leakage: Mapping[str, Any] | None = None
    """`results/leakage.json`."""
    safety: Mapping[str, Any] | None = None
    """`results/safety.json`."""
    integrity: Mapping[str, Any] | None = None
    """`results/safety_integrity.json`."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """File -> SHA-256 of its content, of those that are there."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """File -> why it cannot be used."""

    @property
    def empty(self) -> bool:
        """Whether there is none at all."""
        return not self.sha256


@dataclass(frozen=True)
class Champion:
    """The version to compare with."""

    version: int
    evidence: Evidence


def rules_of(section: object) -> Rules:
    """The rules of a profile's section.

    Raises:
        ConfigError: naming all that is wrong with it.
    """
    if problems := rules_problems(section):
        raise ConfigError("\n".join(problems))
    return check(Rules, section, SECTION)


def rules_problems(section: object) -> list[str]:
    """All that is wrong with the section `promote`: its schema, and rules that come twice."""
    try:
        rules = check(Rules, section, SECTION)
    except ConfigError as error:
        return str(error).split("\n")
    return twice(SECTION, {
        "floors": [(rule.figure, rule.part) for rule in rules.floors], "ceilings": [(rule.figure, rule.part) for rule in rules.ceilings],
        "regressions": [rule.figure for rule in rules.regressions], "modalities": rules.modalities, "grounding": rules.grounding})


def twice(section: str, named: Mapping[str, Sequence[Any]]) -> list[str]:
    """What comes twice in the lists of a section.

    Args:
        named: knob -> what tells its entries apart, texts or tuples of texts.
    """
    problems = []
    for name, keys in named.items():
        for key in sorted({key if isinstance(key, str) else ", ".join(key) for key in keys if list(keys).count(key) > 1}):
            problems.append(f"{section}.{name}: {key} comes twice; keep one")
    return problems


def judge_measured(rules: Rules, evidence: Evidence) -> list[Result]:
    """What the figures alone decide: readable files, floors, ceilings, grounding, and the audit for leakage."""
    results = [Result("lineage", name, False, f"{name}: {why}.") for name, why in sorted(evidence.unreadable.items())]
    results += judge_limits(rules.floors, rules.ceilings, evidence)
    return [*results, *_grounding(rules, evidence), _leakage(evidence)]


def judge_limits(floors: Sequence[Limit], ceilings: Sequence[Limit], evidence: Evidence) -> list[Result]:
    """Whether each figure keeps its limit; one that is missing does not."""
    return [*(_limit("floor", rule, evidence) for rule in floors), *(_limit("ceiling", rule, evidence) for rule in ceilings)]


def judge_comparable(rules: Rules, evidence: Evidence) -> list[Result]:
    """Whether a model could be compared with a champion, sample by sample, where there is none at hand."""
    results = []
    for rule in rules.regressions:
        count = len(_scored(evidence, *_branch(rule)))
        text = f"{count} samples have this score" if count else "no sample has this score"
        results.append(Result("regression", rule.figure, count > 0, f"{rule.figure}: {text} to compare with a champion's."))
    return results


def judge_against(rules: Rules, evidence: Evidence, champion: Champion | None) -> list[Result]:
    """Whether a model falls behind the champion, if there is one: sample by sample, by a paired bootstrap."""
    return [_regression(rules, rule, evidence, champion) for rule in rules.regressions]


def judge_bundle(rules: Rules, document: Mapping[str, Any] | None, problem: str | None) -> Result:
    """Whether the bundle is whole and reads every modality.

    Args:
        document: its `bundle.json`, after every file was compared with the manifest.
        problem: why there is none.
    """
    if document is None:
        return Result("bundle", "bundle", False, f"The bundle cannot be used: {problem}.")
    modalities = sorted(document["encoders"])
    if lacking := sorted(set(rules.modalities) - set(modalities)):
        return Result("bundle", "modalities", False, f"The bundle reads {', '.join(modalities)}, but not {', '.join(lacking)}.")
    return Result("bundle", "bundle", True, f"The bundle is whole and reads {', '.join(modalities)}.")


def judge_lineage(rules: Rules, evidence: Evidence, tags: Mapping[str, str], document: Mapping[str, Any] | None) -> list[Result]:
    """Whether it is written down what the model was made from and measured on, and the evidence is what was registered.

    Args:
        tags: of the version.
        document: the bundle's `bundle.json`.
    """
    inputs = {key.removeprefix(INPUT): value for key, value in tags.items() if key.startswith(INPUT)}
    results = judge_files(REQUIRED, evidence, inputs)
    wanted = {"checkpoints": any(name.startswith("checkpoints") and SHA256.fullmatch(value) for name, value in inputs.items())}
    wanted |= {f"{modality}.statistics": bool(SHA256.fullmatch(inputs.get(f"{modality}.statistics", ""))) for modality in rules.modalities}
    lacking = [name for name, there in wanted.items() if not there]
    results.append(Result("lineage", "inputs", not lacking, (
        f"The version does not say what it was made from: no SHA-256 of {', '.join(lacking)} among its tags {INPUT}…." if lacking else
        "The version names its checkpoints and the statistics of the data of each modality by SHA-256.")))  # fmt: skip
    if document is not None:
        recorded = document["provenance"].get("inputs", {})
        differing = sorted(name for name in inputs.keys() | recorded.keys() if inputs.get(name) != recorded.get(name))
        results.append(Result("lineage", "provenance", not differing, (
            f"The version's tags and the bundle's own record of what it was made from differ in {', '.join(differing)}." if differing else
            "The version's tags agree with the bundle's own record of what it was made from.")))  # fmt: skip
    return [*results, judge_revision(rules.revision, tags)]


def judge_files(required: Sequence[str], evidence: Evidence, inputs: Mapping[str, str]) -> list[Result]:
    """Whether the files of evidence are there and the ones that were registered.

    Args:
        required: files that must be there; others are judged if they are.
        inputs: what the version says it was made from and measured by -> SHA-256.
    """
    return [_file(name, evidence, inputs) for name in EVIDENCE if name in required or name in evidence.sha256]


def judge_revision(allowed: Literal["any", "known", "clean"], tags: Mapping[str, str]) -> Result:
    """Whether the code that registered a version is of a revision that a rule takes."""
    revision, dirty = tags.get("git.revision"), tags.get("git.dirty")
    state = "unknown" if revision is None else f"{revision[:12]}{', with local changes' if dirty != 'false' else ''}"
    passed = allowed == "any" or (revision is not None and (allowed == "known" or dirty == "false"))
    asked = "any" if allowed == "any" else f"only a {allowed} one"
    return Result("lineage", "revision", passed, f"The revision of the code that registered it is {state}; the rule takes {asked}.")


def markdown(title: str, results: Sequence[Result], notes: Sequence[str] = ()) -> str:
    """A decision as people read it: what refuses comes first."""
    ordered = sorted(results, key=lambda result: result.passed)
    lines = [f"- {'✓' if result.passed else '✗'} {result.rule}: {result.sentence}" for result in ordered]
    return "\n".join([f"# {title}", "", *(f"{note}\n" for note in notes), *lines, ""])


def lookup(evidence: Evidence, name: str) -> object:
    """What stands under a dotted name: `evaluation.image.vqa.accuracy`; None if nothing does."""
    document, *path = name.split(".")
    found: object = getattr(evidence, document)
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _limit(kind: Literal["floor", "ceiling"], rule: Limit, evidence: Evidence) -> Result:
    found = lookup(evidence, rule.figure)
    number = found.get(rule.part) if isinstance(found, Mapping) else found if rule.part == "value" else None
    if not isinstance(number, int | float) or isinstance(number, bool):
        return Result(kind, rule.figure, False, (
            f"{rule.figure}: its {rule.part} was not measured, so the {kind} of {_number(rule.limit)} cannot be checked."), None, rule.limit)
    passed = number >= rule.limit if kind == "floor" else number <= rule.limit
    held = f"keeps the {kind} of" if passed else "is below the floor of" if kind == "floor" else "is above the ceiling of"
    return Result(kind, rule.figure, bool(passed), f"{rule.figure}: {rule.part} {_number(number)} {held} {_number(rule.limit)}.", float(number),
                  rule.limit)


def _grounding(rules: Rules, evidence: Evidence) -> list[Result]:
    from anymal.evaluation.grounding import verdicts

    if evidence.evaluation is None:
        return [Result("grounding", "evaluation", False, "There is no evaluation, so nothing shows that the model uses its inputs.")]
    try:
        found = verdicts(evidence.evaluation, rules.grounding)
    except (KeyError, TypeError, AttributeError) as error:
        why = f"The evaluation is not what the stage score writes ({type(error).__name__}: {error})"
        return [Result("grounding", "evaluation", False, f"{why}, so nothing shows that the model uses its inputs.")]
    if not found:
        return [Result("grounding", "evaluation", False, "The evaluation has no task, so nothing shows that the model uses its inputs.")]
    return [Result("grounding", verdict.branch, verdict.clear, verdict.sentence) for verdict in found]


def _leakage(evidence: Evidence) -> Result:
    if evidence.leakage is None:
        return Result("lineage", "leakage", False, "There is no audit of leakage between training and test data.")
    if evidence.leakage.get("passed") is not True:
        return Result("lineage", "leakage", False, "The audit of leakage between training and test data does not say that it passed.")
    return Result("lineage", "leakage", True, "The audit found no leakage of test data into training data above its thresholds.")


def _file(name: str, evidence: Evidence, inputs: Mapping[str, str]) -> Result:
    found, registered = evidence.sha256.get(name), inputs.get(EVIDENCE[name])
    if found is None:
        return Result("lineage", name, False, f"evidence/{name} does not go with the version.")
    if registered is None:
        return Result("lineage", name, False, f"The version has no tag {INPUT}{EVIDENCE[name]}, so evidence/{name} may be another's.")
    if found != registered:
        return Result("lineage", name, False, f"evidence/{name} (SHA-256 {found[:12]}…) is not the one that was registered ({registered[:12]}…).")
    return Result("lineage", name, True, f"evidence/{name} is the one that was registered ({found[:12]}…).")


def _regression(rules: Rules, rule: Regression, evidence: Evidence, champion: Champion | None) -> Result:
    branch, score = _branch(rule)
    own = _scored(evidence, branch, score)
    others = {} if champion is None else _scored(champion.evidence, branch, score)
    refusal = _incomparable(rules, own, others, champion)
    if refusal is not None:
        passed, text, value = False, refusal, None
    elif champion is None:
        passed, text, value = True, "there is no champion yet to fall behind", None
    elif not others:
        passed, text, value = True, f"the champion (version {champion.version}) was not measured on it, so there is nothing to fall behind", None
    else:
        passed, text, value = _compare(rules, rule, score, own, others)
        text = f"against the champion (version {champion.version}), {text}"
    return Result("regression", rule.figure, passed, f"{rule.figure}: {text}.", value, rule.margin)


def _incomparable(rules: Rules, own: Mapping[str, Any], others: Mapping[str, Any], champion: Champion | None) -> str | None:
    """Why there is nothing to compare though there should be."""
    if not own:
        return "no sample has this score, so it cannot be compared with a champion's"
    if champion is None:
        return None
    if champion.evidence.empty:
        return (f"the champion (version {champion.version}) was registered without evidence, so nothing can be compared; take its alias off in "
                "MLflow, and the next promotion is the first")
    if champion.evidence.samples is None:
        return f"the samples of the champion (version {champion.version}) cannot be read, so nothing can be compared"
    common = len(own.keys() & others.keys())
    if common < rules.common * len(others):
        return (f"only {common} of the {len(others)} samples of the champion (version {champion.version}) were measured, fewer than the share "
                f"{rules.common:g} that a comparison takes")
    return None


def _compare(rules: Rules, rule: Regression, score: str, own: Mapping[str, Any], others: Mapping[str, Any]) -> tuple[bool, str, float | None]:
    """Whether the margin is kept, and the paired difference as words and as a number."""
    from anymal.evaluation.bootstrap import paired_difference

    common = sorted(own.keys() & others.keys())
    try:
        found = paired_difference([own[key] for key in common], [others[key] for key in common], metric=score, by="group",
                                  resamples=rules.resamples, seed=rules.seed)
    except AnymalError as error:
        return False, f"it cannot be compared: {error}", None
    passed = found["low"] >= -rule.margin if rule.better == "higher" else found["high"] <= rule.margin
    text = (f"{_number(found['first'])} against {_number(found['second'])} on {found['n']} samples, a difference of {found['value']:+.4g} "
            f"[{found['low']:.4g}, {found['high']:.4g}], {rule.better} being better: ")
    text += "within the margin of" if passed else "it may have fallen behind by more than the margin of"
    return passed, f"{text} {_number(rule.margin)}", found["value"]


def _branch(rule: Regression) -> tuple[str, str]:
    """The branch of samples.jsonl and the score in it that a figure is the mean of."""
    branch, _, score = rule.figure.removeprefix("evaluation.").rpartition(".")
    return branch, score


def _scored(evidence: Evidence, branch: str, score: str) -> dict[str, Any]:
    """Sample -> its row, of those of a branch that have a score."""
    rows = (evidence.samples or {}).get(branch, ())
    return {str(row["id"]): row for row in rows if score in row["scores"]}


def _number(value: float) -> str:
    return f"{value:.4g}"
