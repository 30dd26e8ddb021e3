#!/usr/bin/env bash
# Brings .venv up to date: pinned dependencies, torch, the product itself. Does nothing where it is already.
#   PYTHON=python3.12   the interpreter to use      TORCH=auto|system|cpu|cuda|npu   where torch comes from
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/python_env.sh

venv=$PWD/.venv
stamp=$venv/bootstrap.stamp

# All that decides what the environment should hold; the path, because installed scripts name it.
wanted_key() {
    { pwd -P; cat requirements/*.txt scripts/python_env.sh scripts/bootstrap.sh setup.cfg pyproject.toml; } | sha256sum
}

recorded_torch() { if [ -f "$stamp" ]; then sed -n 2p "$stamp"; else echo auto; fi; }

base_of() { "$1" -c 'import os, sys; print(os.path.realpath(sys.base_prefix), sys.version_info[:2])'; }

# An unset PYTHON or TORCH accepts what the environment was made with.
is_current() {
    [ -f "$stamp" ] && [ -x "$venv/bin/python" ] || return 1
    [ "$(sed -n 1p "$stamp")" = "$(wanted_key)" ] || return 1
    [ -z "${TORCH:-}" ] || [ "$(recorded_torch)" = "$TORCH" ] || return 1
    [ -z "${PYTHON:-}" ] || [ "$(base_of "$PYTHON")" = "$(base_of "$venv/bin/python")" ]
}

# An environment of another interpreter, another checkout or another torch cannot be brought up to date.
is_reusable() {
    [ -x "$venv/bin/python" ] && [ -f "$venv/bin/pip" ] || return 1
    [ -z "${TORCH:-}" ] || [ "$(recorded_torch)" = "$TORCH" ] || return 1
    head -n 1 "$venv/bin/pip" | grep -qF "$venv/bin/" || return 1
    [ -z "${PYTHON:-}" ] || [ "$(base_of "$PYTHON")" = "$(base_of "$venv/bin/python")" ]
}

main() {
    # Making it anew would empty whatever the link leads to.
    [ ! -L "$venv" ] || fail "$venv is a link to an environment of another checkout; remove it first"
    local python torch=${TORCH:-auto}
    python=$(find_python)
    if is_reusable; then
        say "bringing $venv up to date"
        torch=$(recorded_torch)
        sed -i '1s/.*/incomplete/' "$stamp" 2>/dev/null || true
    else
        check_torch_choice "$python"
        make_venv "$python" "$venv"
    fi
    # torch before all that may ask for it, so that nothing else can bring a CUDA build.
    torch_works "$venv" || TORCH=$torch install_torch "$venv" "$python"
    say "installing the pinned dependencies"
    pip_quiet "$venv" install --no-deps -r requirements/dev.txt
    say "installing omniserve in editable form"
    pip_quiet "$venv" install --no-deps --no-build-isolation -e .
    printf '%s\n%s\n' "$(wanted_key)" "$torch" >"$stamp"
    say "ready: $venv"
}

is_current && exit
# One at a time: two targets started together share the environment.
exec 9<requirements/runtime.txt
flock 9
is_current || main
