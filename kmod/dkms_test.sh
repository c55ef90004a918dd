#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# DKMS builds the staged tree for the kernel of the guests, in folders of its own. Status 77: no headers, or no dkms.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
command -v dkms >/dev/null || { echo "dkms is missing: scripts/setup installs it"; exit 77; }
tree=$("$here/build" --print)
[[ -n $tree ]] || exit 77
release=$(sed -n 's/^#define UTS_RELEASE "\(.*\)"/\1/p' "$tree/include/generated/utsrelease.h")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$here/build" --stage --out "$work"
version=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' "$work/source/dkms.conf")
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || { echo "dkms.conf has no version: '$version'"; exit 1; }
mkdir -p "$work/dkms" "$work/src" "$work/modules"
mv "$work/source" "$work/src/distfuse-$version"
# It makes a key to sign with, wherever its tree is, unless it is told of one.
export mok_signing_key=$work/key mok_certificate=$work/certificate
run() { dkms --dkmstree "$work/dkms" --sourcetree "$work/src" --installtree "$work/modules" "$@"; }

run add -m distfuse -v "$version"
run build -m distfuse -v "$version" -k "$release" --kernelsourcedir "$tree" || {
  cat "$work/dkms/distfuse/$version/build/make.log"
  exit 1
}
module=$(find "$work/dkms/distfuse/$version/$release" -name 'distfuse.ko*' | head -n 1)
[[ $(/sbin/modinfo -F vermagic "$module") == "$release "* ]] || { echo "not a module of $release: $module"; exit 1; }
[[ $(run status) == *"distfuse/$version, $release, "*built* ]] || { run status; exit 1; }
