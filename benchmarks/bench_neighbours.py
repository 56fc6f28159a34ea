"""The search for CLIM's positives: time and memory of k-means, assignment, nearest neighbors and choice.

python benchmarks/bench_neighbours.py                 # 50,000 x 128, 391 clusters, k 40, on the CPU
python benchmarks/bench_neighbours.py --imagenet      # 1,281,167 x 128, 10,000 clusters: estimated from parts
python benchmarks/bench_neighbours.py --device cuda   # the same as a whole, on a GPU with faiss-gpu

Features are l2-normalized, float32 in memory, around random centers. K-means is the library's own: 5 starts of 20
iterations, on all rows. Peak memory is what a call adds to the features: the rise of the resident set of a fresh
process; memory of a GPU is not measured.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from machine import describe_machine, measured_in_new_process, resident_bytes, wall_times_s

from ssl_clim.neighbours import (
    Clusters,
    Faiss,
    assigned,
    center_wise_positives,
    cluster,
    load_faiss,
    nearest,
    num_clusters,
)

DIM, K, P = 128, 40, 10
IMAGENET, IMAGENET_CLUSTERS = 1_281_167, 10_000
ITERATIONS, RESTARTS = 20, 5  # what `cluster` does if nothing is said
KMEANS, ASSIGNMENT, KNN, CHOICE = f"k-means, {RESTARTS} x {ITERATIONS} iterations", "assignment", "kNN", "choice"


def make_features(n: int, m: int) -> np.ndarray:
    """Rows around m random centers, noise as long as the center; made in blocks."""
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((m, DIM), dtype=np.float32)
    features = np.empty((n, DIM), np.float32)
    for block in np.array_split(features, max(1, n // 32768)):
        block[:] = centers[generator.integers(0, m, len(block))]
        block += generator.standard_normal(block.shape, dtype=np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return features


def pieces(features: np.ndarray, m: int, faiss: Faiss) -> dict[str, Callable[[], object]]:
    """The steps of a search. What one hands to the next is drawn at random here: its values change no time."""
    n, generator = len(features), np.random.default_rng(1)
    clusters = Clusters(
        features[:m],
        generator.integers(0, m, n, dtype=np.int32),
        generator.random(n, dtype=np.float32),
        n,
    )
    near = generator.integers(0, n, (n, K), dtype=np.int32)
    return {
        KMEANS: lambda: cluster(features, m, faiss, seed=0),
        ASSIGNMENT: lambda: assigned(features, clusters.centroids, faiss),
        KNN: lambda: nearest(features, K, faiss),
        CHOICE: lambda: center_wise_positives(clusters, near, P, seed=0, refresh=0),
    }


def print_all(n: int, m: int, faiss: Faiss, repeats: int, device: torch.device) -> None:
    print(f"{n} x {DIM}, {m} clusters, k {K}, {repeats} runs in turns after one")
    print("k-means includes one assignment\n")
    times = wall_times_s(pieces(make_features(n, m), m, faiss), repeats, device)
    print("| step | median s | spread s | peak memory MB |")
    print("|---|---|---|---|")
    for name, seconds in times.items():
        memory = "-"
        if device.type == "cpu":
            memory = f"{measured_in_new_process(__file__, f'{n},{m},{name}') / 1e6:.0f}"
        print(f"| {name} | {seconds.median:.2f} | {seconds.low:.2f} to {seconds.high:.2f} | {memory} |", flush=True)


def print_estimate(n: int, m: int, faiss: Faiss, quick: bool) -> None:
    """Time of parts of a search, and what they make for the whole if its time grows with its products."""
    part, queries = (n // 16, 4096) if quick else (n // 4, 32768)
    features = make_features(n, m)
    for run in pieces(features[: 2 * m], m, faiss).values():
        run()  # once, so that libraries and threads are there

    def seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    one, three = (
        seconds(lambda count=count: cluster(features[:part], m, faiss, seed=0, iterations=count, restarts=1))
        for count in (1, 3)
    )
    iteration = (three - one) / 2 * n / part
    assignment = seconds(lambda: assigned(features[:part], features[:m], faiss)) * n / part
    knn = seconds(lambda: nearest(features, K, faiss, num_queries=queries)) * n / queries
    choice = seconds(pieces(features, m, faiss)[CHOICE])
    kmeans = ITERATIONS * RESTARTS * iteration + assignment
    print(f"{n} x {DIM}, {m} clusters, k {K}\n")
    print("| step | measured | the whole, estimated |")
    print("|---|---|---|")
    print(f"| {KMEANS} | 2 iterations on {part} rows | {kmeans / 60:.1f} min |")
    print(f"| of which assignment | {part} rows | {assignment / 60:.1f} min |")
    print(f"| {KNN} | {queries} queries of {n} | {knn / 60:.1f} min |")
    print(f"| {CHOICE} | all | {choice / 60:.1f} min |")
    print(f"| all | | {(kmeans + knn + choice) / 60:.0f} min |")


def measure(task: str, faiss: Faiss) -> None:
    """Print the memory that a piece takes; in a process of its own."""
    n, m, name = task.split(",", 2)
    pieces(make_features(1000, 8), 8, faiss)[name]()  # what is loaded once
    run = pieces(make_features(int(n), int(m)), int(m), faiss)[name]
    print(resident_bytes(run))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="5,000 rows, or smaller parts of the ImageNet size")
    parser.add_argument("--imagenet", action="store_true", help="estimate the ImageNet size from parts of it")
    parser.add_argument("--rows", type=int, help="instead of those above, with a cluster for every 128")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    faiss = load_faiss(device)
    if arguments.measure:
        measure(arguments.measure, faiss)
        return
    if device.type == "cuda" and faiss.gpu is None:
        parser.error(f"--device {device}: {faiss.description}")

    print(__doc__.partition("\n")[0])
    print(describe_machine(device))
    print(f"{faiss.description}, {faiss.library.omp_get_max_threads()} threads")
    at_imagenet_size = arguments.imagenet or (device.type == "cuda" and not arguments.quick)
    n = arguments.rows or (IMAGENET if at_imagenet_size else 5_000 if arguments.quick else 50_000)
    m = IMAGENET_CLUSTERS if n == IMAGENET else num_clusters(n)
    if arguments.imagenet and device.type == "cpu":
        print_estimate(n, m, faiss, arguments.quick)
    else:
        print_all(n, m, faiss, 1 if arguments.quick else arguments.repeats, device)


if __name__ == "__main__":
    main()
