"""The lab: listeners on loopback, a network of namespaces, a Postfix of its own.

Everything has a name or a port of its own, so that tests may run side by side, and nothing can
reach beyond this machine: the networks have no way out, Postfix listens on loopback only and
sends nothing on.

As a program, `labtools.py tcp:25:BANNER udp:53 ...` listens in the namespace where it is started
until its standard input ends.
"""
import email
import email.policy
import functools
import itertools
import os
import pwd
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

COUNTER = itertools.count()
TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def call(*words, check=True, timeout=60):
    """The finished process; what it wrote stands in the exception where it must not fail."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=timeout)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.returncode}\n"
                           f"{done.stdout}{done.stderr}")
    return done


def wait_until(true, seconds, what):
    limit = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > limit:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)
    return found


def loopback(place):
    """An address of 127.0.0.0/8 for this worker process alone: place 1 to 250."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    return f"127.{64 + worker}.{os.getpid() % 200 + 1}.{place}"


# ---- Listeners ---------------------------------------------------------------------------------

class Listener:
    """One open port: greets with its banner; what answer(datagram) gives goes back over UDP."""

    def __init__(self, address, port, protocol="tcp", banner=b"", answer=None):
        self.banner, self.answer = banner, answer or (lambda data: banner or b"\0")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = socket.socket(family, TYPES[protocol])
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind((address, port))
        except OSError as error:
            self.socket.close()
            raise OSError(f"{address} port {port}/{protocol}: {error}") from None
        self.socket.setblocking(False)
        if protocol == "tcp":
            self.socket.listen(64)
        self.ready = self.accept if protocol == "tcp" else self.receive
        self.address, self.port = self.socket.getsockname()[:2]

    def accept(self):
        connection, _ = self.socket.accept()
        with connection:
            connection.sendall(self.banner)

    def receive(self):
        data, sender = self.socket.recvfrom(65535)
        if reply := self.answer(data):
            self.socket.sendto(reply, sender)


class Listeners:
    """Any number of listeners, served by one thread while the `with` block lasts."""

    def __enter__(self):
        self.selector, self.lock = selectors.DefaultSelector(), threading.Lock()
        self.wake, self.end = socket.socketpair()
        self.selector.register(self.end, selectors.EVENT_READ)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()
        return self

    def add(self, address, port, protocol="tcp", banner=b"", answer=None):
        listener = Listener(address, port, protocol, banner, answer)
        listener.close = lambda: self.remove(listener)
        with self.lock:
            self.selector.register(listener.socket, selectors.EVENT_READ, listener)
        return listener

    def remove(self, listener):
        with self.lock:
            if listener.socket.fileno() >= 0:
                self.selector.unregister(listener.socket)
                listener.socket.close()

    def serve(self):
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    return
                with self.lock:
                    try:
                        key.data.ready()
                    except OSError:         # closed in the meantime, or the other side went away
                        pass

    def __exit__(self, *_):
        self.wake.close()
        self.thread.join()
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        self.selector.close()


def name_server(names):
    """What answers reverse DNS questions from {address: name}; for Listener's answer."""
    wanted = {".".join(reversed(address.split("."))) + ".in-addr.arpa": name
              for address, name in names.items()}

    def answer(query):
        labels, place = [], 12
        while size := query[place]:
            labels.append(query[place + 1:place + 1 + size].decode("ascii", "replace"))
            place += size + 1
        question = query[12:place + 5]
        name = wanted.get(".".join(labels).lower())
        head = query[:2] + struct.pack(">HHHHH", 0x8580 if name else 0x8583, 1, bool(name), 0, 0)
        if not name:
            return head + question
        encoded = b"".join(bytes([len(label)]) + label for label in name.encode().split(b"."))
        return (head + question + b"\xc0\x0c\0\x0c\0\1\0\0\0\x3c"
                + struct.pack(">H", len(encoded) + 1) + encoded + b"\0")
    return answer


# ---- Namespaces --------------------------------------------------------------------------------

