#!/bin/sh
# Installs kubeedge on this machine (x86_64 or ARM64 Linux):
#
#     curl -fsSL URL/install.sh | sh -s -- --from URL     from where the executables lie
#     sh install.sh --from dist                            from a directory
#     sh install.sh --uninstall                            removes it again; run "kubeedge edge reset" first
#
# The file's SHA-256 is checked against URL/kubeedge-linux-ARCH.sha256 before anything is replaced.
set -eu

from="${KUBEEDGE_FROM:-}"
to="${KUBEEDGE_TO:-/usr/local/bin}"
uninstall=

die() {
  echo "install.sh: $*" >&2
  exit 1
}
while [ $# -gt 0 ]; do
  case "$1" in
    --from) [ $# -gt 1 ] || die "--from needs a URL or a directory"; from="$2"; shift ;;
    --to) [ $# -gt 1 ] || die "--to needs a directory"; to="$2"; shift ;;
    --uninstall) uninstall=1 ;;
    -h | --help) sed -n '2,8p' "$0" 2>/dev/null | sed 's/^# \{0,1\}//'; exit 0 ;;
    *) die "unknown option $1: expected --from, --to or --uninstall" ;;
  esac
  shift
done

main() {
  if [ -n "$uninstall" ]; then
    rm -f "$to/kubeedge"
    rm -rf /var/cache/kubeedge
    echo "kubeedge is removed from $to"
    return
  fi
  [ "$(uname -s)" = Linux ] || die "only Linux is supported, this is $(uname -s)"
  case "$(uname -m)" in
    x86_64 | amd64) arch=x64 ;;
    aarch64 | arm64) arch=arm64 ;;
    *) die "no executable for $(uname -m): expected x86_64 or aarch64" ;;
  esac
  [ -n "$from" ] || die "say where the executables are: --from URL (or a directory)"
  [ -d "$to" ] && [ -w "$to" ] || die "cannot write to $to: run as root, or name another place with --to"
  name="kubeedge-linux-$arch"
  # Beside its destination, so that the last step is a rename: nobody ever sees half a program.
  part="$to/.kubeedge.$$"
  trap 'rm -f "$part" "$part.sha256"' EXIT INT TERM
  fetch "$name" "$part"
  fetch "$name.sha256" "$part.sha256"
  wanted=$(cut -d' ' -f1 <"$part.sha256")
  got=$(sha256sum "$part" | cut -d' ' -f1)
  [ "$wanted" = "$got" ] || die "the checksum of $name is wrong: expected $wanted, got $got"
  chmod 755 "$part"
  "$part" --version >/dev/null || die "$name does not run on this machine (glibc 2.27 or later, gzip and tar are needed)"
  mv -f "$part" "$to/kubeedge"
  "$to/kubeedge" --version
  echo "Next: kubeedge edge join TOKEN (a token comes from: kubeedge cloud token create)"
}

fetch() {
  case "$from" in
    http://* | https://*)
      if command -v curl >/dev/null; then curl -fsSL -o "$2" "$from/$1"
      else wget -qO "$2" "$from/$1"; fi || die "cannot fetch $from/$1" ;;
    *) cp "$from/$1" "$2" || die "cannot read $from/$1" ;;
  esac
}

# The whole script is read before anything is done: a download that was cut does nothing.
main
