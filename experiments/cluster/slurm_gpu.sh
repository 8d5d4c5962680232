#!/usr/bin/env bash
# Trains on the GPUs of SLURM nodes, a process for each GPU:
#
#   sbatch --nodes=2 experiments/cluster/slurm_gpu.sh SCRIPT DIR --config=... [FLAG...]
#
# SCRIPT is train_control, train_language, train_llm or train_verifier. DIR is on
# a disk that all nodes see. Before its time is up, the job saves its state, is
# queued again and goes on; one that failed goes on from its last checkpoint if
# submitted again with the same DIR. It is saved and stopped only between chunks of
# updates: where 200 updates take long, --config.updates_per_chunk makes them
# shorter.
#
# With --array=0-7 each job of the array has a seed of its own, and the directory
# DIR/seed_N. With SWEEP=policy_learning_rate SWEEP_VALUES="1e-5 3e-5 1e-4" and
# --array=0-2 it has a value of that setting. experiments.report DIR/* joins them.
#SBATCH --job-name=lco_jax
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
script=$1 dir=$2
shift 2
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  name=${SWEEP:-seed}
  read -ra values <<<"${SWEEP_VALUES:-}"
  value=${values[$SLURM_ARRAY_TASK_ID]:-}
  # Seeds need no list: the job's number is its seed.
  [[ $name == seed && -z ${SWEEP_VALUES:-} ]] && value=$SLURM_ARRAY_TASK_ID
  if [[ -z $value ]]; then
    echo "error: SWEEP_VALUES has no value $SLURM_ARRAY_TASK_ID of $name" >&2
    exit 2
  fi
  dir=$dir/${name}_$value
  set -- "$@" "--config.$name=$value"
fi
resume=()
[[ -e $dir/config.json ]] && resume=(--resume)

# Not handed on by itself.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
srun .venv/bin/python -m "experiments.$script" \
  --distributed --workdir="$dir" "${resume[@]}" "$@"
status=$?
if [[ $status -eq 75 ]]; then # Stopped by the signal, with its state saved.
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
