#!/usr/bin/env bash
# Installs what a fresh Debian or Ubuntu machine (root) lacks for the demo and the tests, and prints the path of Deno on
# the last line. Safe to repeat: what is there already is kept. Needs the distribution's, npm's and Go's package sources.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache="${KUBEEDGE_CACHE:-$HOME/.cache/kubeedge}"
bin="$cache/bin"
mkdir -p "$bin"
say() { printf '\033[2m[setup %4ss]\033[0m %s\n' "$SECONDS" "$*" >&2; }
die() { echo "setup: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "run as root: containers, network namespaces and mounts need it"
exec 9>"$cache/setup.lock"
flock 9

# ---- the distribution's packages, only those that are missing
declare -A package=([runc]=runc [nft]=nftables [iptables]=iptables [openssl]=openssl [tinyproxy]=tinyproxy [tcpdump]=tcpdump
  [busybox]=busybox-static [catatonit]=catatonit [ip]=iproute2 [nsenter]=util-linux [script]=bsdutils [curl]=curl [unzip]=unzip
  [git]=git [docker-registry]=docker-registry [skopeo]=skopeo [mount]=mount)
missing=()
for program in "${!package[@]}"; do command -v "$program" >/dev/null || missing+=("${package[$program]}"); done
[ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
if [ ${#missing[@]} -gt 0 ]; then
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >&2
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$cache/apt.log" 2>&1 || die "apt-get install failed, see $cache/apt.log"
fi

# ---- Deno: the one that was found, else from npm, PyPI, or its own installer
deno_version=2.9.6
new_enough() { [ -x "$1" ] && "$1" eval 'const [a, b] = Deno.version.deno.split(".").map(Number); Deno.exit(a > 2 || (a === 2 && b >= 9) ? 0 : 1)' 2>/dev/null; }
export DENO_NO_UPDATE_CHECK=1
deno=
for candidate in "${DENO:-}" "$(command -v deno || true)" "$cache/deno/node_modules/.bin/deno" "$cache/deno/bin/deno" "$HOME/.deno/bin/deno"; do
  if [ -n "$candidate" ] && new_enough "$candidate"; then deno=$candidate; break; fi
done
if [ -z "$deno" ]; then
  say "installing Deno $deno_version"
  if command -v npm >/dev/null && npm install --silent --no-fund --no-audit --prefix "$cache/deno" "deno@$deno_version" >"$cache/deno.log" 2>&1; then
    deno="$cache/deno/node_modules/.bin/deno"
  elif command -v python3 >/dev/null && python3 -m pip install -q --target "$cache/deno" "deno==$deno_version" >>"$cache/deno.log" 2>&1; then
    deno="$cache/deno/bin/deno"
  else
    curl -fsSL https://deno.land/install.sh | DENO_INSTALL="$cache/deno" sh -s -- "v$deno_version" >>"$cache/deno.log" 2>&1 || die "cannot install Deno, see $cache/deno.log"
    deno="$cache/deno/bin/deno"
  fi
fi
say "Deno: $("$deno" --version | head -1)"

# ---- Kubernetes, etcd and containerd from their Go modules; kube-apiserver first, what it compiles serves the others too
kubernetes=1.37.2 etcd=3.7.3 containerd=2.4.2 go_version=1.26.8
programs="kube-apiserver:$kubernetes kube-controller-manager:$kubernetes kube-scheduler:$kubernetes kubectl:$kubernetes
  etcd:$etcd containerd:$containerd containerd-shim-runc-v2:$containerd ctr:$containerd kubelet:$kubernetes"

# Whether the program is there in this version; what was put there by other means is asked once.
present() { # NAME VERSION
  [ -x "$bin/$1" ] || return 1
  [ "$(cat "$bin/$1.version" 2>/dev/null)" = "$2" ] && return
  local flag=--version said
  case $1 in kubectl) flag="version --client" ;; containerd-shim-runc-v2) flag=-v ;; esac
  # shellcheck disable=SC2086 -- a flag may be two words
  said=$("$bin/$1" $flag 2>/dev/null || true)
  grep -qE "(^|[ v])${2//./\\.}([+ ]|\$)" <<<"$said" && echo "$2" >"$bin/$1.version"
}

# A Go that can build with go_version, which it may fetch itself (from 1.21 on); else that Go from the module proxy.
find_go() {
  local candidate proxy name
  able() { [ -n "$1" ] && [ -x "$1" ] && "$1" version 2>/dev/null | grep -qE 'go1\.(2[1-9]|[3-9][0-9])'; }
  for candidate in "$(command -v go || true)" /usr/local/go/bin/go "$cache/go/bin/go"; do
    if able "$candidate"; then echo "$candidate"; return; fi
  done
  if ! command -v go >/dev/null && [ -z "${GOPROXY:-}" ]; then
    say "installing golang-go"
    apt-get install -y -qq --no-install-recommends golang-go >>"$cache/apt.log" 2>&1 || die "no Go was found, and golang-go cannot be installed: install Go 1.21 or later, or set GOPROXY to a Go module proxy"
    if able "$(command -v go)"; then command -v go; return; fi
  fi
  proxy="${GOPROXY:-$(go env GOPROXY)}" proxy="${proxy%%[,|]*}"
  case $proxy in http*) ;; *) die "no Go of 1.21 or later was found; install one, or set GOPROXY to a Go module proxy" ;; esac
  name="v0.0.1-go$go_version.linux-$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')"
  say "installing Go $go_version from the module proxy"
  curl -fsSL -o "$cache/go.zip" "$proxy/golang.org/toolchain/@v/$name.zip" || die "cannot fetch Go $go_version from the module proxy"
  rm -rf "$cache/go" "$cache/golang.org"
  unzip -q -d "$cache" "$cache/go.zip"
  mv "$cache/golang.org/toolchain@$name" "$cache/go"
  rm -rf "$cache/go.zip" "$cache/golang.org"
  chmod +x "$cache"/go/bin/* "$cache"/go/pkg/tool/*/*
  echo "$cache/go/bin/go"
}