@functools.cache
def no_network():
    """Why there can be no network of namespaces here, or nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [name for name in ("ip", "nft") if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)} (Debian: iproute2, nftables)"
    try:
        net = Network(2)
        net[2].drop("22")
        net.close()
    except RuntimeError as error:
        return f"no network of namespaces here: {error}"
    return ""


class Host:
    """A host of a Network: a namespace with one address."""

    def __init__(self, network, name, address):
        self.network, self.address, self.services = network, address, {}
        self.namespace = f"{network.tag}-{name}"
        self.prefix = ("ip", "netns", "exec", self.namespace)
        call("ip", "netns", "add", self.namespace)
        network.namespaces.append(self.namespace)
        network.plug(self, name)

    def run(self, *words, **options):
        return call(*self.prefix, *words, **options)

    def serve(self, *ports):
        """Opens ports: 25, "udp:53", "tcp:25:220 banner"."""
        for port in ports:
            word = port if isinstance(port, str) else f"tcp:{port}"
            process = subprocess.Popen(
                [*self.prefix, sys.executable, "-E", "-S", __file__, word], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"{self.address}: {word} cannot listen")
            self.services[word.split(":")[1]] = process

    def stop(self, port):
        """Closes a port again."""
        process = self.services.pop(str(port))
        process.stdin.close()
        process.stdout.close()
        process.wait()

    def drop(self, ports, protocol="tcp"):
        """From now on a firewall swallows what comes to these ports: "22,80" or "1-1024"."""
        self.run("nft", "add table inet lab; "
                 "add chain inet lab input { type filter hook input priority 0; }; "
                 f"add rule inet lab input {protocol} dport {{ {ports} }} drop")

    def accept(self):
        """The firewall is gone."""
        self.run("nft", "delete table inet lab")

    def down(self):
        self.run("ip", "link", "set", "eth0", "down")

    def up(self):
        self.run("ip", "link", "set", "eth0", "up")


class Network:
    """A bridge with a scanner, 10.99.0.1, and hosts: the last octets of their 10.99.0.0/24."""

    def __init__(self, *hosts):
        self.tag = f"na{os.getpid()}-{next(COUNTER)}"
        self.namespaces, self.switch = [], f"{self.tag}-sw"
        try:
            call("ip", "netns", "add", self.switch)
            self.namespaces.append(self.switch)
            call("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
            call("ip", "-n", self.switch, "link", "set", "br0", "up")
            self.scanner = Host(self, "s", "10.99.0.1")
            self.hosts = {octet: Host(self, str(octet), f"10.99.0.{octet}") for octet in hosts}
        except BaseException:
            self.close()
            raise

    def __getitem__(self, octet):
        return self.hosts[octet]

    def plug(self, host, name):
        """Addresses without IPv6 and a bridge without spanning tree: up at once."""
        for words in (("link", "add", "eth0", "type", "veth", "peer", "name", f"p{name}",
                       "netns", self.switch),
                      ("addr", "add", f"{host.address}/24", "dev", "eth0"),
                      ("link", "set", "lo", "up"), ("link", "set", "eth0", "up")):
            call("ip", "-n", host.namespace, *words)
        for words in (("master", "br0"), ("up",)):
            call("ip", "-n", self.switch, "link", "set", f"p{name}", *words)

    def close(self):
        for host in getattr(self, "hosts", {}).values():
            for port in list(host.services):
                host.stop(port)
        for name in self.namespaces:
            call("ip", "netns", "del", name, check=False)


# ---- Postfix -----------------------------------------------------------------------------------

MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file_prefixes = {folder}
maillog_file = {folder}/log
multi_instance_name = {name}
myhostname = lab.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
local_recipient_maps =
virtual_mailbox_domains = lab.example
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = static:all/
virtual_uid_maps = static:{user}
virtual_gid_maps = static:{group}
virtual_minimum_uid = 1
default_transport = error:the lab sends nothing on
relay_transport = error:the lab sends nothing on
smtpd_recipient_restrictions =
    check_recipient_access inline:{{ refused@lab.example=REJECT }}, permit_mynetworks, reject
mynetworks = 127.0.0.0/8
biff = no
in_flow_delay = 0
"""
MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 1 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
proxymap unix - - n - - proxymap
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
showq unix n - n - - showq
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""


def no_postfix():
    """Why there can be no Postfix here, or nothing."""
    if os.geteuid() != 0:
        return "Postfix needs root"
    if not all(shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("postfix", "sendmail")):
        return "Postfix is not installed"
    try:
        pwd.getpwnam("postfix")
    except KeyError:
        return "Postfix is not installed: no user of that name"
    return "" if shutil.which("postconf", path="/usr/sbin") else "sendmail is not Postfix's"


class Postfix:
    """A Postfix that keeps what comes for anyone at lab.example, by SMTP or by its sendmail.

    refused@lab.example is refused by SMTP; mail for any other domain bounces.
    """

    def __enter__(self):
        os.umask(0o022)                              # the program leaves 077 behind where it ran in this process
        self.folder = Path(tempfile.mkdtemp(prefix="na-postfix-"))
        self.folder.chmod(0o755)                     # Postfix's own users have to pass
        self.sendmail, user = self.folder / "sendmail", pwd.getpwnam("postfix")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name in ("etc", "queue", "data", "mail"):
            (self.folder / name).mkdir()
        for name in ("data", "mail"):
            os.chown(self.folder / name, user.pw_uid, user.pw_gid)
        values = {"folder": self.folder, "name": f"postfix-{os.getpid()}", "port": self.port,
                  "user": user.pw_uid, "group": user.pw_gid}
        (self.folder / "etc" / "main.cf").write_text(MAIN.format(**values))
        (self.folder / "etc" / "master.cf").write_text(MASTER.format(**values))
        self.sendmail.write_text(
            f'#!/bin/sh\nexec /usr/sbin/sendmail -C {self.folder}/etc "$@"\n')
        self.sendmail.chmod(0o755)
        try:
            call("/usr/sbin/postfix", "-c", self.folder / "etc", "start")
            wait_until(self.listens, 20, "Postfix listens")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        call("/usr/sbin/postfix", "-c", self.folder / "etc", "stop", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def raw(self, to):
        """The bytes of every mail delivered to this address until now, the oldest first."""
        folder = self.folder / "mail" / "all" / "new"
        names = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns) \
            if folder.exists() else []
        wanted = f"\nDelivered-To: {to}\n".encode().lower()
        return [text for text in (path.read_bytes() for path in names)
                if wanted in b"\n" + text.partition(b"\n\n")[0].lower() + b"\n"]

    def mails(self, to, count=1, seconds=15):
        """The mails delivered to this address, once there are as many as count."""
        try:
            wait_until(lambda: len(self.raw(to)) >= count, seconds, f"{count} mails for {to}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.log()}") from None
        return [email.message_from_bytes(text, policy=email.policy.default)
                for text in self.raw(to)]

    def log(self):
        path = self.folder / "log"
        return path.read_text()[-4000:] if path.exists() else ""


# ---- As a program ------------------------------------------------------------------------------

def main(words):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Listeners() as listeners:
        for word in words:
            protocol, port, *banner = word.split(":", 2)
            listeners.add("0.0.0.0", int(port), protocol, "".join(banner).encode())
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
