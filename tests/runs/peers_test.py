"""The roll call and the watch, between threads instead of processes."""

import concurrent.futures
import contextlib
import queue
import socket
import time

import pytest

from lco_jax.runs import peers


@contextlib.contextmanager
def _listening():
  """An address that nobody listens at, and threads to run processes in."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    address = server.getsockname()
  with concurrent.futures.ThreadPoolExecutor() as pool:
    yield address, pool


def _links(address, pool, count=3):
  """What each of `count` processes holds after the roll call."""
  first = pool.submit(
    peers.call_roll, address, count, 5.0, "same", lambda: {"port": 7}
  )
  others = [
    pool.submit(peers.answer_roll, address, number, 5.0, "same")
    for number in range(1, count)
  ]
  answers = [future.result() for future in (first, *others)]
  assert all(notes == {"port": 7} for _, notes in answers)
  return [links for links, _ in answers]


def _into(end):
  """What a watch calls at the end."""
  return lambda why, status: end.put((why, status))


def _close(links):
  for link in links.values():
    link.close()


def test_all_are_connected_with_the_first():
  with _listening() as (address, pool):
    links = _links(address, pool)
  assert [sorted(x) for x in links] == [[1, 2], [0], [0]]
  links[0][2].send_bytes(b"two")
  assert links[2][0].recv_bytes() == b"two"
  for each in links:
    _close(each)


def test_who_is_missing_is_named_to_all():
  with _listening() as (address, pool):
    first = pool.submit(peers.call_roll, address, 4, 1.0, "same", dict)
    second = pool.submit(peers.answer_roll, address, 2, 5.0, "same")
    for future in (first, second):
      with pytest.raises(
        peers.PeerError, match=r"processes 1, 3 did not connect"
      ):
        future.result()


def test_who_hangs_up_may_come_again():
  """A process that is started anew while others are still missing."""
  with _listening() as (address, pool):
    first = pool.submit(peers.call_roll, address, 3, 10.0, "same", dict)
    with pytest.raises(
      peers.PeerError, match="the roll call|cannot be reached"
    ):
      peers.answer_roll(address, 1, 0.5, "same")
    others = [
      pool.submit(peers.answer_roll, address, number, 5.0, "same")
      for number in (1, 2)
    ]
    for future in (first, *others):
      links, _ = future.result()
    assert sorted(first.result()[0]) == [1, 2]
    _close(first.result()[0])


def test_nobody_answers():
  with _listening() as (address, _):
    start = time.monotonic()
    with pytest.raises(peers.PeerError, match="process 0 cannot be reached at"):
      peers.answer_roll(address, 1, 0.5, "same")
    assert time.monotonic() - start < 5


def test_a_port_that_is_taken():
  with (
    socket.create_server(("127.0.0.1", 0)) as server,
    pytest.raises(peers.PeerError, match="process 0 cannot listen at"),
  ):
    peers.call_roll(server.getsockname(), 2, 1.0, "same", dict)


@pytest.mark.parametrize(
  ("number", "settings", "line"),
  [
    (1, "same", "process 1 connected twice"),
    (5, "same", "process 5 connected twice, or the job has fewer processes"),
    (2, "other", "process 2 was started with other settings"),
  ],
)
def test_who_does_not_belong_is_named_to_all(number, settings, line):
  with _listening() as (address, pool):
    first = pool.submit(peers.call_roll, address, 3, 5.0, "same", dict)
    second = pool.submit(peers.answer_roll, address, 1, 5.0, "same")
    time.sleep(0.3)  # The other comes after it.
    third = pool.submit(peers.answer_roll, address, number, 5.0, settings)
    for future in (first, second, third):
      with pytest.raises(peers.PeerError, match=line):
        future.result()


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize(
  "words", [b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2hi"]
)
def test_strangers_do_not_disturb(words, stays):
  with _listening() as (address, pool):
    first = pool.submit(peers.call_roll, address, 2, 5.0, "same", dict)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
      with contextlib.suppress(ConnectionRefusedError):
        stranger = socket.create_connection(address)
        break
    stranger.sendall(words)
    if not stays:
      stranger.close()
    links, _ = peers.answer_roll(address, 1, 5.0, "same")
    held, _ = first.result()
    stranger.close()
    assert sorted(held) == [1]
    _close(links)
    _close(held)


@pytest.fixture
def watched():
  """Three processes' links, watches, and what ended each of them."""
  with _listening() as (address, pool):
    links = _links(address, pool)
  ends = [queue.Queue() for _ in links]
  watches = [
    peers.Watch(held, 0.5, _into(end))
    for held, end in zip(links, ends, strict=True)
  ]
  yield links, watches, ends
  for held in links:
    _close(held)


def test_beats_keep_a_job_alive_until_all_leave(watched):
  _, watches, ends = watched
  time.sleep(1.5)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    leaving = [pool.submit(watch.leave) for watch in watches[:2]]
    time.sleep(1.0)  # They wait for the last.
    assert not any(future.done() for future in leaving)
    leaving.append(pool.submit(watches[2].leave))
    for future in leaving:
      future.result(timeout=5)
  assert all(end.empty() for end in ends)


def test_a_lone_process_may_leave():
  peers.Watch({}, 0.5, pytest.fail).leave()


def test_why_a_process_failed_is_told_to_all(watched):
  _, watches, ends = watched
  watches[2].fail("process 2: the disk is full", 3)
  for end in ends[:2]:
    assert end.get(timeout=5) == ("process 2: the disk is full", 3)
  time.sleep(0.3)
  assert ends[2].empty()


@pytest.mark.parametrize(
  ("lose", "line"),
  [
    (_close, "process 2 is gone"),
    (lambda links: None, "process 2 has not answered for 0.5 s"),
  ],
  ids=["gone", "silent"],
)
def test_who_is_lost_is_named_to_all(lose, line):
  """One process has no watch: it says nothing, as if it were stopped."""
  with _listening() as (address, pool):
    links = _links(address, pool)
  ends = queue.Queue(), queue.Queue()
  start = time.monotonic()
  for held, end in zip(links[:2], ends, strict=True):
    peers.Watch(held, 0.5, _into(end))
  lose(links[2])
  for end in ends:
    assert end.get(timeout=5) == (line, 1)
  assert time.monotonic() - start < 3
  for held in links:
    _close(held)
