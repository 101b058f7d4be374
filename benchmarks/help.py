"""How long `anymal --help` takes: the median over processes, against the limit of 0.3 s. `python benchmarks/help.py [REPEATS]`."""

import statistics
import subprocess
import sys
import time

LIMIT = 0.3


def measure(repeats: int) -> list[float]:
    """Seconds of each call, the process start included."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(["anymal", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    times = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
    median = statistics.median(times)
    print(f"anymal --help: median {median:.3f} s of {len(times)}, from {min(times):.3f} to {max(times):.3f} (limit {LIMIT})")
    sys.exit(median > LIMIT)
