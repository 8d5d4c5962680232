"""Scripts that start anew with huge pages."""

import os
import platform
import subprocess
import sys

import pytest

from experiments.common import huge_pages
from tests import scripts

_PROBE = """
import os, sys
from experiments.common import huge_pages
print("started")
huge_pages.restart()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""
_GLIBC = platform.libc_ver()[0] == "glibc"


def _run(folder, *command, **environment):
  (folder / "probe.py").write_text(_PROBE)
  kept = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
  }
  done = subprocess.run(
    [sys.executable, *command, "a", "--b=c d"],
    cwd=folder,
    env=kept | {"PYTHONPATH": str(scripts.ROOT)} | environment,
    capture_output=True,
    text=True,
    timeout=60,
    check=True,
  )
  return done.stdout.splitlines()


@pytest.mark.skipif(not _GLIBC, reason="needs the GNU C library")
def test_a_script_starts_anew_once(tmp_path):
  """With its arguments, and Python's own."""
  if not huge_pages._are_offered():
    pytest.skip("the system has no huge pages")
  assert _run(tmp_path, "-B", "-m", "probe") == [
    "started",
    "started",
    "glibc.malloc.hugetlb=1 ['a', '--b=c d']",
  ]


@pytest.mark.parametrize(
  ("command", "environment", "tunables"),
  [
    (("-m", "probe"), {"MALLOC_ARENA_MAX": "2"}, None),
    (
      ("-m", "probe"),
      {"GLIBC_TUNABLES": "glibc.malloc.check=0"},
      "glibc.malloc.check=0",
    ),
    (("probe.py",), {}, None),
    (("-c", _PROBE), {}, None),
  ],
)
def test_others_go_on(tmp_path, command, environment, tunables):
  """If the user has set the allocator, or Python did not start a module."""
  assert _run(tmp_path, *command, **environment) == [
    "started",
    f"{tunables} ['a', '--b=c d']",
  ]


@pytest.mark.parametrize(
  ("library", "mode", "offered"),
  [
    (("glibc", "2.36"), "always [madvise] never", True),
    (("glibc", "2.36"), "[always] madvise never", True),
    (("glibc", "2.36"), "always madvise [never]", False),
    (("glibc", "2.36"), None, False),
    (("glibc", "2.34"), "[always] madvise never", False),
    (("", ""), "[always] madvise never", False),
  ],
)
def test_where_there_are_huge_pages(
  tmp_path, monkeypatch, library, mode, offered
):
  path = tmp_path / "enabled"
  if mode is not None:
    path.write_text(mode)
  monkeypatch.setattr(huge_pages, "_MODE", path)
  monkeypatch.setattr(platform, "libc_ver", lambda: library)
  assert huge_pages._are_offered() is offered
