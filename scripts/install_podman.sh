#!/bin/sh
# Installs what tests/compose/test_compose_up.py runs containers with, where this may be done without asking; says
# plainly what happens where it may not.
packages="podman runc netavark aardvark-dns catatonit iptables mmdebstrap debian-archive-keyring"
PATH="$PATH:/usr/sbin:/sbin"
if command -v podman >/dev/null 2>&1 && command -v mmdebstrap >/dev/null 2>&1 && command -v catatonit >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing podman (Debian packages)"
    # shellcheck disable=SC2086 # a list of words
    if (apt-get update -qq &&
        RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages) >/dev/null 2>&1; then
        exit 0
    fi
    echo "apt-get could not install it" >&2
fi
cat >&2 <<TEXT
podman is not installed: the test of the containers is skipped.
  fix, on Debian: sudo apt install $packages
TEXT
exit 0
