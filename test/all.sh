#!/usr/bin/env bash
# Installs what is missing and passes all tests: format, lint, types, the fast gate, then end to end on real parts.
# Prints true counts as its last line. Safe to repeat; what it starts it ends by pid, also when it is broken off.
#   KUBEEDGE_TESTS="test/unit/wire_*"   only these files in place of all
#   KUBEEDGE_CI_ONLY=unit               only the fast gate: format, lint, types, unit tests
set -uo pipefail
cd "$(dirname "$0")/.."
cache="${KUBEEDGE_CACHE:-$HOME/.cache/kubeedge}"
mkdir -p "$cache"
passed=0 failed=0 skipped=0
# For one run of deno test, s.
patience=900
say() { printf '\n\033[1m[%4ss] %s\033[0m\n' "$SECONDS" "$*"; }
finish() {
  say "all.sh took $SECONDS s"
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" = 0 ] || exit 1
  exit 0
}

say "setup"
if ! deno=$(bash test/real/setup.sh | tail -1) || [ ! -x "$deno" ]; then
  echo "the setup failed"
  failed=1
  finish
fi
export DENO="$deno" DENO_NO_UPDATE_CHECK=1 NO_COLOR=1
unset HTTPS_PROXY https_proxy

# One check, counted as one test.
check() {
  say "$*"
  if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}

# The test run in the background, so that a signal is answered at once; it cleans up itself on SIGTERM.
running=
broken_off() {
  trap '' INT TERM
  say "broken off; cleaning up"
  if [ -n "$running" ]; then
    kill -TERM "$running" 2>/dev/null
    wait "$running"
  fi
  failed=$((failed + 1))
  finish
}
trap broken_off INT TERM

# Test files; counts are read from Deno's summary: tests and their steps.
tests() {
  say "deno test $*"
  local log line code show
  log=$(mktemp)
  # A session of its own: a Ctrl-C at the terminal is for this script alone.
  setsid timeout --kill-after=60 "$patience" "$deno" test -A --no-check "$@" >"$log" 2>&1 &
  running=$!
  tail -n +1 -s 0.2 -f --pid="$running" "$log" &
  show=$!
  wait "$running"
  code=$?
  running=
  wait "$show"
  line=$(grep -E '^(ok|FAILED) \| ' "$log" | tail -1)
  rm -f "$log"
  # ok | 12 passed (3 steps) | 0 failed (2 steps) | 1 ignored (1s)
  count() { # WORD
    local tests steps
    tests=$(sed -nE "s/.*\| ?([0-9]+) $1.*/\1/p" <<<"$line")
    steps=$(sed -nE "s/.*\| ?[0-9]+ $1 \(([0-9]+) steps?\).*/\1/p" <<<"$line")
    echo $((${tests:-0} + ${steps:-0}))
  }
  local failures
  failures=$(count failed)
  # Without a failed test it may still have been killed, have run out of time, or not have loaded.
  if [ "$code" != 0 ] && [ "$failures" = 0 ]; then
    echo "deno test ended with $code"
    failures=1
  fi
  passed=$((passed + $(count passed)))
  failed=$((failed + failures))
  skipped=$((skipped + $(count ignored)))
}

if [ -n "${KUBEEDGE_TESTS:-}" ]; then
  # shellcheck disable=SC2086 -- a list of patterns
  tests $KUBEEDGE_TESTS
  finish
fi
check "$deno" fmt --check
check "$deno" lint
check "$deno" check .
tests test/unit test/arch_test.ts
if [ "${KUBEEDGE_CI_ONLY:-}" = unit ]; then finish; fi
check "$deno" task build
export KUBEEDGE_BIN="$PWD/dist/kubeedge-linux-$(uname -m | sed 's/x86_64/x64/; s/aarch64/arm64/')"
for file in test/e2e/*_test.ts; do tests "$file"; done
finish
