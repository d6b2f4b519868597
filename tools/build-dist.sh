#!/bin/sh
# Build wheel and sdist from a clean export of what is committed, check them, and install the wheel with pipx.
# Usage: build-dist.sh TARGET VENV
set -eu

fail() {
    echo "build-dist: $*" >&2
    exit 1
}

[ $# = 2 ] || fail "usage: build-dist.sh TARGET VENV"
mkdir -p "$1"
target=$(cd "$1" && pwd)
python=$(cd "$2" && pwd)/bin/python
cd "$(dirname "$0")/.."

"$python" -m pip install --quiet build twine pipx || fail "pip could not install build, twine and pipx (see above)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$work/policyd"
git archive --format=tar HEAD | tar -x -C "$work/policyd"
"$python" -m build --outdir "$work/dist" "$work/policyd" >"$work/log" 2>&1 || {
    tail -n 40 "$work/log" >&2
    fail "build failed (see above)"
}
"$python" -m twine check --strict "$work"/dist/* || fail "twine has objections (see above)"

# As on a machine without a compiler: whatever would call one fails.
mkdir "$work/bin"
for compiler in cc gcc c++ g++ clang rustc cargo make; do
    printf '#!/bin/sh\necho "there is no compiler here" >&2\nexit 1\n' >"$work/bin/$compiler"
    chmod 755 "$work/bin/$compiler"
done
PATH="$work/bin:$PATH" CC="$work/bin/cc" PIPX_HOME="$work/pipx" PIPX_BIN_DIR="$work/pipx-bin" PIPX_MAN_DIR="$work/pipx-man" \
    "$python" -m pipx install --quiet "$work"/dist/*.whl || fail "pipx could not install the wheel (see above)"
for command in policyd policyctl; do
    "$work/pipx-bin/$command" --version || fail "$command does not run as pipx installed it"
done

rm -f "$target"/policyd-*
cp "$work"/dist/* "$target"
echo "built: $(echo "$target"/policyd-*)"
