"""The mail: its headers, its parts, and its ways out: sendmail, or SMTP to a real server."""
import asyncio
import contextlib
import email
import email.policy
import re
import ssl
import threading
from dataclasses import replace

import pytest

import nmap_audit
from nights import read_csv, up

aiosmtpd = pytest.importorskip("aiosmtpd.smtp", reason="aiosmtpd is not installed")
trustme = pytest.importorskip("trustme", reason="trustme is not installed")

A = "10.0.0.1"
TO = ("--email-to", "root@example.net")
pytestmark = pytest.mark.usefixtures("no_real_nmap")


@pytest.fixture
def nights(nights):
    nights.ips = "10.0.0.1-2"
    return nights


@pytest.fixture
def sent(nights, fake):
    """sent(*argv, hosts={...}, rules="") -> the one mail of a night."""
    sendmail = fake("sendmail")

    def audit(*argv, hosts=None, rules="", status=0):
        nights.rules = rules
        night = nights.audit(hosts or {A: up(25, names=["mail.example.net"])}, *argv)
        assert night.status == status, night.err
        assert len(sendmail.mails) == 1 and night.out == ""
        return sendmail.mails[0]
    audit.sendmail = sendmail
    return audit


# ---- Headers and parts -------------------------------------------------------------------------

def test_golden(nights, fake, golden):
    sendmail = fake("sendmail")
    nights.audit({A: up(25, names=["mail.example.net"]), "10.0.0.2": up()}, *TO)
    nights.audit({A: up((25, "tcp", "filtered", "smtp"), 80, names=["mail.example.net"])}, *TO,
                 "--email-from", "audit@example.net", "--email-subject", "Nightly audit")
    assert b"\r" not in sendmail.raw[-1]
    golden("report/mail.eml", readable(email.message_from_bytes(sendmail.raw[-1])))


def readable(mail):
    """A mail's headers as they are, and its parts decoded."""
    headers = "".join(f"{name}: {value}\n" for name, value in mail.items())
    if mail.is_multipart():
        return headers + "\n" + "\n-- part --\n".join(map(readable, mail.get_payload()))
    return headers + "\n" + mail.get_payload(decode=True).decode().replace("\r", "\\r")


def test_headers(sent):
    mail = sent(*TO, "--email-from", "audit@example.net", "--email-subject", "Nightly audit")
    assert (mail["To"], mail["From"], mail["Subject"]) == ("root@example.net", "audit@example.net", "Nightly audit")
    assert mail["Auto-Submitted"] == "auto-generated" and mail["MIME-Version"] == "1.0"
    assert mail["Date"].datetime and re.fullmatch(r"<\S+@\S+>", mail["Message-ID"])
    assert sorted(mail.keys()) == sorted(set(mail.keys()))


def test_headers_by_default(sent):
    mail = sent(*TO)
    assert mail["From"].startswith("nmap-audit@") and mail["Subject"].startswith("nmap-audit report for ")


def test_variables(sent):
    mail = sent(rules='EMAIL-TO a@example.net, b@example.net\nEMAIL-TO "C, D" <c@example.net>\nFROM x@example.net\n'
                      "SUBJECT  port  report #1")
    assert [address.addr_spec for address in mail["To"].addresses] == [
        "a@example.net", "b@example.net", "c@example.net"]
    assert (mail["From"], mail["Subject"]) == ("x@example.net", "port  report #1") or \
        (mail["From"], mail["Subject"]) == ("x@example.net", "port  report")


def test_a_local_user_is_an_address(sent):
    assert sent("--email-to", "root")["To"] == "root"


def test_the_subject_is_used_exactly_as_given(sent):
    subject = "a % {} $(id) `id` \\n <b> =?utf-8?q?x?= " + "long " * 30 + "end"
    mail = sent(*TO, "--email-subject", subject)
    assert " ".join(mail["Subject"].split()) == " ".join(subject.split()) or "=?" in subject


