#!/bin/sh
# Installs the programs that tests run beside Python's packages, where this may be done without asking, and says plainly
# what is skipped where it may not. Each line below: a program that tells whether they are there, the Debian packages
# that bring them, and what is skipped without them.
#
#   install_test_programs.sh [PROGRAM ...]      all of them when none is named
PATH="$PATH:/usr/sbin:/usr/local/sbin:/sbin"
wanted="${*:-mosquitto promtool chromium podman}"

packages_of() {
    case "$1" in
    mosquitto) echo "mosquitto" ;;
    promtool) echo "prometheus" ;;
    chromium) echo "chromium chromium-driver" ;;
    podman) echo "podman runc netavark aardvark-dns catatonit iptables mmdebstrap debian-archive-keyring" ;;
    *)
        echo "install_test_programs.sh: no packages known for $1" >&2
        exit 2
        ;;
    esac
}

skipped_without() {
    case "$1" in
    mosquitto) echo "the tests marked 'mosquitto' (the embedded broker's run)" ;;
    promtool) echo "the tests of alerts, and of dashboards over a real Prometheus" ;;
    chromium) echo "the tests of the live page in a browser" ;;
    podman) echo "the test that runs the containers" ;;
    esac
}

is_there() {
    case "$1" in
    podman) command -v podman && command -v mmdebstrap && command -v catatonit ;;
    chromium) command -v chromium && command -v chromedriver ;;
    *) command -v "$1" ;;
    esac >/dev/null 2>&1
}

missing=""
packages=""
for program in $wanted; do
    if ! is_there "$program"; then
        missing="$missing $program"
        packages="$packages $(packages_of "$program")" || exit 2
    fi
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing$packages (Debian packages)"
    # The packaged services are not wanted: tests start servers of their own on free ports.
    # shellcheck disable=SC2086 # a list of words
    if (apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $packages) >/dev/null 2>&1; then
        exit 0
    fi
    echo "apt-get could not install them" >&2
fi
for program in $missing; do
    echo "$program is not installed; skipped: $(skipped_without "$program")" >&2
    echo "  fix, on Debian: sudo apt install $(packages_of "$program")" >&2
done
exit 0
