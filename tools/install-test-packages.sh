#!/bin/sh
# Install the Debian packages that the tests or the benchmark need; say which are missing when not root.
# Usage: install-test-packages.sh test|deb|docs|bench
set -eu

fail() {
    echo "install-test-packages: $*" >&2
    exit 1
}

# libfaketime steps the clock of a process, Dovecot checks the passwords for Postfix.
programs="postfix dovecot-core libfaketime sqlite3 openssl scdoc unbound nsd rbldnsd"
# The second world: /usr/bin/python3 with nothing but these.
python="python3 python3-twisted python3-dnspython python3-spf sqlite-utils python3-click python3-idna python3-uvloop
    python3-pytest python3-pytest-twisted python3-hypothesis python3-yaml python3-setuptools python3-venv
    python3-maxminddb"

# To build and look at the Debian package, and machines to install it on.
package="build-essential debhelper dh-python pybuild-plugin-pyproject python3-all bash-completion lintian git
    mmdebstrap systemd systemd-container debian-archive-keyring iproute2"

case ${1-} in
test) wanted="$programs $python" ;;
deb) wanted="$package $python scdoc" ;;
docs)
    # Nothing but the compiler of the manual pages, wherever it is from.
    ! command -v scdoc >/dev/null || exit 0
    wanted=scdoc
    ;;
bench) wanted="policyd-rate-limit postfwd" ;;
*) fail "usage: install-test-packages.sh test|deb|docs|bench" ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    fail "this is no Debian; install the equivalents of: $(echo $wanted)"
fi

missing=
for package in $wanted; do
    case $(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || :) in
    installed) ;;
    *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

[ "$(id -u)" = 0 ] || fail "missing Debian packages; as root: apt-get install --no-install-recommends$missing"

export DEBIAN_FRONTEND=noninteractive
apt="apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3"
$apt --quiet --quiet update || fail "apt-get update failed (see above); it was to install:$missing"

# Another mail server on this machine is somebody's: Postfix must not push it out.
removed=$($apt --simulate --no-install-recommends install $missing | sed -n 's/^Remv \([^ ]*\).*/\1/p' | tr '\n' ' ')
[ -z "$removed" ] || fail "installing$missing would remove $removed; do it by hand or test on another machine"

# No service may start by being installed: policy-rc.d is Debian's way to say so, put back as it was afterwards.
policy=/usr/sbin/policy-rc.d
aside=$policy.kept-by-policyd-tests
kept=
if [ -e $aside ]; then
    kept=$aside # a run that was killed left it
elif [ -e $policy ] && ! grep -q 'policyd tests' $policy; then
    mv $policy $aside
    kept=$aside
fi
restore() {
    rm -f $policy
    [ -z "$kept" ] || mv $kept $policy
}
trap restore EXIT
trap 'exit 1' HUP INT TERM
printf '#!/bin/sh\n# policyd tests: install, do not start\nexit 101\n' >$policy
chmod 755 $policy

case $missing in
*postfix*)
    printf 'postfix postfix/%s\n' 'main_mailer_type select Local only' 'mailname string localhost.localdomain' |
        debconf-set-selections
    ;;
esac

log=$(mktemp)
if ! $apt --quiet --yes --no-install-recommends install $missing >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    rm -f "$log"
    fail "apt-get install failed (see above):$missing"
fi
rm -f "$log"
echo "installed:$missing"
