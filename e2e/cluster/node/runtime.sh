#!/bin/sh
# An OCI runtime in front of runc for a root that lacks CAP_SYS_RESOURCE: a privileged container asks for every
# capability, and runc refuses the one that we cannot give. It is taken out of what we are asked for, no more.
set -eu
strip() {
  [ ! -f "$1" ] || sed -i -e 's/"CAP_SYS_RESOURCE",//g' -e 's/,"CAP_SYS_RESOURCE"//g' "$1"
}
bundle=. previous=
for word in "$@"; do
  case $previous in
  --bundle | -b) bundle=$word ;;
  --process | -p) strip "$word" ;;
  esac
  previous=$word
done
case " $* " in
*" create "* | *" run "*) strip "$bundle/config.json" ;;
esac
exec runc "$@"