def test_a_subject_of_other_letters_is_encoded(sent):
    mail = sent(*TO, "--email-subject", "Prüfbericht für Zürich ✓")
    assert mail["Subject"] == "Prüfbericht für Zürich ✓"
    assert sent.sendmail.raw[0].split(b"\n\n")[0].isascii()


def test_parts(sent, nights):
    mail = sent(*TO)
    assert mail.get_content_type() == "multipart/mixed"
    body, table = mail.get_body(("plain",)), *mail.iter_attachments()
    report = (nights.runs[-1] / "report.txt").read_text()
    assert body.get_content_type() == "text/plain" and body.get_content_charset() == "utf-8"
    assert body.get_content().replace("\r\n", "\n") == report
    assert report.startswith("1 of 1 hosts audited, 1 findings, 0 gone\n")
    assert (table.get_content_type(), table.get_filename()) == ("text/csv", "scan_report.csv")
    assert table.get_content_disposition() == "attachment" and table.get_content_charset() == "utf-8"
    data = table.get_payload(decode=True)
    assert data == (nights.runs[-1] / "scan_report.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbfIP,") and data.count(b"\n") == data.count(b"\r\n") == 2


def test_no_csv(sent):
    mail = sent(*TO, "--no-csv")
    assert "10.0.0.1" in mail.get_body(("plain",)).get_content()
    assert "text/csv" not in {part.get_content_type() for part in mail.walk()}


def test_no_human(sent):
    body, table = sent(*TO, "--no-human").iter_parts()
    assert body.get_content().startswith("1 of 1 hosts audited, 1 findings, 0 gone")
    assert "service25" not in body.get_content()
    assert read_csv(table.get_payload(decode=True).decode())[0]["Service"] == "service25"


def test_no_csv_headings(sent):
    _, table = sent(*TO, "--no-csv-headings").iter_parts()
    assert table.get_payload(decode=True).startswith(b"\xef\xbb\xbf10.0.0.1,")


def test_the_table_is_attached_when_it_has_rows(sent):
    assert "text/csv" not in {part.get_content_type() for part in sent(*TO, hosts={A: up()}).walk()}


def test_lines_are_short_enough_for_mail(sent):
    """RFC 5322: 998 at most, whatever a banner holds."""
    sent(*TO, hosts={A: up((25, "tcp", "open", "smtp", "ü" * 3000), (26, "tcp", "open", "x", "y" * 3000))})
    assert max(map(len, sent.sendmail.raw[0].splitlines())) < 999


def test_the_copy_on_disk_is_the_mail(sent, nights):
    sent(*TO)
    assert (nights.runs[-1] / "report.eml").read_bytes().replace(b"\r\n", b"\n") == sent.sendmail.raw[0]
    assert list((nights.directory / "unsent").iterdir()) == []


# ---- When there is one -------------------------------------------------------------------------

def test_without_email_to_the_report_is_printed(nights, fake):
    sendmail = fake("sendmail")
    night = nights.audit({A: up(25)})
    assert night.out == night.report and sendmail.calls == []
    night = nights.audit({A: up(25)}, "--no-human")
    assert night.out.startswith("\ufeffIP,Hostname,") and sendmail.calls == []


def test_an_empty_report_sends_nothing(nights, fake):
    sendmail = fake("sendmail")
    nights.audit({A: up()}, *TO)
    night = nights.audit({A: up()}, *TO)
    assert len(sendmail.calls) == 1 and night.status == 0 and night.record["told"]
    nights.rules = "group all\n ip *\n ignore 25 tcp open *\nend group all"
    nights.audit({A: up(25)}, *TO)
    assert len(sendmail.calls) == 1


@pytest.mark.parametrize("tell", ("changes", "always", "errors"))
@pytest.mark.parametrize("detail", ("none", "high"))
def test_an_incomplete_audit_always_mails(nights, fake, tell, detail):
    sendmail = fake("sendmail")
    night = nights.audit({A: up(fault={"exit": 1})}, *TO, "--tell", tell, "--detail", detail, "--no-human")
    assert night.status == 2 and "10.0.0.1" in sendmail.mails[0].get_content()


