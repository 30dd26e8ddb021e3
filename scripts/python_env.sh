# Functions that find Python, make a virtual environment and put torch into it.
# Sourced by bootstrap.sh, peer_vllm.sh and .ci/run; sets nothing when sourced but TORCH_VERSION.

TORCH_VERSION=2.13.0

say() { printf '==> %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Prints the first interpreter that is Python 3.11 or 3.12; PYTHON= names one and then no other is tried.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11}; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        fail "PYTHON=$PYTHON is not a Python 3.11 or 3.12 interpreter"
    fi
    fail "no Python 3.11 or 3.12 found as python3, python3.12 or python3.11; install one or name it with PYTHON="
}

# make_venv PYTHON DIR: a fresh environment with pip, whatever DIR held before.
make_venv() {
    local python=$1 dir=$2
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        fail "$python cannot make virtual environments; on Debian: apt-get install python3-venv"
    fi
    say "creating $dir with $("$python" -V 2>&1) ($python)"
    "$python" -m venv --clear "$dir"
}

# pip_quiet DIR ARGS...: pip of an environment, silent unless it fails.
pip_quiet() {
    local dir=$1
    shift
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$dir/bin/python" -m pip -qq "$@" </dev/null
}

# torch_works DIR: an importable torch of a supported version is there.
torch_works() {
    "$1/bin/python" - 2>/dev/null <<'PY'
import sys
import torch
major, minor = (int(part) for part in torch.__version__.split(".")[:2])
sys.exit(not (2, 11) <= (major, minor) < (2, 16))
PY
}

# check_torch_choice PYTHON: ends with a message where TORCH asks for what cannot be, before anything is changed.
check_torch_choice() {
    case ${TORCH:-auto} in
        auto | cpu | cuda | npu) ;;
        system)
            "$1" -c 'import torch' 2>/dev/null ||
                fail "TORCH=system, but $1 cannot import torch; name an interpreter that can with PYTHON="
            ;;
        *) fail "TORCH=$TORCH is not one of auto, system, cpu, cuda, npu" ;;
    esac
}

# install_torch DIR PYTHON: what TORCH asks for (auto, system, cpu, cuda, npu). "auto" takes the first that works of:
# the pinned CPU build from where pip looks, the same from PyTorch's CPU index, the build for an accelerator that answers.
# Nothing but TORCH=cuda and that last case can bring a CUDA build.
install_torch() {
    local dir=$1 python=$2 choice=${TORCH:-auto}
    case $choice in
        system) link_system_torch "$dir" "$python" ;;
        cpu) torch_cpu "$dir" || fail "torch==$TORCH_VERSION+cpu found neither where pip looks nor on PyTorch's CPU index" ;;
        cuda) torch_cuda "$dir" || fail "the CUDA build of torch $TORCH_VERSION could not be installed" ;;
        npu) torch_npu "$dir" || fail "torch $TORCH_VERSION with torch_npu could not be installed" ;;
        auto) torch_auto "$dir" ;;
        *) fail "TORCH=$choice is unknown" ;;
    esac
    torch_works "$dir" || fail "torch was installed into $dir but cannot be imported as a version >= 2.11, < 2.16"
}

torch_auto() {
    local dir=$1
    if torch_cpu "$dir"; then
        if answers nvidia-smi; then say "nvidia-smi answers here: TORCH=cuda installs the CUDA build instead"; fi
        if answers npu-smi info; then say "npu-smi answers here: TORCH=npu adds torch_npu"; fi
    elif answers nvidia-smi; then
        torch_cuda "$dir" || fail "no build of torch $TORCH_VERSION could be installed"
    elif answers npu-smi info; then
        torch_npu "$dir" || fail "no build of torch $TORCH_VERSION could be installed"
    else
        fail "torch==$TORCH_VERSION+cpu could not be had; where torch is installed already, TORCH=system uses it"
    fi
}

answers() { command -v "$1" >/dev/null 2>&1 && "$@" >/dev/null 2>&1 </dev/null; }

torch_cpu() {
    local dir=$1 wanted="torch==$TORCH_VERSION+cpu"
    say "installing $wanted"
    pip_quiet "$dir" install "$wanted" && return
    say "not found where pip looks; trying PyTorch's CPU index"
    # --extra-index-url: torch's own small dependencies still come from where pip looks.
    pip_quiet "$dir" install --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu "$wanted"
}

torch_cuda() {
    say "installing the CUDA build of torch $TORCH_VERSION (several GB)"
    # Three equals signs: two would also be content with 2.13.0+cpu.
    pip_quiet "$1" install "torch===$TORCH_VERSION"
}

torch_npu() {
    say "installing torch $TORCH_VERSION with torch_npu"
    # PyPI's own build is a CPU one on aarch64 alone.
    torch_cpu "$1" || { [ "$(uname -m)" = aarch64 ] && pip_quiet "$1" install "torch===$TORCH_VERSION"; } || return
    pip_quiet "$1" install --no-deps "torch_npu==$TORCH_VERSION"
}

# TORCH=system: a .pth file appends the directory that holds the interpreter's torch. Unlike --system-site-packages
# this also reaches a torch that lives in another virtual environment, and the pinned packages still come first.
link_system_torch() {
    local dir=$1 python=$2 site target
    site=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])')
    target=$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$site" >"$target/system_torch.pth"
    say "using the torch in $site"
}
