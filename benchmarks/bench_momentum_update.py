"""Time of the momentum update of a ResNet-50: this repository's back-ends, foreach, and torch's swa_utils.

python benchmarks/bench_momentum_update.py            # on the GPU if there is one

Bytes are those that must move: 12 for each parameter (read both, write one), 14 with a bfloat16 shadow. The measured
copy bandwidth of the same machine is what they are compared with. On a GPU the first time is the device's; the host's
share, which counts where it is not ahead, is in the last column.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe_machine, times_s, wall_times_s
from timm import create_model
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ssl_core.ops import momentum_update_
from ssl_core.ops.backends import choose_backend
from ssl_core.ops.momentum_update import BACKENDS

MOMENTUM = 0.99
COPY = "copy of as many numbers"


def ours(backend: str, update: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        os.environ["SSL_CORE_BACKEND"] = backend
        update()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument("--quick", action="store_true", help="5 repeats")
    parser.add_argument("--model", default="resnet50", help="of timm")
    parser.add_argument("--json", type=Path, help="file for the share of the copy's rate that each reaches")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    repeats = 5 if arguments.quick else arguments.repeats

    online, target = (list(create_model(arguments.model).to(device).parameters()) for _ in range(2))
    for parameter in (*online, *target):
        parameter.requires_grad_(requires_grad=False)
    shadow = [parameter.bfloat16() for parameter in target]
    numbers = sum(parameter.numel() for parameter in target)
    momentum = torch.tensor(MOMENTUM, device=device)
    source, copy = torch.randn(numbers, device=device), torch.empty(numbers, device=device)
    swa = get_ema_multi_avg_fn(MOMENTUM)
    # Bytes of a parameter, and function, in two rounds: what a GPU keeps between calls changes with the shadow.
    copies: dict[str, tuple[int, Callable[[], object]]] = {COPY: (8, lambda: copy.copy_(source))}
    plain, with_shadow = dict(copies), dict(copies)
    for name in BACKENDS:
        try:
            choose_backend("momentum_update_", BACKENDS, device, torch.float32, requested=name)
        except ValueError:
            continue
        plain[name] = (12, ours(name, lambda: momentum_update_(target, online, momentum)))
        run = ours(name, lambda: momentum_update_(target, online, momentum, shadow_params=shadow))
        with_shadow[f"{name}, with shadow"] = (14, run)
    plain["torch._foreach_lerp_"] = (12, lambda: torch._foreach_lerp_(target, online, 1 - MOMENTUM))
    plain["swa_utils.get_ema_multi_avg_fn"] = (12, lambda: swa(target, online, None))

    print(__doc__.partition("\n")[0])
    print(describe_machine(device))
    print(f"{numbers / 1e6:.1f} M parameters in {len(target)} tensors, {repeats} runs in turns\n")
    print("| implementation | median ms | spread ms | GB/s | of the copy | as the host sees it, ms |")
    print("|---|---|---|---|---|---|")
    shares = {}
    for runs in (plain, with_shadow):
        functions = {name: run for name, (_, run) in runs.items()}
        found = times_s(functions, repeats, device)
        seen_by_host = wall_times_s(functions, repeats, device) if device.type == "cuda" else found
        rates = {name: size * numbers / found[name].median for name, (size, _) in runs.items()}
        for name, times in found.items():
            shares[name] = rates[name] / rates[COPY]
            print(
                f"| {name} | {1e3 * times.median:.3f} | {1e3 * times.low:.3f} to {1e3 * times.high:.3f} "
                f"| {rates[name] / 1e9:.1f} | {100 * shares[name]:.0f} % | {1e3 * seen_by_host[name].median:.3f} |",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(shares, indent=1))


if __name__ == "__main__":
    main()
