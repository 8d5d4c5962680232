"""Describes the job that a cluster started this process in.

The same that `jax.distributed.initialize` finds for itself, which comes too
late for `distributed.joined`: from the environment variables of SLURM, Open MPI
and GKE, and from the metadata of a Cloud TPU machine. As there, the variable
JAX_COORDINATOR_PORT takes precedence over a port that is derived.
"""

import importlib.util
import os
import re
import urllib.request
from collections.abc import Callable

from lco_jax.runs import distributed

# Set by mpirun for the processes that it starts.
_MPIRUN = "OMPI_MCA_orte_hnp_uri"
# Ports that are derived from a job's number: the last ones of all.
_NUM_PORTS = 2**12
_TPU_PORT = 8482
_METADATA_SECONDS = 60


def detect() -> distributed.Job:
  """Finds the job that SLURM, Open MPI, a TPU pod or GKE started.

  Raises:
    ValueError: if there is none.
  """
  for find in (_open_mpi, _slurm, _gke, _tpu_pod):
    job = find()
    if job is not None:
      return job
  raise ValueError(
    "distributed: no cluster was detected; give coordinator, num_processes"
    " and process_id"
  )


def _open_mpi() -> distributed.Job | None:
  """A process that mpirun started; the launcher's machine coordinates."""
  # 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911, or tcp6://[fe80::1,...]:43370
  uri = os.environ.get(_MPIRUN)
  if uri is None:
    return None
  address = re.search(r"tcp://(.+?)[,:]|tcp6://\[(.+?)[,\]]", uri)
  if address is None:
    raise ValueError(f"distributed: no address in {_MPIRUN}: {uri!r}")
  # Jobs are numbered in steps of 2¹².
  number = int(uri.partition(".")[0]) // 2**12
  return _job(
    address[1] or address[2],
    _port_of(number),
    *_numbers(
      "OMPI_COMM_WORLD_SIZE",
      "OMPI_COMM_WORLD_RANK",
      "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
  )


def _slurm() -> distributed.Job | None:
  """A task that srun started; the machine of the first coordinates."""
  names = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
  needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", *names)
  if not all(name in os.environ for name in needed):
    return None
  # node001, or node001,host2, or node[001-0015],host2, or node[001,007-015].
  name, bracket, rest = re.match(
    r"([^,\[]*)(\[?)(.*)", os.environ["SLURM_STEP_NODELIST"]
  ).groups()
  first = name + re.match(r"[^,\-\]]*", rest)[0] if bracket else name
  number = int(os.environ["SLURM_JOB_ID"])
  return _job(first, _port_of(number), *_numbers(*names))


def _gke() -> distributed.Job | None:
  """A process of a slice of TPUs under GKE."""
  workers = os.environ.get(
    "TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES")
  )
  if workers is None or not _drives_tpus():
    return None
  (worker,) = _numbers("TPU_WORKER_ID")
  return _slices(workers.split(","), worker, os.environ.get)


def _tpu_pod() -> distributed.Job | None:
  """A process on a machine of a Cloud TPU slice, as its metadata say."""
  if "TPU_SKIP_MDS_QUERY" in os.environ or not _drives_tpus():
    return None
  try:
    worker = int(_metadata("agent-worker-number"))
  except OSError:  # No such machine.
    return None
  # Machines by name, or name:id:address.
  try:
    endpoints = _metadata("worker-network-endpoints").split(",")
    pairs = re.findall(r"(\w+): *'?([^'\n]*)'?", _metadata("tpu-env"))
  except OSError as error:
    raise ValueError(f"distributed: metadata of this TPU: {error}") from error
  values = {**dict(pairs), **os.environ}
  return _slices([own.split(":")[-1] for own in endpoints], worker, values.get)


def _slices(
  workers: list[str], worker: int, value: Callable[[str], str | None]
) -> distributed.Job:
  """A job of one or several TPU slices with as many workers each."""
  host = value("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]
  count, number = (
    int(value(name) or least)
    for name, least in (("MEGASCALE_NUM_SLICES", 1), ("MEGASCALE_SLICE_ID", 0))
  )
  return _job(
    host.partition(":")[0],
    _TPU_PORT,
    len(workers) * count,
    worker + number * len(workers),
  )


def _job(
  host: str,
  port: int,
  num_processes: int,
  process_id: int,
  local_id: int | None = None,
) -> distributed.Job:
  """A job; processes of one machine have an accelerator each."""
  port = os.environ.get("JAX_COORDINATOR_PORT") or port
  return distributed.Job(
    f"{host}:{port}",
    num_processes,
    process_id,
    None if local_id is None else [local_id],
  )


def _port_of(number: int) -> int:
  """The port of a job with a number."""
  return number % _NUM_PORTS + 2**16 - _NUM_PORTS


def _numbers(*names: str) -> list[int]:
  """Environment variables that hold numbers.

  Raises:
    ValueError: naming one that does not.
  """
  for name in names:
    if not os.environ.get(name, "").isdecimal():
      raise ValueError(
        f"distributed: {name} must be a number, got {os.environ.get(name)!r}"
      )
  return [int(os.environ[name]) for name in names]


def _drives_tpus() -> bool:
  """Whether the library that drives TPUs is here."""
  return bool(
    os.environ.get("TPU_LIBRARY_PATH") or importlib.util.find_spec("libtpu")
  )


def _metadata(name: str) -> str:
  """An attribute of this Google Cloud machine.

  Raises:
    OSError: if it is none, or has no such attribute.
  """
  server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
  request = urllib.request.Request(
    f"http://{server}/computeMetadata/v1/instance/attributes/{name}",
    headers={"Metadata-Flavor": "Google"},
  )
  with urllib.request.urlopen(request, timeout=_METADATA_SECONDS) as answer:
    return answer.read().decode()
