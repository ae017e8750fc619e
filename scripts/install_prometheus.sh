#!/bin/sh
# Installs Prometheus and promtool where this may be done without asking, and says plainly what happens where it may not.
if command -v promtool >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing Prometheus (Debian package)"
    # The packaged service is not wanted: tests start servers of their own on free ports.
    if (apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus) >/dev/null 2>&1; then
        exit 0
    fi
    echo "apt-get could not install it" >&2
fi
cat >&2 <<'TEXT'
Prometheus is not installed: the tests of alerts, and of dashboards over a real Prometheus, are skipped.
  fix: sudo apt install prometheus     (macOS: brew install prometheus)
TEXT
exit 0
