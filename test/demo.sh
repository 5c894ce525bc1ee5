#!/usr/bin/env bash
# Installs what is missing and runs the main job: a Kubernetes control plane, kubeedge cloud, and an edge machine behind
# NAT that runs a Deployment. It stays running; "test/demo.sh stop" ends all of it. Needs root on Debian or Ubuntu.
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${KUBEEDGE_CACHE:-$HOME/.cache/kubeedge}"
log="$cache/demo.log" pidfile="$cache/demo.pid"
mkdir -p "$cache"

# The pid that was recorded, while it is the demo's.
running() {
  local pid
  pid=$(cat "$pidfile" 2>/dev/null) && grep -qz test/real/demo.ts "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
}

case "${1:-start}" in
  start)
    if running >/dev/null; then
      echo "The demo runs already; see $log, or stop it: test/demo.sh stop"
      exit 0
    fi
    deno=$(bash test/real/setup.sh | tail -1)
    export DENO_NO_UPDATE_CHECK=1
    : >"$log"
    setsid "$deno" run -A --no-check --config deno.json test/real/demo.ts >"$log" 2>&1 </dev/null &
    pid=$!
    echo "$pid" >"$pidfile"
    trap 'echo "stopping"; kill "$pid" 2>/dev/null || true; wait "$pid" || true; exit 130' INT TERM
    # What it says, until it is ready or has ended.
    sed -u '/^demo: ready$/Q' < <(exec tail -n +1 -f --pid="$pid" "$log")
    kill $! 2>/dev/null || true
    running >/dev/null || exit 1
    ;;
  stop)
    if ! pid=$(running); then
      echo "The demo does not run"
      exit 0
    fi
    echo "stopping the demo (process $pid and what it started)"
    kill "$pid"
    while running >/dev/null; do sleep 0.2; done
    rm -f "$pidfile"
    echo "stopped"
    ;;
  *)
    echo "usage: test/demo.sh [start|stop]" >&2
    exit 2
    ;;
esac
