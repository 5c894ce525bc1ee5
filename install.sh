#!/bin/sh
# Installs kubeedge: picks the file for this machine, checks its SHA-256, puts it in place in one step.
set -eu

usage() {
  cat <<'END'
Usage: install.sh [--from DIR|URL] [--to DIR] [--sha256 SUM]
       install.sh --uninstall [--to DIR]

Installs the program kubeedge for this machine (x86_64 or aarch64).

  --from DIR|URL   where kubeedge-linux-x64 or -arm64 and its .sha256 are: a directory, or an https:// address
                   (default: dist beside this script, as "deno task build" makes it)
  --to DIR         where the program goes (default: /usr/local/bin)
  --sha256 SUM     the sum that the file must have, in place of the one beside it: take it from a source that you
                   trust, because whoever can change the file there can change the .sha256 as well
  --uninstall      undoes it: removes the program and what it unpacked; "kubeedge edge reset" comes first
  --help           this text

Examples:
  ./install.sh
  ./install.sh --from https://example.com/kubeedge/0.1.0
  ./install.sh --to "$HOME/bin"
  ./install.sh --uninstall
END
}
fail() {
  echo "install.sh: $*" >&2
  exit 1
}
bad() {
  echo "install.sh: $*; see install.sh --help" >&2
  exit 2
}

from="$(cd "$(dirname "$0")" && pwd)/dist" to=/usr/local/bin sum='' remove=''
while [ $# -gt 0 ]; do
  case "$1" in
    --from | --to | --sha256) [ $# -ge 2 ] && [ -n "$2" ] || bad "$1 needs a value" ;;
  esac
  case "$1" in
    --from) from=${2%/} && shift ;;
    --to) to=${2%/} && shift ;;
    --sha256) sum=$2 && shift ;;
    --uninstall) remove=yes ;;
    --help | -h) usage && exit 0 ;;
    *) bad "unknown option $1" ;;
  esac
  shift
done
program=$to/kubeedge

if [ -n "$remove" ]; then
  for unit in /etc/systemd/system/kubeedge-edge.service; do
    [ ! -e "$unit" ] || fail "this machine is an edge node ($unit): run \"kubeedge edge reset\" first"
  done
  [ -e "$program" ] || echo "$program is not there"
  rm -f "$program" || fail "cannot remove $program"
  # The self-extracting form unpacks itself there.
  if [ "$(id -u)" = 0 ]; then rm -rf /var/cache/kubeedge; else rm -rf "${XDG_CACHE_HOME:-$HOME/.cache}/kubeedge/program"; fi
  echo "kubeedge is uninstalled"
  exit 0
fi

[ "$(uname -s)" = Linux ] || fail "$(uname -s) is not supported, only Linux"
case "$(uname -m)" in
  x86_64) file=kubeedge-linux-x64 ;;
  aarch64 | arm64) file=kubeedge-linux-arm64 ;;
  *) fail "there is no kubeedge for $(uname -m), only for x86_64 and aarch64" ;;
esac
for tool in sha256sum gzip tar; do
  command -v "$tool" >/dev/null || fail "$tool is missing: install it first"
done
mkdir -p "$to" 2>/dev/null && [ -w "$to" ] || fail "cannot write to $to: run it as root, or name another directory with --to"

# Beside its place, so that the last step is a rename within one file system.
part=$(mktemp -d "$to/.kubeedge.XXXXXX") || fail "cannot write to $to"
trap 'rm -rf "$part"' EXIT
trap 'exit 1' HUP INT TERM

get() { # NAME
  case "$from" in
    https://*)
      if command -v curl >/dev/null; then
        curl --proto '=https' --tlsv1.2 --fail --silent --show-error --location --retry 3 --output "$part/$1" "$from/$1"
      elif command -v wget >/dev/null; then
        wget --https-only --quiet --output-document="$part/$1" "$from/$1"
      else
        fail "neither curl nor wget is there to download with"
      fi
      ;;
    *://*) bad "--from $from: expected a directory or an https:// address" ;;
    *) [ -f "$from/$1" ] && cp -- "$from/$1" "$part/$1" ;;
  esac || fail "cannot get $from/$1"
}

get "$file"
if [ -z "$sum" ]; then
  get "$file.sha256"
  read -r sum _ <"$part/$file.sha256" || :
fi
case "$sum" in
  *[!0-9a-fA-F]* | '') fail "\"$sum\" is no SHA-256 sum" ;;
esac
is=$(sha256sum "$part/$file" | cut -d ' ' -f 1)
[ "$is" = "$(printf %s "$sum" | tr A-F a-f)" ] || fail "$from/$file has the SHA-256 sum $is, expected $sum: nothing was installed"

chmod 755 "$part/$file"
made=$("$part/$file" --version) || fail "$file does not run on this machine: nothing was installed"
mv -f "$part/$file" "$program"
echo "$program is installed: $(printf %s "$made" | head -n 1)"
case ":$PATH:" in
  *":$to:"*) ;;
  *) echo "Note: $to is not in PATH" ;;
esac
echo "Next: kubeedge --help"
