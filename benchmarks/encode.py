"""Speed of encode against its encoder's bare forward on preloaded tensors, and its peak memory at two sizes, in one run.

    python benchmarks/encode.py [--images 320]      # after `dvc repro curate_image`
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from anymal.data.encoding import encode_shards
from anymal.data.manifest import write_manifest
from anymal.data.shards import Sample, ShardWriter, read_shard, shard_paths
from anymal.model.encoders.image import EfficientNetLite

ABOUT = {"modality": "image", "encoder": {"asset": "efficientnet-lite0", "kind": "efficientnet_lite", "settings": {}}}
BATCH, WORKERS, PER_SHARD = 32, 2, 256


def repeat(shards: Path, folder: Path, count: int) -> Path:
    """`count` real samples, repeated under new keys where there are not enough."""
    samples = [sample for path in shard_paths(shards, "train") for sample in read_shard(path)]
    with ShardWriter(folder, "train", PER_SHARD) as writer:
        for index in range(count):
            one = samples[index % len(samples)]
            writer.write(Sample(f"k{index}", one.extension, one.data, one.meta))
    write_manifest(folder)
    return folder


def encode_and_report(encoder_folder: Path, shards: Path, target: Path) -> None:
    encoder = EfficientNetLite(encoder_folder)
    encoder.forward(torch.zeros(BATCH, 3, encoder.size, encoder.size))
    started = time.perf_counter()
    encode_shards(encoder, [shards], target, batch_size=BATCH, workers=WORKERS, description=ABOUT)
    print(json.dumps({"seconds": time.perf_counter() - started, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, nargs="+", default=[300, 3000])
    parser.add_argument("--shards", type=Path, default=Path("data/shards/image"))
    parser.add_argument("--encoder", type=Path, default=Path("data/assets/efficientnet-lite0"))
    parser.add_argument("--one", type=Path, nargs=2, metavar=("SHARDS", "TARGET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        encode_and_report(arguments.encoder, *arguments.one)
        return
    encoder = EfficientNetLite(arguments.encoder)
    batches = torch.rand(8, BATCH, 3, encoder.size, encoder.size) * 2 - 1
    encoder.forward(batches[0])
    started = time.perf_counter()
    for batch in batches:
        encoder.forward(batch)
    bare = batches.shape[0] * BATCH / (time.perf_counter() - started)
    print(f"bare forward            {bare:7.1f} images/s")
    with tempfile.TemporaryDirectory() as scratch:
        for count in arguments.images:
            shards = repeat(arguments.shards, Path(scratch) / f"shards-{count}", count)
            command = [sys.executable, __file__, "--encoder", arguments.encoder, "--one", shards, Path(scratch) / f"features-{count}"]
            out = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(out.splitlines()[-1])
            speed = count / found["seconds"]
            print(f"encode, {count:6} images   {speed:7.1f} images/s  ratio {speed / bare:.2f}  peak memory {found['peak_mib']:.0f} MiB")


if __name__ == "__main__":
    main()