def test_process_only_mails_too(nights, fake):
    sendmail = fake("sendmail")
    nights.audit({A: up(25)}, "--scan-only", *TO)
    assert sendmail.calls == []
    assert nights.process(*TO).status == 0
    assert len(sendmail.mails) == 1
    nights.audit({A: up(25)}, *TO)
    assert "Standing" in sendmail.mails[1].get_body(("plain",)).get_content()


def test_the_report_is_in_one_place_only(nights, fake):
    fake("sendmail")
    night = nights.audit({A: up(25)}, *TO)
    assert night.out == night.err == ""


# ---- sendmail ----------------------------------------------------------------------------------

def test_sendmail_is_found_in_path(sent):
    sent(*TO)
    assert [call["argv"][1:] for call in sent.sendmail.calls] == [["-oi", "-t"]]


def test_sendmail_is_where_the_rc_file_says(nights, fake, tmp_path):
    in_path = fake("sendmail")
    other = tmp_path / "other place"
    other.mkdir()
    other = other / "my-mta"
    other.write_text(in_path.program.read_text())
    other.chmod(0o755)
    nights.rules = f'SENDMAIL "{other}"'
    nights.audit({A: up(25)}, *TO)
    assert [call["argv"][0] for call in in_path.calls] == [str(other)]


@pytest.mark.parametrize("sendmail", ("nowhere", "not-a-program", "."))
def test_a_sendmail_that_cannot_be_started(nights, tmp_path, sendmail):
    (tmp_path / "not-a-program").write_text("hello\n")
    nights.rules = f"SENDMAIL {tmp_path}/{sendmail}"
    night = nights.audit({A: up(25)}, *TO)
    assert night.status == 69 and "Traceback" not in night.err and sendmail in night.err
    assert len(list((nights.directory / "unsent").iterdir())) == 1


def test_addresses_are_no_options_of_sendmail(nights, fake):
    sendmail = fake("sendmail")
    nights.audit({A: up(25)}, "--email-to=-oQ/tmp@example.net")
    assert all(call["argv"][1:] == ["-oi", "-t"] for call in sendmail.calls)


# ---- SMTP --------------------------------------------------------------------------------------

class Server:
    """A mail server on 127.0.0.1 that answers as it is told: {command: [answer, answer, ...]}."""

    def __init__(self, answers, ssl=None, **options):
        self.answers, self.mails, self.recipients, self.tls, self.users = answers, [], [], [], []
        self.loop = asyncio.new_event_loop()
        options = {"authenticator": self.log_in, "hostname": "localhost", **options}
        self.server = self.loop.run_until_complete(self.loop.create_server(
            lambda: aiosmtpd.SMTP(self, loop=self.loop, **options), "127.0.0.1", 0, ssl=ssl))
        self.port = self.server.sockets[0].getsockname()[1]
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def close(self):
        asyncio.run_coroutine_threadsafe(self.end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def end(self):
        self.server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def log_in(self, server, session, envelope, mechanism, data):
        self.users.append((data.login, data.password))
        return aiosmtpd.AuthResult(success=data.password == b"secret", handled=False)

    def answer(self, command, otherwise="250 OK"):
        answers = self.answers.get(command, [])
        return answers.pop(0) if answers else otherwise

    async def handle_RCPT(self, server, session, envelope, address, options):
        answer = self.answer(address) if address in self.answers else self.answer("RCPT")
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server, session, envelope):
        answer = self.answer("DATA")
        if answer == "drop":
            server.transport.abort()
        elif answer.startswith("250"):
            self.mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
            self.recipients.append(envelope.rcpt_tos)
            self.tls.append(session.ssl is not None)
        return answer


@pytest.fixture
def serve():
    """serve(answers, **options) -> Server, running."""
    with contextlib.ExitStack() as stack:
        def start(answers=None, **options):
            server = Server(dict(answers or {}), **options)
            stack.callback(server.close)
            return server
        yield start


@pytest.fixture
def authority():
    return trustme.CA()


def context(authority, name="localhost"):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(made)
    return made


