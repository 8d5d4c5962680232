#!/usr/bin/env bash
# Trains on a TPU pod slice, a process on each of its machines:
#
#   experiments/cluster/tpu_pod.sh NAME ZONE DIR --config=... [FLAG...]
#
# The slice NAME is up, and on all its machines this repository lies at ~/lco_jax
# with `.venv` installed ('.[tpu]'). DIR is written by the first machine alone;
# give --resume to go on with the run in it, on a slice of any size.
set -eu
name=$1 zone=$2 dir=$3
shift 3
printf -v flags '%q ' --distributed --workdir="$dir" "$@"

exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd lco_jax && .venv/bin/python -m experiments.train_control $flags"
