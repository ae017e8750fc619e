#!/bin/sh
# Installs Mosquitto where this may be done without asking, and says plainly what happens where it may not.
PATH="$PATH:/usr/sbin:/usr/local/sbin"
if command -v mosquitto >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing Mosquitto (Debian package)"
    # The packaged service is not wanted: tests start brokers of their own on free ports.
    if (apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq mosquitto) >/dev/null 2>&1; then
        exit 0
    fi
    echo "apt-get could not install it" >&2
fi
cat >&2 <<'TEXT'
Mosquitto is not installed: the tests marked `mosquitto` are skipped (the embedded broker's run).
  fix: sudo apt install mosquitto     (Fedora: dnf install mosquitto; macOS: brew install mosquitto)
TEXT
exit 0