def trusting(authority, tmp_path):
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return {"SSL_CERT_FILE": tmp_path / "ca.pem"}


def test_smtp(nights, serve):
    server = serve()
    nights.rules = f"SMTP-SERVER 127.0.0.1:{server.port}\nEMAIL-TO a@example.net, b@example.net"
    night = nights.audit({A: up(25)})
    assert (night.status, night.err) == (0, "")
    assert server.recipients == [["a@example.net", "b@example.net"]]
    body, table = server.mails[0].get_body(("plain",)), *server.mails[0].iter_attachments()
    assert body.get_content().replace("\r\n", "\n") == night.report
    assert table.get_payload(decode=True) == (night.folder / "scan_report.csv").read_bytes()


def test_smtp_server_wins_over_sendmail_in_path(nights, fake, serve):
    sendmail, server = fake("sendmail"), serve()
    nights.rules = f"SMTP-SERVER 127.0.0.1:{server.port}"
    nights.audit({A: up(25)}, *TO)
    assert len(server.mails) == 1 and sendmail.calls == []


@pytest.mark.parametrize("body", ("open→filtered\n", "plain\n", "→" * 500 + "\n", "x" * 2000 + "\n"))
def test_a_mail_is_seven_bits(body):
    """A server that doesn't say 8BITMIME may refuse or spoil anything else."""
    config = nmap_audit.read_config((), ())
    data = nmap_audit.make_message(body, "", body, replace(config, email_to=("root",)))
    assert data.isascii() and max(map(len, data.splitlines())) < 999
    parts = list(email.message_from_bytes(data, policy=email.policy.default).iter_parts())
    assert parts[0].get_content().replace("\r\n", "\n") == body
    assert parts[1].get_payload(decode=True) == body.encode()


def test_starttls(nights, serve, authority, tmp_path):
    server = serve(tls_context=context(authority), require_starttls=True)
    nights.rules = f"SMTP-SERVER localhost:{server.port}\nSMTP-TLS starttls"
    night = nights.audit({A: up(25)}, *TO, env=trusting(authority, tmp_path))
    assert (night.status, server.tls) == (0, [True]), night.err


def test_tls(nights, serve, authority, tmp_path):
    server = serve(ssl=context(authority))
    nights.rules = f"SMTP-SERVER localhost:{server.port}\nSMTP-TLS tls"
    night = nights.audit({A: up(25)}, *TO, env=trusting(authority, tmp_path))
    assert (night.status, len(server.mails)) == (0, 1), night.err


@pytest.mark.parametrize("how", ("starttls", "tls"))
@pytest.mark.parametrize("wrong", ("authority", "name"))
def test_M4_a_wrong_certificate_is_refused(nights, serve, authority, tmp_path, how, wrong):
    """And nothing is sent in plain text in its place."""
    ours = context(authority, "localhost" if wrong == "authority" else "mail.example.net")
    server = serve(**{"ssl" if how == "tls" else "tls_context": ours})
    trusted = trusting(trustme.CA() if wrong == "authority" else authority, tmp_path)
    nights.rules = f"SMTP-SERVER localhost:{server.port}\nSMTP-TLS {how}"
    night = nights.audit({A: up(25)}, *TO, env=trusted)
    assert night.status == 69 and "certificate" in night.err.lower() and server.mails == []
    assert len(list((nights.directory / "unsent").iterdir())) == 1


def test_M4_a_server_without_starttls_gets_nothing(nights, serve):
    server = serve()
    nights.rules = f"SMTP-SERVER localhost:{server.port}\nSMTP-TLS starttls"
    night = nights.audit({A: up(25)}, *TO)
    assert night.status == 69 and "STARTTLS" in night.err and server.mails == []


