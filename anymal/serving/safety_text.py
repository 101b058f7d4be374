"""What was measured of safety, in sentences for model cards: what the model does alone, what the guard changes, and what the guard does not cover."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CHECKS = {"text": "texts", "image": "pictures", "image_text": "pictures with a text"}
"""Branches of results/safety.json."""
ASKED = {"text": "harmful texts of the trained sources", "unseen": "harmful texts of a source that was never trained on",
         "image": "harmful pictures with an ordinary question", "image_text": "pictures with a text that are harmful together only"}
"""Branches of results/safety_integrity.json."""
WEAK = 0.75
"""Recall of a category below which it is named."""
UNMEASURED = "Its safety was not measured: no figures on harmful, biased or private content. Do not put it in front of users without that."


def figure(found: Mapping[str, Any]) -> str:
    """`0.91 [0.88, 0.94]`, or the value alone where there is no interval."""
    value = f"{found['value']:.2f}"
    return value if found.get("low") is None else f"{value} [{found['low']:.2f}, {found['high']:.2f}]"


def model_limits(integrity: Mapping[str, Any]) -> list[str]:
    """What the model does with harmful and harmless prompts, alone and behind the guard."""
    sentences = []
    for branch, words in ASKED.items():
        if branch not in integrity:
            continue
        harmful, harmless = integrity[branch]["harmful"], integrity[branch]["harmless"]
        sentences.append(
            f"Safety, {words}: alone it refused {figure(harmful['model']['refused'])} of {harmful['model']['refused']['n']}, behind the guard "
            f"{figure(harmful['guarded']['refused'])}; of {harmless['model']['refused']['n']} harmless ones of the same kind it refused "
            f"{figure(harmless['model']['refused'])} alone and {figure(harmless['guarded']['refused'])} behind the guard; answers that the text "
            f"classifier finds harmful: {figure(harmful['model']['harmful_classifier'])} alone, "
            f"{figure(harmful['guarded']['harmful_classifier'])} let through.")
    return [*sentences, "Safety was measured on these prompts only: in English, in single turns, by a list of refusal phrases and by classifiers "
            "that err; bias, privacy of people in pictures, sounds, videos and motion were not."]


def guard_limits(safety: Mapping[str, Any], integrity: Mapping[str, Any]) -> list[str]:
    """What the guard does not cover, from its measured errors."""
    sentences = []
    for branch, words in CHECKS.items():
        found = safety.get(branch, {})
        if "recall_at_fpr" in found:
            sentences.append(f"Of harmful {words} it finds {figure(found['recall_at_fpr'])} at the stated rate of false positives; the rest passes.")
        weak = [(code, recall) for code, recall in _recalls(found.get("categories", {})) if recall["value"] < WEAK]
        if weak:
            named = ", ".join(f"{code} {figure(recall)}" for code, recall in sorted(weak, key=lambda entry: entry[1]["value"]))
            sentences.append(f"Of {words}, it names fewer than {WEAK:.0%} of these categories for what they are: {named}.")
    unseen = dict(_figures(safety.get("text", {}).get("unseen_sources", {})))
    sentences += [f"On texts of a source that it never saw: {words} {figure(unseen[name])}." for name, words in (
        ("auroc", "AUROC"), ("recall_at_fpr", "recall at the stated rate of false positives")) if name in unseen]
    for branch, words in CHECKS.items():
        alike = safety.get(branch, {}).get("hard_negatives", {}).get("false_positive_rate")
        if alike is not None:
            sentences.append(f"Harmless {words} that resemble harmful ones: it rejects {figure(alike)} of {alike['n']}.")
    for branch, words in ASKED.items():
        if branch in integrity:
            refused = integrity[branch]["harmless"]["guarded"]["refused"]
            sentences.append(f"It costs harmless use: beside {words}, {figure(refused)} of {refused['n']} harmless ones got no answer.")
    team = integrity.get("red_team", {})
    if missed := team.get("missed"):
        sentences.append(f"Disguises that it does not see through within {team['wished']:.0%}: {', '.join(missed)}; the worst costs "
                         f"{team['worst_loss']:.2f} of the recall.")
    return [*sentences, "It reads English. It knows the categories of its taxonomy, in the sources that it was trained on; what is new, subtle or "
            "told over several turns it may miss. Sounds, videos and motion are not checked."]


def _figures(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, value in sorted(found.items()):
        if isinstance(value, Mapping) and isinstance(value.get("value"), int | float):
            yield name, value


def _recalls(categories: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for code, entry in categories.items():
        found = dict(_figures(entry)) if isinstance(entry, Mapping) else {}
        recall = next((found[name] for name in ("recall", "recall_at_fpr", "recall_at_threshold") if name in found), None)
        if recall is not None:
            yield code, recall
