"""Questions about several media of different modalities at once, which only a model that uses all of them can answer (paper section 3)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

from anymal.data.features import FeatureStore
from anymal.errors import DataError
from anymal.evaluation.controls import even_sequence, most_similar, stand_ins
from anymal.evaluation.names import canonical
from anymal.evaluation.predict import SIMILAR, Cell, Predictor, Record, group_of
from anymal.model.modalities import placeholder

SHUFFLED = "shuffled"


def candidates(store: FeatureStore, kind: str) -> list[tuple[int, int]]:
    """(row, number of the question) of every question of a kind."""
    return [(row, number) for row in range(len(store)) for number, entry in enumerate(store.meta(row)["questions"]) if entry["kind"] == kind]


def predict_mixed(
    predictor: Predictor, *, kinds: Mapping[str, str], question: str, samples: int, max_new_tokens: int, conditions: Sequence[str], seed: int
) -> tuple[list[Record], dict[str, list[str]], dict[str, int]]:
    """Answers to one question about a medium of each modality, with all media right, all of another sample, each alone so, all blank, all similar.

    Samples are paired at random, their answers as even as can be and independent of each other; a stand-in always has another answer.

    Args:
        kinds: modality -> kind of its samples' questions whose answer the model has to name; in the predictor's order.
        question: asked of all; `{image}` and the like stand for the sample's own question of that kind, and `<image>` places a medium.
        samples: number of questions asked.
        conditions: of `anymal.evaluation.controls.CONDITIONS`, the right input among them; shuffled brings `shuffled_MODALITY`, that medium alone.

    Returns:
        One record a question (`question_id`, `keys`, `groups`, `shuffled_keys`, `similar_keys`, `references`: by modality; `question`, `prompt`;
        `prediction` and `finish` by condition), the answers that occur by modality, and how many samples each modality had to draw from.

    Raises:
        DataError: if a modality has no question of its kind or one answer only, or two modalities share answers.
    """
    stores = predictor.stores
    places = {modality: candidates(stores[modality], kind) for modality, kind in kinds.items()}
    for modality, kind in kinds.items():
        if not places[modality]:
            raise DataError(f"evaluate's mixed.parts: no held-out {modality} sample has a question of kind {kind}; name a kind that curate made")
    answers = {modality: [_entry(stores[modality], place)["answer"] for place in places[modality]] for modality in kinds}
    vocabulary = {modality: sorted(set(found)) for modality, found in answers.items()}
    _check_apart(vocabulary)
    chosen = {m: even_sequence(answers[m], samples, seed=seed, salt=salt) for salt, m in enumerate(kinds)}
    others: dict[str, dict[str, list[int]]] = {}
    if SHUFFLED in conditions:
        others[SHUFFLED] = {m: stand_ins(answers[m], [answers[m][i] for i in chosen[m]], seed=seed, salt=salt) for salt, m in enumerate(kinds)}
    if SIMILAR in conditions:
        alike = {m: _alike(predictor, m, places[m], answers[m]) for m in kinds}
        others[SIMILAR] = {m: [alike[m][i] for i in chosen[m]] for m in kinds}
    template = predictor.template("pair", "question")
    records: list[Record] = []
    cells: list[dict[str, Cell]] = []
    for index in range(samples):
        right = {m: places[m][chosen[m][index]] for m in kinds}
        stand_in = {name: {m: places[m][found[m][index]][0] for m in kinds} for name, found in others.items()}
        asked = _fill(question, {m: _entry(stores[m], right[m])["question"] for m in kinds})
        cells.append(_cells({m: row for m, (row, _) in right.items()}, stand_in, asked, conditions))
        metas = {m: stores[m].meta(row) for m, (row, _) in right.items()}
        records.append({
            "question_id": f"mixed-{index:05d}", "keys": {m: meta["key"] for m, meta in metas.items()},
            "groups": {m: group_of(meta) for m, meta in metas.items()}, "question": asked, "prompt": predictor.messages(template, asked),
            "references": {m: _entry(stores[m], right[m])["answer"] for m in kinds},
            **{f"{name}_keys": {m: stores[m].meta(row)["key"] for m, row in found.items()} for name, found in stand_in.items()},
        })  # fmt: skip
    _check_placed(predictor.modalities, records[0])
    predictor.answer(template, records, cells, max_new_tokens=max_new_tokens, label="mixed answers")
    return records, vocabulary, {m: len({row for row, _ in places[m]}) for m in kinds}


def mixed_messages(predictor: Predictor, question: str) -> list[dict[str, str]]:
    """The prompt before anything of a sample is filled in."""
    return predictor.messages(predictor.template("pair", "question"), question)


def _entry(store: FeatureStore, place: tuple[int, int]) -> dict[str, str]:
    entry: dict[str, str] = store.meta(place[0])["questions"][place[1]]
    return entry


def _alike(predictor: Predictor, modality: str, places: Sequence[tuple[int, int]], answers: Sequence[str]) -> list[int]:
    """For each question of a modality the one with another answer whose medium is most alike."""
    rows = sorted({row for row, _ in places})
    place_of = {row: place for place, row in enumerate(rows)}
    return most_similar(predictor.pooled(modality, rows), [{canonical(answer)} for answer in answers], rows=[place_of[row] for row, _ in places])


def _cells(right: Mapping[str, int], stand_in: Mapping[str, Mapping[str, int]], question: str, conditions: Sequence[str]) -> dict[str, Cell]:
    """The media under each condition, in the modalities' order."""
    rows: dict[str, tuple[int | None, ...]] = {"right": tuple(right.values()), "blank": (None,) * len(right)}
    rows |= {name: tuple(found.values()) for name, found in stand_in.items()}
    asked = {name: rows[name] for name in conditions}
    for name, row in stand_in.get(SHUFFLED, {}).items():
        asked[f"{SHUFFLED}_{name}"] = tuple(row if m == name else own for m, own in right.items())
    return {condition: (found, question) for condition, found in asked.items()}


def _fill(question: str, own: Mapping[str, str]) -> str:
    """The question with each `{modality}` replaced, in one pass, so that what a sample says is never taken for a place."""
    return re.sub("|".join(re.escape(f"{{{m}}}") for m in own), lambda found: own[found.group()[1:-1]], question)


def _check_apart(vocabulary: Mapping[str, Sequence[str]]) -> None:
    for modality, found in vocabulary.items():
        if len(set(map(canonical, found))) < 2:
            raise DataError(f"evaluate's mixed.parts: all held-out {modality} samples have the answer {found[0]!r}, so naming it shows nothing; "
                            "name another question_kind")
    for first, second in itertools.combinations(vocabulary, 2):
        shared = set(map(canonical, vocabulary[first])) & set(map(canonical, vocabulary[second]))
        if shared:
            raise DataError(f"evaluate's mixed.parts: {first} and {second} share the answer {min(shared)!r}, so a text that names it cannot be "
                            "judged; name question kinds with different answers")


def _check_placed(modalities: Sequence[str], record: Record) -> None:
    found = [match.group(1) for message in record["prompt"] for match in placeholder().finditer(message["content"])]
    if found != list(modalities):
        raise DataError(f"checkpoint of {modalities[0]}: its prompt places the media {', '.join(found) or 'nowhere'}, but the question is about "
                        f"{', '.join(modalities)}; write {{media}} in align's template, or place all of them in evaluate's mixed.question")
