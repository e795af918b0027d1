"""The keeper process: writes its parent's heartbeats, outside the parent's interpreter lock.

It runs as a script and uses only the standard library, so that it takes only about 4 MB. ``identity`` imports
``stat_of`` from this module, because a script cannot import from its package.

It writes heartbeats while the parent is alive, is not stopped, and makes progress. When the parent dies, the keeper
process reports the death in Redis, and other processes take over the parent's messages at once. When the parent's
master has ended, it kills the parent after a grace period. Its standard input is a socket to the parent. Messages are
marshalled tuples:

    from the parent  (pid, beat_s, [beat.lua, leave.lua], group, consumer, lease_ms, master's pid or 0, grace_s),
                     the first message
                     ("moves", until): write heartbeats until this time on the monotonic clock, unless a later message
                     changes it
                     ("queue", name, [stream, consumers, timer], address): a new queue, or a new address
                     ("rest",): write no more heartbeats, but report the parent's death
                     ("stop",): end without a report
    to the parent    ("resting",): the answer to "rest"
                     ("beat", name, sent_at, was_in_time): a heartbeat was written, in time or after the lease lapsed
                     ("silent", name): a heartbeat was due but not written; the parent is stopped or makes no progress
                     ("lost", name, problem): the heartbeat could not be written; send the server's current address
"""

from __future__ import annotations

import marshal
import os
import select
import signal
import socket
import time

TYPE_CHECKING = False  # ``typing`` is not imported, to save memory
if TYPE_CHECKING:
    from typing import Any

MOST_BYTES = 1 << 20
# Pause after a failed heartbeat, and between attempts to report the parent's death.
AGAIN_AFTER_S = 0.5
# Interval between checks of the parent if pidfd_open (Linux 5.3) is not available.
LOOK_EVERY_S = 0.25
# How long a dying parent may still count as alive after its sockets have closed.
DYING_S = 2.0
LONGEST_WAIT_S = 3600.0
LATER = float("inf")
# States in /proc/<pid>/stat of a process that has ended.
ENDED = "ZXx"


class Refused(Exception):
    """Raised when Redis answers with an error."""


class Link:
    """A connection to one server, opened on first use."""

    def __init__(self, address: dict[str, Any], timeout_s: float) -> None:
        self.address = address
        self._timeout_s = min(timeout_s, address["timeout_s"])
        self._socket: socket.socket | None = None
        self._read = b""

    def call(self, *words: str | bytes | int) -> int | str:
        """Run one command and return its reply, an integer or a string.

        Raises:
            OSError: the connection failed and is closed.
            Refused: Redis answered with an error.
        """
        if self._socket is None:
            self._connect()
        return self._exchange(words)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._read = None, b""

    def _connect(self) -> None:
        address = self.address
        if address["path"]:
            plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            plain.settimeout(self._timeout_s)
            plain.connect(address["path"])
        else:
            plain = socket.create_connection((address["host"], address["port"]), self._timeout_s)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = plain
        try:
            if address["tls"] is not None:
                self._socket = encrypted(plain, address["tls"], address["host"])
            if address["password"] is not None:
                self._exchange(("AUTH", *filter(None, [address["username"]]), address["password"]))
            if address["db"]:
                self._exchange(("SELECT", address["db"]))
        except BaseException:
            self.close()
            raise

    def _exchange(self, words: tuple[str | bytes | int, ...]) -> int | str:
        assert self._socket is not None
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        packed = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        try:
            self._socket.sendall(packed)
            return self._answer()
        except OSError:
            self.close()
            raise

    def _answer(self) -> int | str:
        line = self._take(b"\r\n")
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            raise Refused(rest.decode(errors="replace"))
        return int(rest) if kind == b":" else rest.decode(errors="replace")

    def _take(self, end: bytes) -> bytes:
        assert self._socket is not None
        while end not in self._read:
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionResetError("the server closed the connection")
            self._read += more
        taken, _, self._read = self._read.partition(end)
        return taken


def encrypted(plain: socket.socket, tls: dict[str, Any], host: str) -> socket.socket:
    """Return the socket wrapped in TLS."""
    import ssl

    context = ssl.create_default_context()
    context.check_hostname = tls["check_hostname"]
    context.verify_mode = ssl.VerifyMode(tls["verify"])
    if tls["certfile"] or tls["keyfile"]:
        context.load_cert_chain(tls["certfile"], tls["keyfile"], tls["password"])
    if tls["ca_certs"] or tls["ca_path"] or tls["ca_data"]:
        context.load_verify_locations(tls["ca_certs"], tls["ca_path"], tls["ca_data"])
    if tls["min_version"] is not None:
        context.minimum_version = ssl.TLSVersion(tls["min_version"])
    if tls["ciphers"]:
        context.set_ciphers(tls["ciphers"])
    return context.wrap_socket(plain, server_hostname=host)


