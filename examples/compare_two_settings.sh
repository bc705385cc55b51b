#!/usr/bin/env bash
# Two settings of AISP on the same prompts, seeds and budget, in one table with paired intervals.
set -euo pipefail
cd "$(dirname "$0")/.."
to="${1:-outputs/two_settings}"
python="${PYTHON:-python}"

for sigma in 0.5 1.0; do
    "$python" jobs/eval.py method=[aisp,best_of_n] method.aisp.sigma=$sigma limit="${LIMIT:-6}" report=false out="$to/sigma$sigma"
done
"$python" jobs/report.py out="[$to/sigma0.5,$to/sigma1.0]" to="$to/report"
