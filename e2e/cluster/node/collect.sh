#!/bin/bash
# Runs in the node image: a tar on stdout of the files that are named, of the libraries that they load, and of the
# links that they are. It is what an image around a program that is not static consists of.
set -euo pipefail
stage=$(mktemp -d)
mkdir -p "$stage"/usr/{bin,sbin,lib,lib64}
for room in bin sbin lib lib64; do
  ln -s "usr/$room" "$stage/$room"
done
put() { # put SOURCE PATH
  [ ! -e "$stage$2" ] || return 0
  mkdir -p "$stage$(dirname "$2")"
  cp -L "$1" "$stage$2"
}
for file in "$@"; do
  real=$(readlink -f "$file")
  put "$real" "$real"
  [ "$real" = "$file" ] || ln -s "$real" "$stage$file"
  { ldd "$real" 2>/dev/null || true; } | { grep -o '/[^ ]*' || true; } | while read -r library; do
    put "$library" "/usr${library#/usr}"
  done
done
tar -C "$stage" -c .
