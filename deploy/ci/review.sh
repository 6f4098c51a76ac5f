#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Reviews a change in any CI: leaves review.md (the comment), review.json and review.sarif in a folder.
#
#   review.sh BASE HEAD [FOLDER]
#
# BASE is the commit that the change is to be merged into, HEAD the change; both must be in this clone, with the history
# between them. Nothing of the change is run. RECONCILER is the command, FAIL_ON the severity (high, medium, low, info)
# from which on this exits with 2; otherwise 0 whenever a review was made, and 1 when none could be made.
set -euo pipefail

if (($# < 2 || $# > 3)); then
	echo "usage: review.sh BASE HEAD [FOLDER]" >&2
	exit 64
fi
folder=${3:-reconciler-review}
arguments=(--json "$folder/review.json" --markdown "$folder/review.md" --sarif "$folder/review.sarif")
[[ -z ${FAIL_ON:-} ]] || arguments+=(--fail-on "$FAIL_ON")

mkdir -p -- "$folder"
rm -f -- "$folder"/review.{json,md,sarif}
status=0
"${RECONCILER:-reconciler}" review "${arguments[@]}" -- "$1" "$2" || status=$?
if [[ ! -s $folder/review.md ]]; then
	printf '<!-- reconciler-review -->\n## Review: none\n\n**No review could be made.** The log of this job says why.\n' >"$folder/review.md"
fi
echo "the comment is in $folder/review.md"
exit "$status"
