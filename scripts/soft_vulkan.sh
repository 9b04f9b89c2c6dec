#!/usr/bin/env bash
# Puts a software Vulkan adapter (Mesa's lavapipe) into a folder, so that GPU tests run on Debian without a GPU.
#
#   scripts/soft_vulkan.sh [DIR]      default: .cache/soft-vulkan
#   DIR/run PROGRAM [ARGUMENT...]     starts a program with that adapter
#
# Debian 12's own driver is old: it has no cooperative matrices. So this takes Debian 13's backport with all it needs, its C library
# too, unpacks everything under DIR and installs nothing. `run` starts programs through that C library's loader; a child of theirs sees the
# adapter only when started through `run` as well. Fetches 65 MB through apt, takes 310 MB. Does nothing where DIR/run exists.
set -euo pipefail

release=trixie
packages=(mesa-vulkan-drivers libvulkan1)

dir=${1:-$(dirname "$0")/../.cache/soft-vulkan}
if [[ -x $dir/run ]]; then
    exit 0
fi
fail() {
    echo "soft_vulkan.sh: $*" >&2
    exit 1
}
[[ $(uname -s) == Linux ]] || fail "needs Linux"
command -v apt-get dpkg-deb >/dev/null || fail "needs apt-get and dpkg-deb"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[[ -r $keys ]] || fail "needs the package debian-archive-keyring"
# The mirror this machine already uses for its own packages.
# shellcheck disable=SC2016 # apt's own variable
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | awk '/\/debian\/*$/ && !found++')
[[ -n $mirror ]] || fail "apt knows no Debian mirror; try apt-get update first"

# Built aside and moved at the end, so that a broken download leaves no half adapter.
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
rm -rf "$dir/new" "$dir/root"
mkdir -p "$dir"/new/root "$dir"/new/apt/{lists,cache/archives}/partial
trap 'rm -rf "$dir/new"' EXIT
apt=$dir/new/apt
: >"$apt/status" # as if nothing were installed, so that every dependency comes
for suite in "$release" "$release-backports"; do
    echo "deb [signed-by=$keys] $mirror $suite main"
done >"$apt/sources"
options=(
    -o "Dir::Etc::SourceList=$apt/sources" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$apt/lists" -o "Dir::State::Status=$apt/status" -o "Dir::Cache=$apt/cache"
    -o Debug::NoLocking=1 -o APT::Sandbox::User=root -o Acquire::Languages=none -o APT::Install-Recommends=0
)
apt-get -qq "${options[@]}" update
apt-get -qq "${options[@]}" -y --download-only -t "$release-backports" install "${packages[@]}" >/dev/null
for package in "$apt"/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$dir/new/root"
done
mv "$dir/new/root" "$dir/root"

driver=$(find "$dir/root" -name libvulkan_lvp.so -print -quit)
[[ -n $driver ]] || fail "the packages hold no lavapipe driver"
libraries=$(dirname "$driver")
loader=$(find "$libraries" -name 'ld-linux*' -print -quit)
[[ -n $loader ]] || fail "the packages hold no dynamic loader"
cat >"$dir/lavapipe.json" <<JSON
{"file_format_version": "1.0.0", "ICD": {"library_path": "$driver", "api_version": "1.3.0"}}
JSON
cat >"$dir/new/run" <<RUN
#!/bin/sh
VK_DRIVER_FILES='$dir/lavapipe.json' exec '$loader' --library-path '$libraries' "\$@"
RUN
chmod +x "$dir/new/run"
mv "$dir/new/run" "$dir/run"