class Parent:
    """The process whose heartbeats this one writes."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd: int | None = None
        try:
            self.pidfd = os.pidfd_open(pid)
        except (AttributeError, OSError):
            self.pidfd = None
        # the parent may have died before it could be watched, and its pid may have been reused
        self._was_late = os.getppid() != pid

    def is_dead(self) -> bool:
        if self._was_late:
            return True
        if self.pidfd is not None:
            return bool(select.select([self.pidfd], [], [], 0)[0])
        return os.getppid() != self.pid or state_of(self.pid) in ENDED

    def is_stopped(self) -> bool:
        """Return whether the parent is stopped, by SIGSTOP or a debugger, so that it must lose its messages."""
        return state_of(self.pid) in "Tt"

    def kill(self) -> None:
        """Kill the parent unless it is dead. No other process can have its pid while it is alive."""
        if not self.is_dead():
            os.kill(self.pid, signal.SIGKILL)


def state_of(pid: int) -> str:
    """Return a process's state as the letter in /proc, or X if the process does not exist."""
    found = stat_of(pid)
    return "X" if found is None else found[0]


def stat_of(pid: int) -> tuple[str, str] | None:
    """Return a process's state and its start time in ticks since boot, or None if the process does not exist."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  # pathlib costs memory
            # the process name, in parentheses, may itself contain parentheses, so start after the last one
            after_name = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return after_name[0].decode(), after_name[19].decode()


class Master:
    """The process that started the parent. If ``pid`` is 0, the parent has no master."""

    def __init__(self, pid: int, grace_s: float) -> None:
        self._pid, self._grace_s = pid, grace_s
        self.pidfd: int | None = None
        self._kill_at = LATER
        if pid:
            try:
                self.pidfd = os.pidfd_open(pid)
            except (AttributeError, OSError):
                self.pidfd = None

    def look(self) -> None:
        """Start the grace period if the master has ended."""
        if self._pid and self._kill_at == LATER and self._has_ended():
            self._kill_at = time.monotonic() + self._grace_s
            if self.pidfd is not None:
                os.close(self.pidfd)
                self.pidfd = None

    def wait_s(self) -> float:
        """Return the seconds until ``look`` or ``is_grace_over`` must be called. A ready pidfd requires it earlier."""
        if self._kill_at != LATER:
            return max(0.0, self._kill_at - time.monotonic())
        return LOOK_EVERY_S if self._pid and self.pidfd is None else LONGEST_WAIT_S

    def is_grace_over(self) -> bool:
        return time.monotonic() >= self._kill_at

    def _has_ended(self) -> bool:
        if self.pidfd is not None:
            return bool(select.select([self.pidfd], [], [], 0)[0])
        return state_of(self._pid) in ENDED


class KeeperProcess:
    """The main loop of the keeper process."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        setup = _decoded(self._received())
        pid, self._beat_s, self._scripts, self._group, self._consumer, self._lease_ms, master_pid, grace_s = setup
        self._parent = Parent(pid)
        self._master = Master(master_pid, grace_s)
        self._moves_until = LATER
        self._links: dict[bytes, Link] = {}
        self._queues: dict[str, tuple[list[str], Link]] = {}
        self._due: dict[str, float] = {}
        self._is_resting = False

    def run(self) -> None:
        while True:
            for message in self._heard():
                if message is None and not self._is_dying():
                    return
                if message is not None and self._obey(message):
                    return
            if self._parent.is_dead():
                self._report_death()
                return
            self._master.look()
            if self._master.is_grace_over():
                self._parent.kill()
                time.sleep(LOOK_EVERY_S)
            elif not self._is_resting:
                self._beat_where_due()

    def _heard(self) -> list[tuple[Any, ...] | None]:
        """Wait until a heartbeat is due or messages arrive; return the messages, with None for a closed socket."""
        now = time.monotonic()
        wait_s = LONGEST_WAIT_S
        if not self._is_resting:
            wait_s = max(0.0, min(self._due.values(), default=now + wait_s) - now)
        wait_s = min(wait_s, self._master.wait_s())
        sources: list[Any] = [self._control]
        if self._master.pidfd is not None:
            sources.append(self._master.pidfd)
        if self._parent.pidfd is None:
            wait_s = min(wait_s, LOOK_EVERY_S)
        else:
            sources.append(self._parent.pidfd)
        ready, _, _ = select.select(sources, [], [], wait_s)
        heard: list[tuple[Any, ...] | None] = []
        while self._control in ready:
            packet = self._received()
            heard.append(_decoded(packet) if packet else None)
            ready = select.select([self._control], [], [], 0)[0] if packet else []
        return heard

    def _received(self) -> bytes:
        """Return one packet. It is empty if the parent has closed its end."""
        try:
            return self._control.recv(MOST_BYTES)
        except ConnectionResetError:
            # raised once if the parent died without reading all packets; after that, its last packets can be read
            return self._control.recv(MOST_BYTES)

    def _is_dying(self) -> bool:
        """Return whether the parent closed its socket because it is dying, rather than to let this process end."""
        deadline = time.monotonic() + DYING_S
        while not self._parent.is_dead():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _obey(self, message: tuple[Any, ...]) -> bool:
        """Handle a message from the parent; return whether it tells this process to end."""
        kind = message[0]
        if kind == "queue":
            _, name, keys, address = message
            link = self._links.setdefault(marshal.dumps(address), Link(address, self._beat_s))
            self._queues[name] = (keys, link)
            self._due.setdefault(name, time.monotonic() + self._beat_s)
        elif kind == "moves":
            self._moves_until = message[1]
        elif kind == "rest":
            self._is_resting = True
            self._say("resting")
        return bool(kind == "stop")

    def _beat_where_due(self) -> None:
        broken: set[Link] = set()
        for name in [name for name, at in self._due.items() if at <= time.monotonic()]:
            self._due[name] = time.monotonic() + self._beat_s
            if self._parent.is_stopped() or time.monotonic() > self._moves_until:
                # after every message, the parent checks its progress again and may send "moves"
                self._say("silent", name)
                continue
            sent_at = time.monotonic()
            _, link = self._queues[name]
            if link in broken:
                # try a hanging server only once per round, so that queues on other servers need not wait
                self._due[name] = time.monotonic() + min(AGAIN_AFTER_S, self._beat_s)
                self._say("lost", name, "another queue on its server failed")
                continue
            try:
                answer = self._run(name, self._scripts[0], self._lease_ms)
            except (OSError, Refused) as error:
                if isinstance(error, OSError):
                    broken.add(link)
                self._due[name] = time.monotonic() + min(AGAIN_AFTER_S, self._beat_s)
                self._say("lost", name, f"{type(error).__name__}: {error}")
                continue
            self._say("beat", name, sent_at, answer)

    def _report_death(self) -> None:
        left = set(self._queues)
        # by then, the lease has lapsed in any case
        deadline = time.monotonic() + self._lease_ms / 1000
        while left and time.monotonic() < deadline:
            for name in list(left):
                try:
                    self._run(name, self._scripts[1], 1)
                    left.discard(name)
                except (OSError, Refused):
                    continue
            if left:
                time.sleep(AGAIN_AFTER_S)

    def _run(self, name: str, script: str, last: int) -> int | str:
        """Run a script for one queue and return its reply.

        Raises:
            OSError: the connection failed; the next attempt opens a new one.
            Refused: Redis answered with an error.
        """
        keys, link = self._queues[name]
        command = ("EVAL", script, len(keys), *keys, self._group, self._consumer, last)
        try:
            return link.call(*command)
        except Refused as error:
            link.close()
            words = str(error).split()
            if words[0] != "MOVED":
                raise
            host, _, port = words[2].rpartition(":")
            address = {**link.address, "host": host or link.address["host"], "port": int(port)}
            moved = self._links.setdefault(marshal.dumps(address), Link(address, self._beat_s))
            self._queues[name] = (keys, moved)
            return moved.call(*command)

    def _say(self, *message: Any) -> None:
        try:  # noqa: SIM105  # contextlib costs memory
            # the parent may not read for a long time, for example while C code holds its interpreter lock
            self._control.send(marshal.dumps(message), socket.MSG_DONTWAIT)
        except OSError:
            pass


def _decoded(packet: bytes) -> tuple[Any, ...]:
    message: tuple[Any, ...] = marshal.loads(packet)  # noqa: S302  # from our own parent
    return message


def main() -> None:
    # ignore the signals that make the parent drain: that may take any length of time, and this process must outlive it
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    KeeperProcess(socket.socket(fileno=os.dup(0))).run()


if __name__ == "__main__":
    main()
