"""Register the guard as a candidate, with what was measured of it."""

from __future__ import annotations

from anymal.candidates import CandidateAlias, ModelName, read_measured, write_registration
from anymal.data.manifest import fingerprint
from anymal.executor import flatten
from anymal.stage import Config, In, Out


class RegisterGuardConfig(Config):
    """Knobs of `register_guard`."""

    name: ModelName
    alias: CandidateAlias


def register_guard(config: RegisterGuardConfig, *, guard: In, data: In, safety: In, integrity: In, registration: Out) -> None:
    """Register the guard as a candidate, with its card and the evidence that a promotion goes by.

    `data` is what it was trained on, `safety` what train_safety measured of its classifiers, `integrity` what evaluate_safety measured of it with
    the model behind it.
    """
    from anymal.registry import register_bundle
    from anymal.serving.guard import GUARD, guard_card, read_guard

    figures, asked = read_measured(safety), read_measured(integrity)
    inputs = {"guard": fingerprint(guard), "safety_data": fingerprint(data), "safety": fingerprint(safety), "integrity": fingerprint(integrity)}
    card = guard_card(name=config.name, alias=config.alias, document=read_guard(guard), safety=figures, integrity=asked, inputs=inputs,
                      seed=config.seed)
    values = {f"{prefix}.{name}": value for prefix, tree in (("safety", figures), ("integrity", asked)) for name, value in flatten(tree).items()
              if name.endswith(".value")}
    result = register_bundle(guard, name=config.name, alias=config.alias, metrics=values, kind=GUARD, card=card,
                             tags={f"input.{port}": digest for port, digest in inputs.items()},
                             evidence={"safety.json": safety, "integrity.json": integrity})
    write_registration(registration, result)
