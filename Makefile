## make audit      audits this machine with the nmap-audit.rc of this folder and shows the report
## make test       everything below up to check: what has to pass before a change lands
## make lint       flake8, and vermin for the oldest Python
## make types      mypy
## make check      the tests; ARGS="-k word" picks some
## make coverage   the tests, and which lines and branches they reach
## make sweep      the audit killed, or refused a write, at every single step
## make fuzz       rc files and nmap XML that no one would write; FUZZ="-runs=1000" says how many
## make bench      speed and memory against other programs, a table each; some minutes; BENCH="start rules" picks some
## make dist       the source archive and the wheel, in dist/
## make install    program, man pages, completions and units below PREFIX (/usr/local); make uninstall takes them away
## make clean      removes all that came into being here

PYTHON ?= python3
PREFIX ?= /usr/local
DESTDIR ?=
ARGS ?=
FUZZ ?= -max_total_time=60
BENCH ?= start reading rules scale scan
# what the tests start, beside nmap-audit itself
TEST_PACKAGES = nmap postfix strace mandoc iproute2 nftables man-db groff cron libreoffice-calc systemd zsh \
	openssh-server slurm-wlm tmux chromium

VENV = .venv
VENV_PYTHON = $(VENV)/bin/python3
PIP = $(VENV_PYTHON) -m pip --quiet --disable-pip-version-check
LIBRARY = $(PREFIX)/lib/nmap-audit
BASH_COMPLETION = share/bash-completion/completions/nmap-audit
ZSH_COMPLETION = share/zsh/site-functions/_nmap-audit
UNITS = lib/systemd/system
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# a list of setup.cfg: $(call listed,SECTION,KEY)
listed = $(VENV_PYTHON) -c 'import configparser; file = configparser.ConfigParser(); \
	file.read("setup.cfg"); print(file["$1"]["$2"])'

# an example that names the program where it is installed: $(call named,FILE)
named = sed 's,/usr/local/bin/nmap-audit,$(PREFIX)/bin/nmap-audit,' 'man/examples/$1'

# the Debian packages named in $missing, announced and installed; nothing that is there is removed
install_missing = [ -z "$$missing" ] || { \
	if ! command -v apt-get >/dev/null; then \
		echo "Missing here, please install first:$$missing" >&2; exit 1; fi; \
	if [ -n "$(SUDO)" ] && ! command -v sudo >/dev/null; then \
		echo "Missing here, please say as root: apt-get install$$missing" >&2; exit 1; fi; \
	echo "Missing here, installing with $(strip $(SUDO) apt-get):$$missing"; \
	$(SUDO) apt-get -qq update; \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive \
		apt-get -qq -y --no-install-recommends --no-remove install $$missing >/dev/null; }

.PHONY: help audit test lint types check coverage sweep fuzz bench dist install uninstall clean machine test-machine

help:
	@sed -n 's/^## //p' Makefile

audit: $(VENV)/run.stamp
	@$(VENV_PYTHON) nmap_audit.py --config nmap-audit.rc --tell always $(ARGS)

test: lint types check

lint: $(VENV)/test.stamp
	$(VENV_PYTHON) -m flake8 nmap_audit.py setup.py test
	$(VENV)/bin/vermin --config-file setup.cfg nmap_audit.py

types: $(VENV)/test.stamp
	$(VENV_PYTHON) -m mypy

check: $(VENV)/test.stamp test-machine
	$(VENV_PYTHON) -m pytest -n 2 --dist loadgroup --timeout 300 $(ARGS)

coverage: $(VENV)/test.stamp test-machine
	$(VENV_PYTHON) -m coverage erase
	$(VENV_PYTHON) -m coverage run -m pytest -n 2 --dist loadgroup --timeout 300 $(ARGS)
	$(VENV_PYTHON) -m coverage combine --quiet
	$(VENV_PYTHON) -m coverage report $(if $(ARGS),--fail-under=0)

sweep: $(VENV)/test.stamp test-machine
	$(VENV_PYTHON) test/sweep.py $(ARGS)

fuzz: $(VENV)/fuzz.stamp
	for kind in rc xml; do $(VENV_PYTHON) test/fuzz.py $$kind $(FUZZ) || exit; done

bench: TEST_PACKAGES += ndiff gcc libc6-dev
bench: $(VENV)/bench.stamp test-machine
	for each in $(BENCH); do $(VENV_PYTHON) test/bench/$$each.py || exit; done

dist: $(VENV)/run.stamp
	$(PIP) install build
	$(VENV_PYTHON) -m build --outdir dist .

