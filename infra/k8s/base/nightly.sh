#!/bin/sh
# Creates a copy of the RayJob named gnp and waits for its end: the CronJob's concurrencyPolicy sees this process, not
# the RayJob. The copy has the name of this Job, so that a retry on another machine finds it and continues to wait, and is
# deleted with this Job.
set -eu

if ! kubectl get rayjob "$JOB_NAME" >/dev/null 2>&1; then
    labels=$(kubectl get rayjob gnp -o jsonpath='{.metadata.labels}')
    # The spec as it was applied, if that is recorded: a queue changes the spec on admission (nodeSelector).
    applied=$(kubectl get rayjob gnp \
        -o jsonpath='{.metadata.annotations.kubectl\.kubernetes\.io/last-applied-configuration}')
    case $applied in
    *'"spec":'*)
        spec=${applied#*'"spec":'}
        spec=${spec%\}*} # the closing brace of the document
        ;;
    *) spec=$(kubectl get rayjob gnp -o jsonpath='{.spec}') ;;
    esac
    kubectl create -f - <<EOF
{
  "apiVersion": "ray.io/v1",
  "kind": "RayJob",
  "metadata": {
    "name": "$JOB_NAME",
    "labels": $labels,
    "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "$JOB_NAME", "uid": "$JOB_UID"}]
  },
  "spec": $spec
}
EOF
fi

while true; do
    # The API may be unavailable for a while; the answer is empty if the RayJob was deleted.
    status=$(kubectl get rayjob "$JOB_NAME" --ignore-not-found \
        -o jsonpath='{.status.jobDeploymentStatus} {.status.jobStatus}') || status=unknown
    case $status in
    "")
        echo "$JOB_NAME: was deleted" >&2
        exit 1
        ;;
    "Complete SUCCEEDED") exit 0 ;;
    Complete* | Failed* | ValidationFailed*)
        echo "$JOB_NAME: $status" >&2
        exit 1
        ;;
    esac
    sleep 30
done
