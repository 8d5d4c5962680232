"""Clusters as their processes see them: by variables and metadata."""

import http.server
import threading

import pytest

from lco_jax.runs import clusters, distributed

_SLURM = {
  "SLURM_JOB_ID": "4096",
  "SLURM_NTASKS": "8",
  "SLURM_PROCID": "5",
  "SLURM_LOCALID": "1",
}
_OPEN_MPI = {
  "OMPI_COMM_WORLD_SIZE": "4",
  "OMPI_COMM_WORLD_RANK": "3",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
_SLICES = {
  "MEGASCALE_COORDINATOR_ADDRESS": "first:1234",
  "MEGASCALE_NUM_SLICES": "3",
  "MEGASCALE_SLICE_ID": "2",
}


@pytest.fixture
def environ(monkeypatch):
  """Sets variables, of no cluster else; a library that drives TPUs is here."""
  monkeypatch.setenv("TPU_LIBRARY_PATH", "libtpu.so")
  monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")

  def update(variables):
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return update


@pytest.mark.parametrize(
  ("nodes", "first"),
  [
    ("gpu[07-08]", "gpu07"),
    ("node001", "node001"),
    ("node001,host2", "node001"),
    ("node[001-0015],host2", "node001"),
    ("node[001,007-015],host2", "node001"),
    ("node[5]", "node5"),
    ("a-b[3-4,6]", "a-b3"),
  ],
)
def test_slurm_is_detected(environ, nodes, first):
  """Nodes of four GPUs, a process each; SLURM's list of nodes is folded."""
  environ(_SLURM | {"SLURM_STEP_NODELIST": nodes})
  assert clusters.detect() == distributed.Job(f"{first}:61440", 8, 5, [1])


@pytest.mark.parametrize(
  ("uri", "coordinator"),
  [
    ("1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", "10.96.0.1:62624"),
    ("1314521088.0;tcp6://[fe80::b9b,2620::2]:43370", "fe80::b9b:62880"),
  ],
)
def test_open_mpi_is_detected(environ, uri, coordinator):
  environ(_OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": uri})
  assert clusters.detect() == distributed.Job(coordinator, 4, 3, [1])


def test_a_port_can_be_given(environ):
  environ(_SLURM | {"SLURM_STEP_NODELIST": "a", "JAX_COORDINATOR_PORT": "77"})
  assert clusters.detect().coordinator == "a:77"


@pytest.mark.parametrize(
  ("slices", "job"),
  [({}, ("t0:8482", 2, 1)), (_SLICES, ("first:8482", 6, 5))],
)
def test_gke_is_detected(environ, slices, job):
  environ({"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "1"} | slices)
  assert clusters.detect() == distributed.Job(*job)


@pytest.fixture
def metadata():
  """Serves attributes of a machine: (address, {name: value})."""
  values = {}

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
      name = self.path.rpartition("/")[2]
      asked_well = self.headers["Metadata-Flavor"] == "Google"
      self.send_response(200 if asked_well and name in values else 404)
      self.end_headers()
      self.wfile.write(values.get(name, "").encode())

    def log_message(self, *args):
      pass

  with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", values
    server.shutdown()
    thread.join()


@pytest.mark.parametrize(
  ("endpoints", "environment", "job"),
  [
    ("t0,t1", "A: 'b:c'\n", ("t0:8482", 2, 1)),
    ("x:0:10.0.0.1,x:1:10.0.0.2", "", ("10.0.0.1:8482", 2, 1)),
    (
      "t0,t1",
      "".join(f"{name}: '{value}'\n" for name, value in _SLICES.items()),
      ("first:8482", 6, 5),
    ),
  ],
)
def test_a_tpu_pod_is_detected(
  environ, monkeypatch, metadata, endpoints, environment, job
):
  address, values = metadata
  environ({"GCE_METADATA_IP": address})
  monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
  with pytest.raises(ValueError, match="no cluster was detected"):
    clusters.detect()
  values["agent-worker-number"] = "1"
  values["worker-network-endpoints"] = endpoints
  values["tpu-env"] = environment
  assert clusters.detect() == distributed.Job(*job)


@pytest.mark.parametrize(
  ("variables", "message"),
  [
    ({}, "no cluster was detected"),
    ({"SLURM_JOB_ID": "3"}, "no cluster was detected"),
    (
      _SLURM | {"SLURM_STEP_NODELIST": "a", "SLURM_PROCID": "x"},
      "SLURM_PROCID must be a number",
    ),
    (_OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1;x"}, "no address"),
  ],
)
def test_what_is_no_cluster(environ, variables, message):
  environ(variables)
  with pytest.raises(ValueError, match=message):
    clusters.detect()
