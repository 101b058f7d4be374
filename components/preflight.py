"""Component of `anymal preflight`: every pipeline has one with the sections and addresses that it takes."""

from collections.abc import Mapping, Sequence
from inspect import Parameter, Signature

from kfp import dsl

from components import images


def preflight(sections: Mapping[str, str], uris: Sequence[str], secrets: Sequence[str], settings: str):
    """Component with the arguments `sections` (name -> section of a profile) and `uris`; `lock` among them is an artifact, for it is read."""
    kinds = {name: dsl.Input[dsl.Artifact] if name == "lock" else str for name in uris} | dict.fromkeys(sections, str)

    def preflight(*given):
        values = dict(zip(kinds, given, strict=True))
        words = [word for name, section in sections.items() for word in ("--section", section, values[name])]
        words += [word for uri in uris for word in (("--lock", values[uri].path) if uri == "lock" else ("--input", values[uri]))]
        words += ["--section", "kubeflow", settings, *(word for name in secrets for word in ("--secret", name))]
        return dsl.ContainerSpec(image=images.TRAIN, command=["anymal", "preflight"], args=words)

    preflight.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kinds[name]) for name in kinds])  # type: ignore[attr-defined]
    return dsl.container_component(preflight)
