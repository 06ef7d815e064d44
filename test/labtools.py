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
        """Opens ports, each to be closed alone: 25, "udp:53", "tcp:25:220 banner"."""
        for port in ports:
            self.serve_all(port if isinstance(port, str) else f"tcp:{port}")

    def serve_all(self, *words):
        """Opens ports in one process; stop(the first one's number) closes them."""
        process = subprocess.Popen([*self.prefix, sys.executable, "-E", "-S", __file__, *words], text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.services[words[0].split(":")[1]] = process
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{self.address}: {' '.join(words)} cannot listen")

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
    """A bridge with a scanner, 10.99.0.1, and hosts: the last octets of their 10.99.0.0/24.

    A host over 255 goes on in 10.99.1.0; then `bits` is the mask of all.
    """

    def __init__(self, *hosts, bits=24):
        self.tag = f"na{os.getpid()}-{next(COUNTER)}"
        self.namespaces, self.switch, self.bits = [], f"{self.tag}-sw", bits
        try:
            call("ip", "netns", "add", self.switch)
            self.namespaces.append(self.switch)
            call("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
            call("ip", "-n", self.switch, "link", "set", "br0", "up")
            self.scanner = Host(self, "s", "10.99.0.1")
            self.hosts = {number: Host(self, str(number), f"10.99.{number >> 8}.{number & 255}") for number in hosts}
        except BaseException:
            self.close()
            raise

    def __getitem__(self, octet):
        return self.hosts[octet]

    def plug(self, host, name):
        """Addresses without IPv6 and a bridge without spanning tree: up at once."""
        for words in (("link", "add", "eth0", "type", "veth", "peer", "name", f"p{name}",
                       "netns", self.switch),
                      ("addr", "add", f"{host.address}/{self.bits}", "dev", "eth0"),
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


# ---- Remote scanners ---------------------------------------------------------------------------

def no_boxes():
    """Why no program can have namespaces of its own here, or nothing."""
    if os.geteuid() != 0:
        return "a far machine of our own needs root"
    return "" if call("unshare", *BOX, "true", check=False).returncode == 0 else "no PID namespaces here"


def no_sshd():
    """Why there can be no sshd here, or nothing."""
    missing = [name for name in ("sshd", "ssh", "ssh-keygen") if not shutil.which(name, path=SYSTEM)]
    return f"not installed: {', '.join(missing)} (Debian: openssh-server)" if missing else no_boxes()


def no_slurm():
    """Why there can be no Slurm here, or nothing."""
    missing = [name for name in ("slurmctld", "slurmd", "srun", "sinfo") if not shutil.which(name, path=SYSTEM)]
    return f"not installed: {', '.join(missing)} (Debian: slurm-wlm)" if missing else no_boxes()


BOX = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
SYSTEM = "/usr/sbin:/usr/bin:/sbin:/bin"


def free_ports(count):
    """Ports of loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Box:
    """A program with namespaces of its own for processes and mounts: whatever it starts ends with it."""

    def __init__(self, log, *words):
        with open(log, "ab") as file:
            self.process = subprocess.Popen(["unshare", *BOX, *map(str, words)], stdin=subprocess.DEVNULL, stdout=file,
                                            stderr=file, start_new_session=True)

    def kill(self):
        """Ends all that is in it, at once and without a word."""
        self.process.kill()
        self.process.wait()


def running(*words):
    """The process ids of the nmaps whose command line holds all these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.path.basename(line[0]) == b"nmap" and {word.encode() for word in words} <= set(line):
            found.append(int(path.parent.name))
    return found


class Far:
    """A far machine, on loopback: its folder, and the boxes of what runs there."""

    def __enter__(self):
        os.umask(0o022)
        self.folder, self.boxes = Path(tempfile.mkdtemp(prefix="na-far-")), {}
        try:
            self.begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def box(self, name, *words):
        self.boxes[name] = Box(self.folder / f"{name}.out", *words)

    def __exit__(self, *_):
        for box in self.boxes.values():
            box.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Sshd(Far):
    """An sshd with keys, a port and a configuration of its own: `ssh -F CONFIG probe` reaches it."""

    def begin(self):
        (self.port,), self.config = free_ports(1), self.folder / "config"
        for name in ("host", "key"):
            call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name)
        known = (self.folder / "host.pub").read_text()
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {known}")
        shutil.copy(self.folder / "key.pub", self.folder / "keys")
        (self.folder / "sshd").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {self.folder}/host\n"
            f"AuthorizedKeysFile {self.folder}/keys\nPidFile none\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin prohibit-password\nAllowUsers root\nMaxStartups 100\n")
        self.config.write_text(
            f"Host probe\n HostName 127.0.0.1\n Port {self.port}\n User root\n IdentityFile {self.folder}/key\n"
            f" IdentitiesOnly yes\n BatchMode yes\n UserKnownHostsFile {self.folder}/known\n"
            " GlobalKnownHostsFile none\n StrictHostKeyChecking yes\n LogLevel ERROR\n ConnectTimeout 5\n")
        # sshd's folder for those who are not logged in yet lies under /run, which is another one here
        self.box("sshd", "sh", "-c", "mount -t tmpfs none /run && mkdir -m 755 /run/sshd && "
                 'exec /usr/sbin/sshd -D -e -f "$0"', self.folder / "sshd")
        wait_until(self.listens, 10, "sshd listens")

    def lose(self):
        """From now on the machine is not there."""
        self.boxes["sshd"].kill()

    def listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


SLURM = """
ClusterName=lab{control}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=p Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Slurm(Far):
    """A Slurm of one node on loopback, without munge: `srun -n1` with SLURM_CONF=CONFIG runs there."""

    def begin(self):
        self.config, (control, node) = self.folder / "slurm.conf", free_ports(2)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        self.host = socket.gethostname().partition(".")[0]
        self.config.write_text(SLURM.format(folder=self.folder, host=self.host, control=control, node=node,
                                            cpus=os.cpu_count()))
        for name in ("slurmctld", "slurmd"):
            self.box(name, name, "-D", "-f", self.config)
        wait_until(lambda: "idle" in self.say("sinfo", "-h", "-o", "%T"), 20, f"an idle node of Slurm in {self.folder}")

    def lose(self):
        """From now on the node is not there, and slurmctld knows; by itself it knows after SlurmdTimeout."""
        self.boxes["slurmd"].kill()
        self.say("scontrol", "update", f"NodeName={self.host}", "State=DOWN", "Reason=lost")

    def say(self, *words):
        """What a command of Slurm's prints."""
        return call("env", f"SLURM_CONF={self.config}", *words, check=False).stdout


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
