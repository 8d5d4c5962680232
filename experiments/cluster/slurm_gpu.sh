#!/usr/bin/env bash
# Trains on the GPUs of SLURM nodes, a process for each GPU:
#
#   sbatch --nodes=2 experiments/cluster/slurm_gpu.sh DIR --config=... [FLAG...]
#
# DIR is on a disk that all nodes see. Before its time is up, the job saves its
# state, is queued again and goes on; one that failed goes on from its last
# checkpoint if submitted again with the same DIR. It is saved and stopped only
# between chunks of updates: where 200 updates take long, --config.updates_per_chunk
# makes them shorter.
#SBATCH --job-name=lco_jax
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
dir=$1
shift
resume=()
[[ -e $dir/config.json ]] && resume=(--resume)

# Not handed on by itself.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
srun .venv/bin/python -m experiments.train_control \
  --distributed --workdir="$dir" "${resume[@]}" "$@"
status=$?
if [[ $status -eq 75 ]]; then # Stopped by the signal, with its state saved.
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
