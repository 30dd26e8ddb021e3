#!/bin/sh
# Writes omniserve/v1 from proto/. With --check nothing is changed, and a difference is an error.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
schema=omniserve/v1/omniserve.proto

generate() {
    "$python" -m grpc_tools.protoc -Iproto --python_out="$1" --pyi_out="$1" --grpc_python_out="$1" "$schema"
}

if [ "${1:-}" = --check ]; then
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    generate "$fresh"
    for stub in omniserve_pb2.py omniserve_pb2.pyi omniserve_pb2_grpc.py; do
        if ! diff -u "omniserve/v1/$stub" "$fresh/omniserve/v1/$stub"; then
            echo "omniserve/v1/$stub differs from proto/$schema: run scripts/generate_stubs.sh" >&2
            exit 1
        fi
    done
elif [ $# -eq 0 ]; then
    generate .
else
    echo "usage: $0 [--check]" >&2
    exit 2
fi
