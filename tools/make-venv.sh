#!/bin/sh
# Make or refresh the virtual environment. Usage: make-venv.sh DIRECTORY PYTHON
set -eu
venv=$1
python=$2

fail() {
    echo "make-venv: $*" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "$python is not installed; install Python 3.11 or newer, or name one: make PYTHON=..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is older than Python 3.11; name a newer one: make PYTHON=..."

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
    # Debian packages the module venv apart from Python itself.
    "$python" -m venv "$venv" >/dev/null || fail "$python cannot make $venv; on Debian: apt-get install python3-venv"
fi

echo "make-venv: installing policyd and what it needs into $venv; this takes about half a minute"
# Packages without pyproject.toml (pyspf) are built in the way that all others are, else pip warns of the old one.
"$venv/bin/python" -m pip install --quiet --use-pep517 --editable '.[test,lint]' ||
    fail "pip could not install policyd's requirements into $venv (see above)"
"$venv/bin/python" -m pip install --quiet --editable '.[fast]' ||
    echo "make-venv: uvloop cannot be installed here; policyd runs on Python's own event loop, somewhat slower" >&2
