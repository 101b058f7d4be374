"""Score a prediction file of lmms-eval, COCO, VQA, VizWiz or LLaVA again."""

from __future__ import annotations

from pathlib import Path

import click

FILE = click.Path(path_type=Path)
RESAMPLES = 1000


@click.command("rescore", short_help="Score a prediction file of lmms-eval, COCO, VQA, VizWiz or LLaVA again.")
@click.option("--predictions", required=True, type=FILE, metavar="FILE", help="Its layout is told by its fields.")
@click.option("--references", type=FILE, metavar="FILE",
              help="Of the official form: COCO captions, VQA or VizWiz annotations, POPE questions, ScienceQA's problems.json. "
                   "Without it, the targets in lmms-eval's samples.")
@click.option("--variant", metavar="NAME", help="How VQA answers are normalised: vqa_eval (the official script), evalai or published.")
@click.option("--subset", is_flag=True, help="Score the samples that were predicted; how many references are left out is written down.")
@click.option("--id-field", default="doc_id", show_default=True, metavar="NAME",
              help="Of lmms-eval's samples: what names them as the references do, such as doc.question_id.")
@click.option("--spice", type=FILE, metavar="FOLDER", help="Where the jars of SPICE are; without it there is no SPICE and no SPIDEr.")
@click.option("--resamples", type=click.IntRange(min=1), default=RESAMPLES, show_default=True, help="Bootstrap resamples.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the resamples.")
@click.option("--output", type=FILE, metavar="FILE", help="Where to write the figures, as JSON.")
@click.option("--samples", type=FILE, metavar="FILE", help="Where to write what each sample scored, as JSON lines.")
@click.option("--lmms", type=FILE, metavar="FOLDER", help="Where to write samples and results in lmms-eval's layouts.")
def command(*, predictions: Path, references: Path | None, variant: str | None, subset: bool, id_field: str, spice: Path | None, resamples: int,
            seed: int, output: Path | None, samples: Path | None, lmms: Path | None) -> None:
    """Score a prediction file against references: figures with 95% intervals, and how each was made.

    What is scored follows from the references: captions (CIDEr-D, BLEU, ROUGE-L, METEOR, SPICE), answers (VQA accuracy), yes or no (accuracy,
    precision, recall, F1, share of yes) or options (accuracy). docs/metrics.md says how.
    """
    from anymal.errors import ConfigError
    from anymal.evaluation.bootstrap import write_samples
    from anymal.evaluation.comparison import shown
    from anymal.evaluation.formats.documents import write_json
    from anymal.evaluation.rescore import read_predictions, read_references, rescore, targets, write_lmms
    from anymal.evaluation.vqa import VARIANTS

    if variant is not None and variant not in VARIANTS:
        raise ConfigError(f"--variant {variant}: unknown; known: {', '.join(VARIANTS)}")
    said = read_predictions(predictions, id_field=id_field)
    truth = targets(said) if references is None else read_references(references)
    found = rescore(said, truth, variant=variant, subset=subset, spice_folder=spice, resamples=resamples, seed=seed)
    for name, figure in found.figures.items():
        click.echo(f"{name:14} {shown({part: figure[part] for part in ('value', 'low', 'high')})}  n={figure['n']}")
    for name, entry in found.document.items():
        if name in {"unparsable", "empty_answers", "left_out"} and entry:
            click.echo(f"{name:14} {entry}")
        elif name == "absent":
            click.echo(f"{', '.join(entry)}: {next(iter(entry.values()))}")
        elif name in {"variant", "normaliser", "protocol"}:
            click.echo(f"{name}: {entry}")
    if output is not None:
        write_json(output, found.document)
    if samples is not None:
        write_samples(samples, found.rows)
    if lmms is not None:
        write_lmms(lmms, said, truth, found)
