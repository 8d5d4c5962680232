#!/usr/bin/env bash
# Trains on a TPU pod slice, a process on each of its machines:
#
#   experiments/cluster/tpu_pod.sh SCRIPT NAME ZONE DIR --config=... [FLAG...]
#
# SCRIPT is train_control, train_language, train_llm or train_verifier. The slice
# NAME is up, and on all its machines this repository lies at ~/lco_jax with `.venv`
# installed ('.[tpu]'). DIR is written by the first machine alone; give --resume to
# go on with the run in it, on a slice of any size.
set -eu
script=$1 name=$2 zone=$3 dir=$4
shift 4
printf -v flags '%q ' --distributed --workdir="$dir" "$@"

exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd lco_jax && .venv/bin/python -m experiments.$script $flags"