build() { # NAME VERSION
  local module=kubernetes package=k8s.io/kubernetes/cmd/$1 flags="-s -w" version=k8s.io/component-base/version
  case $1 in
    etcd) module=etcd package=. ;;
    containerd* | ctr)
      module=containerd package=github.com/containerd/containerd/v2/cmd/$1
      flags+=" -X github.com/containerd/containerd/v2/version.Version=$2"
      ;;
    *) flags+=" -X $version.gitVersion=v$2 -X $version.gitMajor=1 -X $version.gitMinor=$(cut -d. -f2 <<<"$2")" ;;
  esac
  say "building $1 $2"
  (
    cd "test/real/go/$module"
    GOTOOLCHAIN=${GOTOOLCHAIN:-auto} CGO_ENABLED=0 GOFLAGS=-buildvcs=false \
      "$go" build -v -ldflags "$flags" -o "$bin/$1.new" "$package" 2>&1 | tee -a "$cache/build.log" |
      while read -r _; do
        lines=$((${lines:-0} + 1))
        if [ $((lines % 250)) = 0 ]; then say "building $1 $2: $lines packages"; fi
      done
  ) || die "building $1 failed, see $cache/build.log"
  mv "$bin/$1.new" "$bin/$1"
  echo "$2" >"$bin/$1.version"
}

missing=()
for program in $programs; do present "${program%:*}" "${program#*:}" || missing+=("$program"); done
if [ ${#missing[@]} -gt 0 ]; then
  say "${#missing[@]} programs are built from their Go modules, once; from empty caches it takes some 15 minutes on two cores"
  go=$(find_go)
  : >"$cache/build.log"
  for program in "${missing[@]}"; do build "${program%:*}" "${program#*:}"; done
fi
say "Kubernetes $kubernetes, etcd $etcd, containerd $containerd are ready"
echo "$deno"
