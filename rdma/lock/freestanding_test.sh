#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
# The core as a kernel would compile it: no library, no floating point, and nothing undefined but memcpy, memset and memcmp.
# Usage: freestanding_test.sh CC SOURCE_ROOT FILE...
set -eu
cc=$1
root=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for file in "$@"; do
  "$cc" -std=gnu11 -O2 -ffreestanding -nostdlib -mgeneral-regs-only -fno-stack-protector -fno-pic -mcmodel=kernel \
    -Wall -Wextra -Wdeclaration-after-statement -Wframe-larger-than=2048 -Werror \
    -I"$root" -c "$root/rdma/lock/$file" -o "$work/$file.o"
done
ld -r -o "$work/core.o" "$work"/*.o
undefined=$(nm -u "$work/core.o" | awk '{ print $2 }' | grep -vxE 'memcpy|memset|memcmp' || true)
if [ -n "$undefined" ]; then
  echo "undefined symbols that no kernel offers: $undefined" >&2
  exit 1
fi
echo "freestanding: $# files, nothing undefined"
