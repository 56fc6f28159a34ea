#!/bin/bash
# A run on all GPUs of several machines of a Slurm cluster. It is saved before the time limit, and the job is queued
# again until the run is done:
#
#     sbatch slurm.sh runs/imagenet -m ssl_sce --config imagenet --data.root data
#
#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64
#SBATCH --time=12:00:00 --signal=USR1@300 --requeue --open-mode=append

out=$1 && shift
saved() { stat --format=%y "$out/checkpoints/last.pt" 2> /dev/null; }
before=$(saved)
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Slurm sends SIGUSR1 to torchrun and its processes. Without these options torchrun would end at once.
srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:29500" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGUSR1 --shutdown-timeout 240 \
    "$@" --out "$out"
status=$?

# Stopped in time, preempted, or a machine lost: whatever ended the run, it goes on if this job has brought it further.
# An error that comes before the next checkpoint is one that waits for a person.
if [ "$status" != 0 ] && [ "$(saved)" != "$before" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