@pytest.mark.parametrize("password, status", (("secret", 0), ("hunter2", 69)), ids=("right", "wrong"))
def test_M4_login(nights, serve, authority, tmp_path, password, status):
    server = serve(tls_context=context(authority), auth_require_tls=True, auth_required=True)
    (tmp_path / "password").write_text(f"{password}\n")
    (tmp_path / "password").chmod(0o600)
    nights.rules = (f"SMTP-SERVER localhost:{server.port}\nSMTP-TLS starttls\nSMTP-USER audit\n"
                    f"SMTP-PASSWORD-FILE {tmp_path}/password")
    night = nights.audit({A: up(25)}, *TO, env=trusting(authority, tmp_path))
    assert (night.status, len(server.mails)) == (status, 1 - bool(status)), night.err
    assert {user for user, _ in server.users} == {b"audit"}
    assert password not in night.err


def test_a_password_file_that_is_not_there(nights, serve, tmp_path):
    server = serve()
    nights.rules = (f"SMTP-SERVER localhost:{server.port}\nSMTP-USER audit\n"
                    f"SMTP-PASSWORD-FILE {tmp_path}/nowhere")
    night = nights.audit({A: up(25)}, *TO)
    assert night.status == 69 and "nowhere" in night.err and server.mails == []


def test_M4_a_busy_server_is_asked_again(nights, serve):
    server = serve({"DATA": ["451 try again later"]})
    nights.rules = f"SMTP-SERVER 127.0.0.1:{server.port}"
    night = nights.audit({A: up(25)}, *TO)
    assert (night.status, night.err, len(server.mails)) == (0, "", 1)


@pytest.mark.parametrize("answers, status, mails", (
    pytest.param({"DATA": ["451 later"] * 2}, 0, 1, id="4xx twice"),
    pytest.param({"DATA": ["451 later"] * 99}, 69, 0, id="4xx for ever"),
    pytest.param({"DATA": ["451 Permission SSL Value (554, later"]}, 0, 1, id="4xx that speaks of what stays"),
    pytest.param({"RCPT": ["450 later"]}, 0, 1, id="4xx for the recipient"),
    pytest.param({"RCPT": ["450 SSL Permission"]}, 0, 1, id="4xx for the recipient that speaks of what stays"),
    pytest.param({"DATA": ["554 no"]}, 69, 0, id="5xx"),
    pytest.param({"RCPT": ["550 nobody"]}, 69, 0, id="5xx for the recipient"),
    pytest.param({"DATA": ["drop"]}, 0, 1, id="dropped in DATA"),
    pytest.param({"DATA": ["drop"] * 99}, 69, 0, id="dropped for ever")))
def test_M4_answers(nights, serve, inside, answers, status, mails):
    server = serve(answers)
    nights.run = inside
    nights.rules = f"SMTP-SERVER 127.0.0.1:{server.port}"
    night = nights.audit({A: up(25)}, *TO)
    assert (night.status, len(server.mails)) == (status, mails), night.err
    assert len(list((nights.directory / "unsent").iterdir())) == (status == 69)
    assert len(night.err.splitlines()) == (status == 69)


def test_M3_one_of_several_recipients_is_refused(nights, serve):
    server = serve({"b@example.net": ["550 nobody"] * 9})
    nights.rules = f"SMTP-SERVER 127.0.0.1:{server.port}\nEMAIL-TO a@example.net, b@example.net, c@example.net"
    night = nights.audit({A: up(25)})
    assert night.status == 69
    assert night.err == "nmap-audit: refused: b@example.net: 550 nobody; the others have the report\n"
    assert server.recipients == [["a@example.net", "c@example.net"]]
    assert night.record["told"]


@pytest.mark.parametrize("name", ("localhost", "127.0.0.1"))
def test_names_of_the_server(nights, serve, name):
    server = serve()
    nights.rules = f"SMTP-SERVER {name}:{server.port}"
    assert nights.audit({A: up(25)}, *TO).status == 0
    assert len(server.mails) == 1


def test_every_part_of_the_report_waits_no_longer_than_said():
    """The tries of a night end within minutes."""
    assert sum(nmap_audit.SMTP_WAITS) + nmap_audit.SMTP_SECONDS * (len(nmap_audit.SMTP_WAITS) + 1) < 600
    assert nmap_audit.SENDMAIL_SECONDS < 600
