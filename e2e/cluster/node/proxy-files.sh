#!/bin/bash
# Runs in the node image: a tar on stdout of the packet filter programs that kube-proxy calls, with their libraries.
set -euo pipefail
programs=(/usr/sbin/{iptables,ip6tables}{,-save,-restore} /usr/sbin/xtables-nft-multi /usr/sbin/{nft,conntrack})
modules=(/usr/lib/*/xtables/*.so)
stage=$(mktemp -d)
mkdir -p "$stage"/usr/{sbin,lib} "$stage"/usr/lib64 "$stage"/{tmp,run}
ln -s usr/sbin "$stage/sbin"
ln -s usr/lib "$stage/lib"
ln -s usr/lib64 "$stage/lib64"
for program in "${programs[@]}"; do
  case $(basename "$program") in
  iptables* | ip6tables*) ln -s xtables-nft-multi "$stage$program" ;;
  *) cp "$program" "$stage$program" ;;
  esac
done
for file in /usr/sbin/xtables-nft-multi /usr/sbin/nft /usr/sbin/conntrack "${modules[@]}"; do
  ldd "$file" | grep -o '/[^ ]*' || true
done | sort -u | while read -r library; do
  real=/usr${library#/usr}
  mkdir -p "$stage$(dirname "$real")"
  cp -L "$library" "$stage$real"
done
mkdir -p "$stage$(dirname "${modules[0]}")"
cp "${modules[@]}" "$stage$(dirname "${modules[0]}")/"
cp /etc/protocols "$stage/" 2>/dev/null || true
tar -C "$stage" -c .
