#!/usr/bin/env bash
# What a machine with a GPU, PyTorch, timm and pytest but without a network lacks beside the checkout: compiled kernels,
# packages, CIFAR-10; in folders .pack/0, .pack/1, ... that are carried one after the other, and the calls to run there.
#
#   bash benchmarks/gpu_pack.sh DATA     # the folder with CIFAR-10's parquet shards
#
# faiss is not among them: its builds for GPUs (1.9) need CUDA 12's libraries, hundreds of MiB, beside a PyTorch of CUDA 13,
# and the part "neighbours" says that it is missing.
#
# Needs nvcc, a C++ compiler and uv. PYTHON is one of the other machine's version, LIMIT_MIB what a call may bring.
set -euo pipefail
export UV_PYTHON_DOWNLOADS=never SSL_CORE_BUILD=1
data=$(realpath "$1")
cd "$(dirname "$0")/.."
python=${PYTHON:-3.12} uv=${UV:-uv} limit=$((${LIMIT_MIB:-64} * 2 ** 20))
bytes() { du -cb --files0-from=- | tail -1 | cut -f1; }
limit=$((limit - $(git ls-files -zco --exclude-standard | bytes)))

rm -rf .pack/[0-9]* .pack/wheels
mkdir -p .pack/0/lib
for package in packages/*; do
    "$uv" build -q --wheel --python "$python" --build-constraint constraints.txt -o .pack/wheels "$package"
done
"$uv" pip install -q --python "$python" --target .pack/0/site --no-deps -c constraints.txt .pack/wheels/*.whl \
    antlr4-python3-runtime docstring-parser hydra-core jsonargparse kornia kornia-rs lightly omegaconf typeshed-client
rm -r .pack/wheels
# The sources are the checkout's; of the packages there are the compiled kernels, and the metadata that name versions.
mv .pack/0/site/ssl_core/{_C.*,libssl_core_cuda}.so .pack/0/lib
find .pack/0/site -maxdepth 1 -name "ssl_*" ! -name "*.dist-info" -exec rm -r {} +

pack=0
for shard in "$data"/test-*.parquet "$data"/train-*.parquet; do
    if (($(printf '%s\0' .pack/$pack "$shard" | bytes) > limit)); then
        mkdir .pack/$((++pack))
    fi
    cp --no-preserve=mode "$shard" .pack/$pack
done
for folder in .pack/*; do
    size=$(printf '%s\0' "$folder" | bytes)
    echo "$folder: $(numfmt --to=iec-i --suffix=B "$size")"
    ((size <= limit)) || { echo "$folder is larger than the $limit B that a call may bring beside the checkout" >&2; exit 1; }
done

cat << END

The first call; the results of each are taken in before the next:
  carry    .pack/0
  command  cp .pack/0/lib/* packages/core/src/ssl_core/ && PYTHONPATH=\$PWD/.pack/0/site python3 benchmarks/gpu.py --next --out \$OUT --seconds 480
  timeout  540 s
  here     python benchmarks/gpu.py --take FOLDER_OF_WHAT_CAME_BACK

For part training, on the same machine, each in a call with command "true" and timeout 60 s:
  carry    $(cd .pack && echo [1-9]* run-* | sed 's/ *run-\*//; s/[^ ]*/.pack\/&,/g; s/,$//')
and then the first call's command again, without carry, with --seconds 60 less than the device time that is left. When a slot ends before the run does, each of the machine's
.pack/run-0, run-1, ... comes back by a call "cp -r .pack/run-0 \$OUT", is taken in as results are, and is carried in the next slot.
END
