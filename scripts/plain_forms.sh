#!/usr/bin/env bash
# Compares every kernel of the benchmark suite with its plain form, a thread for each result, on one GPU. Prints the table and
# ends with status 6 where a kernel is slower than its plain form beyond noise.
#
#   scripts/plain_forms.sh PROGRAM [ARGUMENT...]      PROGRAM as it is started, as in: .cache/soft-vulkan/run target/release/cupola
#
#   CUPOLA_FORMS_DEVICE   the device (default: gpu)
#   CUPOLA_FORMS_MATCH    only cases whose name contains this
#   CUPOLA_FORMS_OUTPUT   folder for both results (default: one that is removed at the end)
#   CUPOLA_FORMS_LEAST    least change that counts, as a fraction (default: 0.05)
set -euo pipefail

if [[ $# -eq 0 ]]; then
    echo "usage: scripts/plain_forms.sh PROGRAM [ARGUMENT...]" >&2
    exit 2
fi
folder=${CUPOLA_FORMS_OUTPUT-}
if [[ -z $folder ]]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
mkdir -p "$folder"
for forms in plain chosen; do
    CUPOLA_GPU_FORMS=$forms "$@" bench --suite --device "${CUPOLA_FORMS_DEVICE:-gpu}" \
        --match "${CUPOLA_FORMS_MATCH-}" -o "$folder/$forms.json" >/dev/null
done
"$@" bench compare --check --least "${CUPOLA_FORMS_LEAST:-0.05}" "$folder/plain.json" "$folder/chosen.json"
