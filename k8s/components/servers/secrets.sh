#!/usr/bin/env bash
# Prints the Secrets of RabbitMQ and SeaweedFS, from the folder that `dpstream access` wrote; second
# argument: the namespace, if not dpstream:
#   k8s/components/servers/secrets.sh access | kubectl apply -f -
set -euo pipefail
access=$1
namespace=${2:-dpstream}
root=$(cd "$(dirname "$0")/../../.." && pwd)

secret() {
    echo ---
    kubectl create secret generic "$1" --namespace "$namespace" --dry-run=client --output yaml "${@:2}"
}

secret dpstream-rabbitmq --from-file="$root/deploy/rabbitmq.conf" \
    --from-file="$access/rabbitmq/definitions.json"
secret dpstream-seaweedfs --from-file="$access/seaweedfs/s3.json"
secret dpstream-label-signers --from-file="$access/label-signers.json"
sed -n 's/^ADMIN_ACCESS_KEY=/AWS_ACCESS_KEY_ID=/p; s/^ADMIN_SECRET_KEY=/AWS_SECRET_ACCESS_KEY=/p' \
    "$access/passwords.env" | secret dpstream-store-admin --from-env-file=/dev/stdin
