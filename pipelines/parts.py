"""The parts that pipelines are made of: each adds its tasks to a graph, takes what is `made` so far and adds what it makes.

What runs once per modality is one branch each, side by side; all branches align against the same LLM and meet in fine-tuning.
"""

from typing import Any

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Metrics, Model

from components.align import align as align_stage
from components.audit import audit as audit_stage
from components.benchmark import benchmark as benchmark_stage
from components.compose_instructions import compose_instructions as compose_instructions_stage
from components.curate_audio import curate_audio as curate_audio_stage
from components.curate_image import curate_image as curate_image_stage
from components.curate_imu import curate_imu as curate_imu_stage
from components.curate_safety import curate_safety as curate_safety_stage
from components.curate_video import curate_video as curate_video_stage
from components.encode import encode as encode_stage
from components.evaluate import evaluate as evaluate_stage
from components.evaluate_image_aligned import evaluate_image_aligned as evaluate_aligned_stage
from components.evaluate_mixed import evaluate_mixed as evaluate_mixed_stage
from components.evaluate_safety import evaluate_safety as evaluate_safety_stage
from components.finetune import finetune as finetune_stage
from components.gate import gate as gate_component
from components.import_instructions import import_instructions as import_instructions_stage
from components.ingest import ingest as ingest_stage
from components.pretrain_encoder import pretrain_encoder as pretrain_encoder_stage
from components.promote import promote as promote_component
from components.promote_guard import promote_guard as promote_guard_component
from components.register import register as register_stage
from components.register_guard import register_guard as register_guard_stage
from components.score import score as score_stage
from components.synthesize import synthesize as synthesize_stage
from components.train_safety import train_safety as train_safety_stage
from pipelines.tasks import Graph, section_of, settle

MODALITIES = ("image", "audio", "video", "imu")
EVALUATED = (*MODALITIES, "mixed")
TRAINED = ("audio", "imu")
"""Modalities whose encoder is trained here, where no weights of it can be had."""
ORIGINS = ("templates", "synthetic", "human")
"""Of instructions."""
KINDS: dict[str, type[Artifact]] = {
    "assets": Artifact, "shards": Dataset, "features": Dataset, "checkpoints": Model, "instructions": Dataset, "statistics": Metrics,
    "model": Model, "baselines": Dataset, "media": Dataset, "guard": Model, "data": Dataset, "figures": Metrics}
"""What an artifact is called, without its modality or origin -> its type, for importers."""


def imported(*names: str) -> dict[str, type[Artifact]]:
    """Arguments of a pipeline that starts from another's results: URI argument -> type."""
    return {name: KINDS[name.partition("_")[0]] for name in names}


def sections(*arguments: str) -> dict[str, str]:
    """Arguments of a pipeline -> sections of the profile."""
    return {argument: section_of(argument) for argument in arguments}


def each(kind: str, *, of: tuple[str, ...] = MODALITIES) -> tuple[str, ...]:
    """`features` -> features_image, features_audio, …"""
    return tuple(f"{kind}_{modality}" for modality in of)


def among(graph: Graph, *names: str) -> dict[str, Artifact]:
    """What is made under these names."""
    return {name: graph.made[name] for name in names}


def mixed_inputs(graph: Graph) -> dict[str, Artifact]:
    """Features and shards of the two modalities that mixed prompts hold (`evaluate.mixed.mixed.parts`)."""
    made = graph.made
    return {"features_first": made["features_image"], "shards_first": made["shards_image"],
            "features_second": made["features_imu"], "shards_second": made["shards_imu"]}


def ingest(graph: Graph) -> None:
    """`lock` -> `assets`."""
    task = graph.run(ingest_stage, "ingest", lock=graph.made["lock"]).after(graph.first)
    graph.made["assets"] = task.outputs["assets"]


def guard(graph: Graph) -> None:
    """`assets` -> `data_safety`, `guard`, `figures_safety`."""
    made = graph.made
    made["data_safety"] = graph.run(curate_safety_stage, "curate_safety", assets=made["assets"]).outputs["safety"]
    trained = graph.run(train_safety_stage, "train_safety", safety=made["data_safety"], assets=made["assets"])
    made["guard"], made["figures_safety"] = trained.outputs["guard"], trained.outputs["metrics"]


def curate(graph: Graph) -> None:
    """`assets`, `guard` -> `shards_M`, `statistics_M`; and human instructions, whose media are encoded with the rest."""
    assets, guard = graph.made["assets"], graph.made["guard"]
    curated = {"image": graph.run(curate_image_stage, "curate_image", assets=assets, guard=guard)}
    curated["audio"] = graph.run(curate_audio_stage, "curate_audio", assets=assets)
    curated["video"] = graph.run(curate_video_stage, "curate_video", stamps=curated["image"].outputs["stamps"], assets=assets)
    curated["imu"] = graph.run(curate_imu_stage, "curate_imu", assets=assets)
    for modality, task in curated.items():
        graph.made[f"shards_{modality}"], graph.made[f"statistics_{modality}"] = task.outputs["shards"], task.outputs["statistics"]
    human = graph.run(import_instructions_stage, "import_instructions", assets=assets, guard=guard, **among(graph, *each("shards")))
    graph.made["instructions_human"], graph.made["media_human"] = human.outputs["instructions"], human.outputs["media"]


def align(graph: Graph) -> None:
    """`shards_M`, `assets` -> `features_M`, `checkpoints_M`."""
    assets = graph.made["assets"]
    for modality in MODALITIES:
        shards, encoders = graph.made[f"shards_{modality}"], assets
        if modality in TRAINED:
            encoders = graph.run(pretrain_encoder_stage, f"pretrain_encoder_{modality}", shards=shards, assets=assets).outputs["encoders"]
        features = graph.run(encode_stage, f"encode_{modality}", shards_curated=shards, shards_human=graph.made["media_human"],
                             encoders=encoders).outputs["features"]
        graph.made[f"features_{modality}"] = features
        graph.made[f"checkpoints_{modality}"] = graph.run(align_stage, f"align_{modality}", features=features, assets=assets).outputs["checkpoint"]


