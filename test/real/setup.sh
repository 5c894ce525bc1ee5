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

# ---- Kubernetes, etcd and containerd from their Go modules
kubernetes=1.37.2 etcd=3.7.3 containerd=2.4.2
go_version=1.26.8
find_go() {
  for candidate in "$(command -v go || true)" /usr/local/go/bin/go "$cache/go/bin/go"; do
    [ -n "$candidate" ] && [ -x "$candidate" ] || continue
    "$candidate" version 2>/dev/null | grep -qE 'go1\.(2[1-9]|[3-9][0-9])' && { echo "$candidate"; return; }
  done
  proxy="${GOPROXY:-$(cat "${XDG_CONFIG_HOME:-$HOME/.config}/go/env" 2>/dev/null | sed -n 's/^GOPROXY=//p')}"
  proxy="${proxy%%,*}"
  [ -n "$proxy" ] || die "no Go of 1.21 or later was found; install one, or set GOPROXY to a Go module proxy"
  say "installing Go $go_version from the module proxy"
  arch=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
  name="golang.org/toolchain@v0.0.1-go$go_version.linux-$arch"
  curl -fsSL -o "$cache/go.zip" "$proxy/golang.org/toolchain/@v/v0.0.1-go$go_version.linux-$arch.zip" || die "cannot fetch Go"
  rm -rf "$cache/go" "$cache/golang.org"
  unzip -q -d "$cache" "$cache/go.zip"
  mv "$cache/$name" "$cache/go"
  rm -rf "$cache/go.zip" "$cache/golang.org"
  chmod +x "$cache"/go/bin/* "$cache"/go/pkg/tool/*/*
  echo "$cache/go/bin/go"
}
build() { # MODULE NAME FLAGS PACKAGE
  local module=$1
  shift
  [ -x "$bin/$1" ] && return
  say "building $1 (once; kube-apiserver takes some minutes)"
  (cd "test/real/go/$module" && GOTOOLCHAIN="${GOTOOLCHAIN:-auto}" CGO_ENABLED=0 GOFLAGS=-buildvcs=false "$go" build -ldflags "$2" -o "$bin/$1.new" "$3") >>"$cache/build.log" 2>&1 ||
    die "building $1 failed, see $cache/build.log"
  mv "$bin/$1.new" "$bin/$1"
}
wanted=(kube-apiserver kube-controller-manager kube-scheduler kubectl etcd containerd containerd-shim-runc-v2 ctr kubelet)
for name in "${wanted[@]}"; do
  if [ ! -x "$bin/$name" ]; then
    go=$(find_go)
    v=k8s.io/component-base/version
    kube="-s -w -X $v.gitVersion=v$kubernetes -X $v.gitMajor=1 -X $v.gitMinor=37"
    for part in kube-apiserver kube-controller-manager kube-scheduler kubectl kubelet; do build kubernetes $part "$kube" k8s.io/kubernetes/cmd/$part; done
    build etcd etcd "-s -w" .
    for part in containerd containerd-shim-runc-v2 ctr; do
      build containerd $part "-s -w -X github.com/containerd/containerd/v2/version.Version=$containerd" github.com/containerd/containerd/v2/cmd/$part
    done
    break
  fi
done
say "Kubernetes $kubernetes, etcd $etcd, containerd $containerd are ready"
echo "$deno"
