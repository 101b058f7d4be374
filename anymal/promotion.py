"""Promotion: a registered version is judged by the gates and becomes champion, or is refused with every reason; and the way back.

Judging is pure (anymal/gates.py), recording and moving belong to the registry (anymal/registry.py); this joins them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anymal import registry
from anymal.data.manifest import sha256_of
from anymal.errors import AnymalError, BundleError
from anymal.gates import EVIDENCE, Champion, Evidence, Result, Rules, judge_against, judge_bundle, judge_lineage, judge_measured, markdown
from anymal.guard_gates import GuardRules, judge_guard
from anymal.ledger import PROMOTED, REFUSED, ROLLED_BACK


@dataclass(frozen=True)
class Decision:
    """What was decided about a version."""

    decision: str
    """`promoted`, `refused` or `rolled back`."""
    document: Mapping[str, Any]
    """The decision document: `decision`, `model`, `candidate`, `champion`, `notes`, `reasons` and, if it was judged, `rules` and `results`."""
    report: str
    """The same as Markdown."""


def promote(reference: str, rules: Rules | GuardRules, *, dry_run: bool) -> Decision:
    """Judge a registered version and, if every rule passes, make it champion.

    Args:
        reference: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        rules: of a model, or of a guard, which the version then must be.
        dry_run: judge only; nothing is recorded and nothing moved.

    Raises:
        BundleError: if there is no such version, or anymal did not register it.
        TrackingError: if MLflow cannot be reached.
    """
    version = registry.find_version(reference)
    if registry.SHA_TAG not in version.tags:
        raise BundleError(f"{reference}: version {version.number} was not registered by anymal (it has no tag {registry.SHA_TAG}); run the stage "
                          "register")
    standing = registry.standing_of(version.name) if dry_run else registry.finish(version.name)
    notes = _notes(standing)
    if standing.champion is not None and standing.champion.number == version.number:
        return _decision(PROMOTED, version, standing, notes=[*notes, f"Version {version.number} is champion already; nothing was done."])
    results = _judge(version, standing.champion, rules)
    judged = PROMOTED if all(result.passed for result in results) else REFUSED
    made = _decision(judged, version, standing, notes=notes, rules=rules, results=results)
    if not dry_run:
        entry = registry.record(version, decision=judged, standing=standing, reasons=made.document["reasons"], document=dump(made.document),
                                report=made.report)
        if entry.decision != judged:
            made = _decision(REFUSED, version, standing, notes=[*notes, registry.OVERTAKEN], rules=rules, results=results)
            registry.write_document(entry.run, dump(made.document), made.report)
    return made


def roll_back(name: str, *, reason: str, dry_run: bool) -> Decision:
    """Make the previous champion, as the ledger has it, champion again.

    Args:
        name: of the registered model.
        reason: why, for the record.
        dry_run: say what would be done only.

    Raises:
        BundleError: if no earlier champion is recorded, or its version is gone.
        TrackingError: if MLflow cannot be reached.
    """
    standing = registry.standing_of(name) if dry_run else registry.finish(name)
    earlier = registry.previous_champion(standing)
    if earlier is None:
        raise BundleError(f"{registry.SCHEME}{name}: no earlier champion is recorded, so there is none to go back to; promote a version with "
                          "anymal promote")
    version = registry.find_version(f"{registry.SCHEME}{name}/{earlier}")
    made = _decision(ROLLED_BACK, version, standing, notes=[*_notes(standing), f"Rolled back to version {earlier}: {reason}"])
    if dry_run:
        return made
    entry = registry.record(version, decision=ROLLED_BACK, standing=standing, reasons=made.document["reasons"], document=dump(made.document),
                            report=made.report)
    if entry.decision != ROLLED_BACK:
        raise BundleError(f"{registry.SCHEME}{name}: another decision was made at the same time; look who is champion now, and roll back again")
    return made


def read_evidence(files: Mapping[str, Path]) -> Evidence:
    """What was measured of a model.

    Args:
        files: file of the evidence (`evaluation.json`, `samples.jsonl`, …) -> where it is.
    """
    from anymal.evaluation.bootstrap import read_samples

    read: dict[str, Any] = {}
    unreadable = {}
    there = {name: path for name, path in files.items() if name in EVIDENCE and path.is_file()}
    for name, path in there.items():
        try:
            read[EVIDENCE[name]] = read_samples(path) if name.endswith(".jsonl") else _object(path)
        except (AnymalError, ValueError) as error:
            unreadable[name] = str(error).replace(f"{path}: ", "").rstrip(".")
    return Evidence(**read, sha256={name: sha256_of(path) for name, path in there.items()}, unreadable=unreadable)


def dump(document: Mapping[str, Any]) -> str:
    """A decision document as text."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _judge(version: registry.Version, champion: registry.Version | None, rules: Rules | GuardRules) -> list[Result]:
    kind = _kind(rules)
    document, problem = None, None
    try:
        document = kind.read(registry.resolve_bundle(version.uri, kind))
    except BundleError as error:
        problem = str(error).rstrip(".")
    evidence = _evidence(version)
    compared = None if champion is None else Champion(champion.number, _evidence(champion))
    if isinstance(rules, GuardRules):
        return judge_guard(rules, evidence, compared, document=document, problem=problem, tags=version.tags)
    return [*judge_measured(rules, evidence), *judge_against(rules, evidence, compared), judge_bundle(rules, document, problem),
            *judge_lineage(rules, evidence, version.tags, document)]


def _kind(rules: Rules | GuardRules) -> registry.Kind:
    from anymal.serving.guard import GUARD

    return GUARD if isinstance(rules, GuardRules) else registry.MODEL


def _evidence(version: registry.Version) -> Evidence:
    with registry.evidence_of(version) as folder:
        return read_evidence({path.name: path for path in folder.iterdir()})


def _notes(standing: registry.Standing) -> list[str]:
    if standing.champion is None:
        return ["There is no champion yet."]
    note = f"Champion is version {standing.champion.number}"
    return [f"{note}, which was made so by hand: no decision says why." if standing.by_hand else f"{note}."]


def _decision(decision: str, version: registry.Version, standing: registry.Standing, *, notes: list[str], rules: Rules | GuardRules | None = None,
              results: Sequence[Result] = ()) -> Decision:
    champion = standing.champion
    refused = [f"{result.rule}: {result.sentence}" for result in results if not result.passed]
    document = {
        "decision": decision, "model": version.name, "candidate": _named(version), "champion": None if champion is None else _named(champion),
        "notes": notes, "reasons": [*notes, *(refused or ([f"All {len(results)} rules pass."] if results else []))],
        **({} if rules is None else {"rules": rules.model_dump(mode="json"), "results": [asdict(result) for result in results]})}  # fmt: skip
    return Decision(decision, document, markdown(f"{version.name} version {version.number}: {decision}", results, notes))


def _named(version: registry.Version) -> dict[str, Any]:
    return {"version": version.number, "bundle_sha256": version.tags.get(registry.SHA_TAG)}


def _object(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError(f"holds no JSON object but {type(document).__name__}")
    return document