def instruct(graph: Graph) -> None:
    """`features_M`, `shards_image`, `assets`, `guard` -> `instructions_templates`, `instructions_synthetic`."""
    made = graph.made
    templates = graph.run(compose_instructions_stage, "compose_instructions", **among(graph, *each("features")))
    synthetic = graph.run(synthesize_stage, "synthesize_image", shards=made["shards_image"], assets=made["assets"], guard=made["guard"])
    made["instructions_templates"], made["instructions_synthetic"] = templates.outputs["instructions"], synthetic.outputs["instructions"]


def tune(graph: Graph) -> None:
    """`checkpoints_M`, `features_M`, `instructions_ORIGIN`, `assets` -> `model`."""
    inputs = among(graph, *each("checkpoints"), *each("features"), *each("instructions", of=ORIGINS), "assets")
    graph.made["model"] = graph.run(finetune_stage, "finetune", **inputs).outputs["model"]


def measure_baseline(graph: Graph) -> None:
    """`checkpoints_image` and what belongs to it -> `baselines`: the model before fine-tuning."""
    made = graph.made
    task = graph.run(evaluate_aligned_stage, "evaluate_image_aligned", checkpoints=made["checkpoints_image"], features=made["features_image"],
                     shards=made["shards_image"], assets=made["assets"])
    made["baselines"] = task.outputs["predictions"]


def evaluate(graph: Graph) -> None:
    """`model`, `features_M`, `shards_M`, `baselines`, `assets` -> `benchmarks`, `evaluation`, `samples`."""
    made = graph.made
    predictions = {}
    for modality in MODALITIES:
        task = graph.run(evaluate_stage, f"evaluate_{modality}", checkpoints=made["model"], features=made[f"features_{modality}"],
                         shards=made[f"shards_{modality}"], assets=made["assets"])
        predictions[f"predictions_{modality}"] = task.outputs["predictions"]
    mixed = graph.run(evaluate_mixed_stage, "evaluate_mixed", checkpoints=made["model"], assets=made["assets"], **mixed_inputs(graph))
    predictions["predictions_mixed"] = mixed.outputs["predictions"]
    asked = graph.run(benchmark_stage, "benchmark", checkpoints=made["model"], assets=made["assets"]).outputs["predictions"]
    scored = graph.run(score_stage, "score", baselines=made["baselines"], benchmarks=asked, **predictions)
    made["benchmarks"], made["evaluation"], made["samples"] = asked, scored.outputs["metrics"], scored.outputs["samples"]


def audit(graph: Graph) -> None:
    """`shards_M`, `media_human`, `features_M`, `instructions_ORIGIN`, `benchmarks` -> `leakage`, if test data are in none of the training data."""
    inputs = among(graph, *each("shards"), *each("features"), *each("instructions", of=ORIGINS), "benchmarks")
    graph.made["leakage"] = graph.run(audit_stage, "audit", shards_human=graph.made["media_human"], **inputs).outputs["leakage"]


def judge_safety(graph: Graph) -> None:
    """`model`, `guard`, `data_safety`, `assets` -> `figures_integrity`: what the model does with harmful prompts, alone and behind the guard."""
    made = graph.made
    task = graph.run(evaluate_safety_stage, "evaluate_safety", guard=made["guard"], safety=made["data_safety"], checkpoints=made["model"],
                     assets=made["assets"])
    made["figures_integrity"] = task.outputs["metrics"]


def safety_figures(graph: Graph) -> dict[str, Artifact]:
    """What was measured of the guard, and of the model behind it."""
    return {"safety": graph.made["figures_safety"], "integrity": graph.made["figures_integrity"]}


def register_guard(graph: Graph) -> Any:
    """`guard`, `data_safety`, `figures_safety`, `figures_integrity` -> a candidate in the model registry; gives the task."""
    return graph.run(register_guard_stage, "register_guard", guard=graph.made["guard"], data=graph.made["data_safety"], **safety_figures(graph))


def promote_guard(graph: Graph) -> None:
    """As `register_guard`; and it becomes champion if it passes its gates. That is asked anew in each run, for champions change."""
    task = promote_guard_component(config=graph.given["promote_guard"], registration=register_guard(graph).outputs["registration"])
    settle(task, graph.cluster, graph.cluster.defaults).set_caching_options(False)


def register(graph: Graph) -> Any:
    """`model`, `statistics_M`, `evaluation`, `samples`, `leakage`, `figures_safety`, `figures_integrity`, `assets` -> a candidate; gives the task."""
    inputs = among(graph, "evaluation", "samples", "leakage", "assets", *each("statistics")) | safety_figures(graph)
    return graph.run(register_stage, "register", checkpoints=graph.made["model"], **inputs)


def promote_if_gates_pass(graph: Graph) -> None:
    """As `register`, if what was measured passes the gates that need no champion; and if it passes the others as well, it becomes champion.

    Whether it became champion is the output `verdict` of the task `promote`. That is asked anew in each run, for champions change.
    """
    rules, measured = graph.given["promote"], among(graph, "evaluation", "samples", "leakage") | safety_figures(graph)
    gate = settle(gate_component(config=rules, **measured), graph.cluster, graph.cluster.defaults)
    with dsl.If(gate.outputs["verdict"] == "passed", name="gate-passed"):
        promotion = promote_component(config=rules, registration=register(graph).outputs["registration"])
        settle(promotion, graph.cluster, graph.cluster.defaults).set_caching_options(False)
