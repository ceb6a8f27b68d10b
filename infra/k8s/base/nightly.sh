#!/bin/sh
# Makes a RayJob like the one named gnp and waits for its end: the CronJob's concurrencyPolicy sees this process, not the
# RayJob. It has the name of the Job that this belongs to, so that a second try (this pod's machine went) finds it and
# waits on, and goes with that Job.
set -eu

if ! kubectl get rayjob "$JOB_NAME" >/dev/null 2>&1; then
    labels=$(kubectl get rayjob gnp -o jsonpath='{.metadata.labels}')
    # As it was applied, if that is known: what a queue has admitted has been given its machines (nodeSelector), too.
    applied=$(kubectl get rayjob gnp \
        -o jsonpath='{.metadata.annotations.kubectl\.kubernetes\.io/last-applied-configuration}')
    case $applied in
    *'"spec":'*)
        spec=${applied#*'"spec":'}
        spec=${spec%\}*} # the brace that closes the whole
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
    # The API may be away for a while; that the RayJob is gone is an answer, too, and an empty one.
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