# The launcher takes nothing from the caller's environment or current folder (-I): root runs it from cron.
install: $(VENV)/run.stamp
	rm -rf '$(DESTDIR)$(LIBRARY)'
	umask 022; needs=$$($(call listed,options,install_requires)) && \
		$(PIP) install --no-compile --target '$(DESTDIR)$(LIBRARY)' $$needs
	rm -rf '$(DESTDIR)$(LIBRARY)/bin'
	install -m 644 nmap_audit.py '$(DESTDIR)$(LIBRARY)'
	umask 022; $(PYTHON) -m compileall -q -s '$(DESTDIR)' -p / '$(DESTDIR)$(LIBRARY)'
	umask 022; mkdir -p '$(DESTDIR)$(PREFIX)/bin'
	printf '#!%s -I\nimport sys\n\nsys.path.insert(0, "%s")\nimport nmap_audit\n\nsys.exit(nmap_audit.main())\n' \
		"$$($(PYTHON) -c 'import sys; print(sys.executable)')" '$(LIBRARY)' \
		> '$(DESTDIR)$(PREFIX)/bin/nmap-audit'
	chmod 755 '$(DESTDIR)$(PREFIX)/bin/nmap-audit'
	umask 022; cd '$(CURDIR)' && \
		install -D -m 644 man/nmap-audit.1 '$(DESTDIR)$(PREFIX)/share/man/man1/nmap-audit.1' && \
		install -D -m 644 man/nmap-audit.rc.5 '$(DESTDIR)$(PREFIX)/share/man/man5/nmap-audit.rc.5' && \
		install -D -m 644 nmap-audit.rc '$(DESTDIR)$(PREFIX)/share/doc/nmap-audit/nmap-audit.rc' && \
		install -D -m 644 man/examples/bash/nmap-audit '$(DESTDIR)$(PREFIX)/$(BASH_COMPLETION)' && \
		install -D -m 644 man/examples/zsh/_nmap-audit '$(DESTDIR)$(PREFIX)/$(ZSH_COMPLETION)' && \
		install -d -m 755 '$(DESTDIR)$(PREFIX)/share/doc/nmap-audit/examples' '$(DESTDIR)$(PREFIX)/$(UNITS)' && \
		$(call named,nmap-audit.cron) > '$(DESTDIR)$(PREFIX)/share/doc/nmap-audit/examples/nmap-audit.cron' && \
		$(call named,nmap-audit.service) > '$(DESTDIR)$(PREFIX)/$(UNITS)/nmap-audit.service' && \
		$(call named,nmap-audit.timer) > '$(DESTDIR)$(PREFIX)/$(UNITS)/nmap-audit.timer'

uninstall:
	rm -rf '$(DESTDIR)$(LIBRARY)' '$(DESTDIR)$(PREFIX)/share/doc/nmap-audit'
	cd '$(DESTDIR)$(PREFIX)' && rm -f bin/nmap-audit share/man/man1/nmap-audit.1 share/man/man5/nmap-audit.rc.5 \
		$(BASH_COMPLETION) $(ZSH_COMPLETION) $(UNITS)/nmap-audit.service $(UNITS)/nmap-audit.timer

clean:
	rm -rf $(VENV) build dist *.egg-info .benchmarks .coverage .coverage.* .fuzz .hypothesis .mypy_cache .pytest_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# ---- What the targets above stand on ---------------------------------------------------------------------------------

machine:
	@missing=; \
	command -v nmap >/dev/null || missing="$$missing nmap"; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	$(install_missing)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "nmap-audit needs Python 3.10 or newer")'

# No service is started, and Postfix is set up to deliver on this machine only.
test-machine: machine
	@if [ -n "$(SUDO)" ] || ! command -v apt-get >/dev/null; then \
		echo "Not root on Debian: tests that need one of $(TEST_PACKAGES) may be left out" >&2; exit; fi; \
	missing=; for package in $(TEST_PACKAGES); do \
		dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q '^install ok installed' || \
			missing="$$missing $$package"; done; \
	case "$$missing " in *" postfix "*) \
		echo 'postfix postfix/main_mailer_type select Local only' | debconf-set-selections;; esac; \
	if [ -n "$$missing" ] && [ ! -e /usr/sbin/policy-rc.d ]; then \
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT; trap 'exit 1' HUP INT TERM; \
		printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; fi; \
	$(install_missing)

$(VENV)/run.stamp: setup.cfg | machine
	@echo "Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@needs=$$($(call listed,options,install_requires)) && $(PIP) install $$needs
	@touch $@

$(VENV)/%.stamp: $(VENV)/run.stamp
	@echo "Adding to $(VENV) what 'make $*' needs"
	@needs=$$($(call listed,options.extras_require,$*)) && $(PIP) install $$needs
	@touch $@
