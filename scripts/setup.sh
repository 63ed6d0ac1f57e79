# shellcheck shell=bash
# Sourced by the other scripts: brings this machine and .venv to what they need.
#
#   setup_for run     what dfuser itself needs
#   setup_for dev     that, the test tools, and the checkers
#
# Installs only Debian packages that are missing (nothing missing: no mirror is asked),
# and touches .venv only when pyproject.toml, the Python or the place changed. Leaves the
# shell in the project's folder. Afterwards only $PY, the venv's Python, is used.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
PY=.venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'dfuser: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# One line for each package: is what we need of it there?
have() {
    case $1 in
        python3)         command -v python3 ;;
        python3-venv)    python3 -c 'import ensurepip, venv' ;;
        python3-dev)     python3 -c 'import os, sysconfig as s, sys
sys.exit(not os.path.exists(os.path.join(s.get_path("include"), "Python.h")))' ;;
        ca-certificates) test -e /etc/ssl/certs/ca-certificates.crt ;;
        fuse3)           command -v fusermount3 ;;
        libfuse3-dev)    pkg-config --exists fuse3 ;;
        libc6-dev)       test -e /usr/include/stdio.h ;;
        attr)            command -v setfattr ;;
        acl)             command -v setfacl ;;
        *)               command -v "$1" ;;
    esac >/dev/null 2>&1
}

missing_of() {
    local package
    for package in "$@"; do
        have "$package" || printf ' %s' "$package"
    done
}

apt_install() {
    local sudo=
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || return 1
        sudo=sudo
    fi
    say "installing Debian packages: $*"
    $sudo apt-get update -q >&2 || return 1
    $sudo env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qy --no-install-recommends "$@" >&2
}

setup_packages() {
    local needed useful
    # pkg-config comes first: the check for libfuse3-dev asks it.
    needed=$(missing_of pkg-config python3 python3-venv python3-dev gcc libc6-dev \
        libfuse3-dev fuse3 ca-certificates)
    useful=
    [ "$1" = run ] || useful=$(missing_of make git rsync sqlite3 fio attr acl tar)
    [ -n "$needed$useful" ] || return 0
    # shellcheck disable=SC2086  # word lists
    apt_install $needed $useful && return 0
    # shellcheck disable=SC2086
    needed=$(missing_of $needed)
    [ -z "$needed" ] || die "please install:$needed"
    say "could not install:$useful (the tests that use them will be skipped)"
}

make_venv() {
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "Python 3.11 or later is needed; python3 is $(python3 -V 2>&1)"
    python3 -m venv --clear .venv || die "cannot make .venv"
}

# What .venv was made for; a copied or moved one would run the programs of the old place.
made_for() { $PY -V 2>/dev/null && sha256sum <pyproject.toml && pwd; }

setup_venv() {
    local set=$1 stamp=.venv/.dfuser-$1
    [ ! -e "$stamp" ] || [ "$(cat "$stamp")" != "$(made_for)" ] || return 0
    # None yet, its Python has gone, or its making was interrupted.
    $PY -m pip --version >/dev/null 2>&1 || make_venv
    say "installing Python packages into .venv (a minute the first time)"
    if [ "$set" = run ]; then
        $PY -m pip install -q --editable . || die "the Python packages cannot be installed"
    else
        # Debian 12's pip knows no dependency groups.
        $PY -m pip install -q --upgrade 'pip>=25.1' || die "pip cannot be upgraded"
        $PY -m pip install -q --editable . --group "$set" ||
            die "the Python packages cannot be installed"
    fi
    made_for >"$stamp"
}

setup_for() {
    setup_packages "$1"
    # Two scripts started at once must not install into .venv at the same time.
    exec 9>.setup.lock
    flock 9
    setup_venv "$1"
    exec 9>&-
}
