"""Predict what training will need: memory per GPU, steps, storage and GPU-hours."""

from __future__ import annotations

from pathlib import Path

import click

from anymal.planning.profile import ANSWER_TOKENS, GIB, PROMPT_TOKENS, RESERVE

DEFAULT_GPU_GIB = 80.0


@click.command("plan", short_help="Predict the memory, steps, storage and GPU-hours of training.")
@click.option("--config", required=True, type=click.Path(path_type=Path), metavar="FILE", help="A profile.")
@click.option("--stage", "chosen", multiple=True, metavar="NAME", help="align.MODALITY or finetune; repeat it for several.  [default: all]")
@click.option("--set", "overrides", multiple=True, metavar="KNOB=VALUE", help="Plan with another value, such as align.image.layers=2; repeatable.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs that train together, one process each.")
@click.option("--gpu-memory", type=click.FloatRange(min=0, min_open=True), default=DEFAULT_GPU_GIB, show_default=True, help="GiB of one GPU.")
@click.option("--reserve", type=click.FloatRange(min=0), default=RESERVE / GIB, show_default=True,
              help="GiB of each GPU that tensors may not take: context, libraries, fragmentation.")
@click.option("--prompt-tokens", type=click.IntRange(min=2), default=PROMPT_TOKENS, show_default=True, help="Text tokens of the longest prompt.")
@click.option("--answer-tokens", type=click.IntRange(min=2), default=ANSWER_TOKENS, show_default=True, help="Tokens of the longest answer.")
@click.option("--pairs", type=click.IntRange(min=1), help="Samples of one pass over the data: adds steps, tokens and storage.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Measured samples per second on one GPU: adds GPU-hours; needs --pairs.")
@click.option("--assets", type=click.Path(path_type=Path), default=Path("data/assets"), show_default=True,
              help="Where ingest put the LLM; without it, the shapes of well-known models are used.")
@click.option("--features", type=click.Path(path_type=Path), default=Path("data/features"), show_default=True,
              help="Where encode put features; without them, the profile says their shape.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, config: Path, chosen: tuple[str, ...], overrides: tuple[str, ...], gpus: int, gpu_memory: float, reserve: float, prompt_tokens: int,
            answer_tokens: int, pairs: int | None, rate: float | None, assets: Path, features: Path, as_json: bool) -> None:
    """Predict what the training stages of a profile will need, without the LLM's weights and without a GPU.

    Each stage's step is run on PyTorch's meta device, where tensors have shapes and no data; docs/plan.md says what is counted and how well
    predictions agree with measurements.
    """
    import json

    from anymal.config import read_document
    from anymal.errors import ConfigError
    from anymal.overrides import overridden, read_override
    from anymal.planning.profile import Machine, plan_stage, stage_names
    from anymal.profile import section_problems
    from anymal.stage import load_stage

    if rate is not None and pairs is None:
        raise ConfigError(f"--rate {rate:g}: says how fast, not how much; add --pairs")
    if reserve >= gpu_memory:
        raise ConfigError(f"--reserve {reserve:g}: leaves nothing of --gpu-memory {gpu_memory:g}; lower it")
    document = overridden(read_document(config), [read_override(override) for override in overrides], str(config))
    problems = [problem for name in ("align", "encode", "pretrain_encoder", "finetune") if name in document
                for problem in section_problems(load_stage(name), document[name])]
    if problems:
        raise ConfigError("\n".join(problems))
    known = stage_names(document)
    for name in chosen:
        if name not in known:
            raise ConfigError(f"--stage {name}: {config} has no such training stage; it has {', '.join(known) or 'none'}")
    if not known:
        raise ConfigError(f"{config}: has no training stage (align, finetune) to plan; give a whole profile")
    machine = Machine(gpus, round(gpu_memory * GIB), round(reserve * GIB))
    plans = [plan_stage(document, name, machine=machine, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens, assets=assets, features=features,
                        pairs=pairs, rate=rate) for name in chosen or known]
    if as_json:
        click.echo(json.dumps({"gpus": gpus, "bytes_per_gpu": machine.bytes_per_gpu, "reserve": machine.reserve, "rate": rate,
                               "stages": [plan.document() for plan in plans]}, indent=1))
        return
    from anymal.planning.report import describe

    click.echo("\n\n".join(describe(plan, machine) for plan in plans))
