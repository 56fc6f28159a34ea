"""What is wanted of a GPU, and what the ledger of benchmarks/gpu.py says of it: tables in Markdown."""

from typing import Any, NamedTuple

Ledger = dict[str, dict[str, Any]]  # by part
Found = list[tuple[str, float]]  # where, and what
Rows = dict[str, dict[str, Any]]  # by implementation


class Target(NamedTuple):
    """What is wanted, at least or, of times, at most; each number found must reach it."""

    text: str
    part: str
    goal: float | None
    unit: str
    found: Found

    def row(self) -> str:
        """Of the table; a target that was not measured says so."""
        is_time = self.unit in ("ms", "min")
        reached = [number <= self.goal if is_time else number >= self.goal for _, number in self.found if self.goal]
        goal = f"at {'most' if is_time else 'least'} {self.show(self.goal)}" if self.goal else ""
        measured = "; ".join(f"{self.show(number)} ({where})" for where, number in self.found) or "not yet run"
        met = {True: "yes", False: "no"}[all(reached)] if reached else ""
        return f"| {self.text} | {self.part} | {goal} | {measured} | {met} |"

    def show(self, number: float) -> str:
        """As a ratio, in percent or in the unit."""
        if self.unit in ("x", "%"):
            return f"{number:.2f}x" if self.unit == "x" else f"{100 * number:.1f} %"
        return f"{number:,.0f} {self.unit}" if number >= 100 else f"{number:.2f} {self.unit}"


def targets(ledger: Ledger) -> list[Target]:
    """From what was found so far."""
    numbers = {name: entry["numbers"] for name, entry in ledger.items() if entry["numbers"]}
    losses, attention = by_size(numbers.get("losses", []), "sce"), by_size(numbers.get("attention", []), "attention")
    updates = [(name, numbers.get("momentum", {}).get(name, 0.0)) for name in ("triton", "cuda")]
    views = {(row["case"], row["renderer"]): row["views_per_s"] for row in numbers.get("views", [])}
    both, small = (views.get((case, "device")) for case in ("two views", "strong\n32 px from 32 x 32"))
    training = numbers.get("training", {})
    epochs = f"{training.get('epoch', 0):.0f} epochs done"
    rate = training.get("images_per_s")

    def trained(number: float | None) -> Found:
        return [] if number is None else [(epochs, number)]

    def step(text: str, part: str, goal: float) -> Target:
        rows = [row for row in numbers.get(part, []) if row["method"].partition(",")[0] == "MoCo v2"]
        fastest = max(rows, key=lambda row: row["images_per_s"], default=None)
        return Target(
            f"a step of MoCo v2, {text}", part, goal, "images/s", [] if fastest is None else [described(fastest)]
        )

    return [
        Target("SCE's loss and gradient, n >= 512: times eager", "losses", 4.0, "x", ratios(losses, "eager")),
        Target("attention, n >= 512: times SDPA-flash", "attention", 1.1, "x", ratios(attention, "sdpa")),
        Target("attention, Triton, n >= 1024, d 128: of the measured matrix rate", "attention", 0.55, "%",
               shares(attention, "triton")),
        Target("attention, any kernel, n >= 1024, d 128 ([plan](#the-way-to-70--of-the-matrix-rate))", "attention", 0.7,
               "%", shares(attention, "triton", "cuda")),
        Target("momentum update of a ResNet-50, the faster kernel: of a copy's bandwidth", "momentum", 0.85, "%",
               [max(updates, key=lambda update: update[1])] if "momentum" in numbers else []),
        Target("two views of 256 images, 224 px from 400 x 500", "views", 5.0, "ms",
               [("device", 512e3 / both)] if both else []),
        Target("strong views at 32 px", "views", 1e6, "views/s", [("device", small)] if small else []),
        step("ResNet-18 at 32 px, batch 512", "step-resnet18", 25_000),
        step("ResNet-50 at 224 px, batch 256", "step-resnet50", 3_500),
        step("ViT-S/16 at 224 px, batch 256", "step-vit", 2_400),
        Target("200 epochs of recipe `cifar10`", "training", 7.0, "min", trained(rate and 200 * 50_000 / 60 / rate)),
        Target("kNN of recipe `cifar10`", "training", None, "%", trained(training.get("knn"))),
        Target("linear probe of recipe `cifar10` (paper: 90.34 %)", "training", None, "%",
               trained(training.get("linear"))),
    ]  # fmt: skip


def described(step: dict[str, Any]) -> tuple[str, float]:
    """A training step, as it was taken, and its rate."""
    how = next((way for way in ("captured", "compiled") if way in step["method"]), "as it is")
    busy = f", busy {100 * step['busy']:.0f} %" if "busy" in step else ""  # there is none where the profile failed
    return f"{how}, {step['gib']:.1f} GiB{busy}", step["images_per_s"]


def by_size(records: list[dict[str, Any]], what: str) -> dict[tuple[int, int], Rows]:
    """(n, d) -> implementation -> record."""
    sizes: dict[tuple[int, int], Rows] = {}
    for record in records:
        if record["what"] == what:
            sizes.setdefault((record["n"], record["d"]), {})[record["implementation"]] = record
    return sizes


def fastest(rows: Rows, *kernels: str) -> str | None:
    """Of the named kernels, with or without the promise of unit rows."""
    names = [name for name in rows if name.partition(",")[0] in kernels]
    return min(names, key=lambda name: rows[name]["seconds"], default=None)


def ratios(sizes: dict[tuple[int, int], Rows], other: str) -> Found:
    """How many times as fast as another implementation the faster of the two kernels is."""
    return [
        (f"n {n}, d {d}, {ours}", rows[other]["seconds"] / rows[ours]["seconds"])
        for (n, d), rows in sizes.items()
        if n >= 512 and other in rows and (ours := fastest(rows, "triton", "cuda"))
    ]


def shares(sizes: dict[tuple[int, int], Rows], *kernels: str) -> Found:
    """Of the matrix rate that was measured, by the fastest of the kernels."""
    return [
        (f"n {n}, {name}", rows[name]["flops"] / rows[name]["seconds"] / rows[name]["peak_flops"])
        for (n, d), rows in sizes.items()
        if n >= 1024 and d == 128 and (name := fastest(rows, *kernels))
    ]


def table_of_targets(ledger: Ledger) -> list[str]:
    """The targets, and which kernel is faster where; their order in ssl_core/ops/queue_attention.py follows from it."""
    lines = ["| target | part | goal | measured | met |", "|---|---|---|---|---|"]
    lines += [target.row() for target in targets(ledger)]
    if sizes := by_size(ledger.get("attention", {}).get("numbers", []), "attention"):
        lines += ["", "| n | d | triton, ms | cuda, ms | faster |", "|---|---|---|---|---|"]
    for (n, d), rows in sizes.items():
        names = [fastest(rows, kernel) for kernel in ("triton", "cuda")]
        cells = [f"{1e3 * rows[name]['seconds']:.3f} ({name})" if name else "not run" for name in names]
        lines.append(f"| {n} | {d} | {' | '.join(cells)} | {fastest(rows, 'triton', 'cuda') or ''} |")
    return lines
