#!/bin/sh
# Build the Debian package from a clean export of what is committed. Usage: build-deb.sh TARGET [COMMIT [VERSION]]
# The package, its source and its .changes end up in the directory TARGET. COMMIT (default HEAD) is what is built, with the
# packaging of the checkout if it has none; VERSION replaces that of the changelog.
set -eu

fail() {
    echo "build-deb: $*" >&2
    exit 1
}

[ $# -ge 1 ] || fail "usage: build-deb.sh TARGET [COMMIT [VERSION]]"
commit=${2-HEAD}
for program in git dpkg-buildpackage dh scdoc; do
    command -v "$program" >/dev/null || fail "$program is missing; as root: tools/install-test-packages.sh deb"
done
mkdir -p "$1"
target=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
here=$PWD

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$work/policyd"
git archive --format=tar "$commit" | tar -x -C "$work/policyd"
cd "$work/policyd"
[ -e packaging/debian/control ] || cp -a "$here/packaging" .
cp -a packaging/debian debian
[ -z "${3-}" ] || sed -i "1s/(.*)/($3)/" debian/changelog

# Debian's Python and tools alone; what is built for a person's own commit is not signed. The suite is run by other means:
# with DEB_BUILD_OPTIONS set to something else, or to nothing, it runs here too.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEB_BUILD_OPTIONS="${DEB_BUILD_OPTIONS-nocheck}"
export LC_ALL=C.UTF-8 http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9
dpkg-buildpackage --unsigned-source --unsigned-changes >"$work/log" 2>&1 || {
    tail -n 60 "$work/log" >&2
    fail "dpkg-buildpackage failed (see above)"
}
rm -f "$target"/policyd_*
cp "$work"/policyd_* "$target"
echo "built: $(ls "$target"/policyd_*.deb)"
