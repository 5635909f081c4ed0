#!/bin/bash
# Runs in the node image. Writes a tar to stdout with the named files, the libraries that they load, and the links
# through which they are named: the contents of an image for a program that is not linked statically.
set -euo pipefail
stage=$(mktemp -d)
mkdir -p "$stage"/usr/{bin,sbin,lib,lib64}
for folder in bin sbin lib lib64; do
  ln -s "usr/$folder" "$stage/$folder"
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
