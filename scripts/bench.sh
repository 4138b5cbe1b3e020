#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Set up this checkout and run the benchmarks in testing/bench/: all of them, or those named.
set -Eeuo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$ROOT"
# In a container the first process may be slow to bury the emulators that have ended, and libvirt
# waits for that. Where tini is installed it does so at once.
UNDERTAKER=()
[[ ! -x $(command -v tini) ]] || UNDERTAKER=(tini -s --)
[[ " $* " == *' --help '* || " $* " == *' -h '* ]] || ./scripts/setup.sh --dev --unchecked --quiet
exec "${UNDERTAKER[@]}" .venv/bin/python -m testing.bench "$@"
