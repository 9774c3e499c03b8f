#!/usr/bin/env bash
# Prints a Secret with the variables of each user, from the folder that `dpstream access` wrote and the
# template access.env of an overlay; third argument: the namespace, if not dpstream:
#   k8s/secrets.sh access k8s/overlays/local | kubectl apply -f -
# NAME_USER=… in passwords.env gives a user another name at the broker.
set -euo pipefail
passwords=$1/passwords.env
template=$(cat "$2/access.env")
namespace=${3:-dpstream}

value() { sed -n "s/^$1=//p" "$passwords"; }

environment() {  # of the user whose variables begin with $1 and whose name is $2
    local text=$template user
    user=$(value "$1_USER")
    text=${text//'$USER'/"${user:-$2}"}
    text=${text//'$PASSWORD'/"$(value "$1_PASSWORD")"}
    text=${text//'$ACCESS_KEY'/"$(value "$1_ACCESS_KEY")"}
    text=${text//'$SECRET_KEY'/"$(value "$1_SECRET_KEY")"}
    echo "$text"
    local signing
    signing=$(value "$1_SIGNING_KEY")
    if [ -n "$signing" ]; then echo "DPSTREAM_LABELER_SIGNING_KEY=$signing"; fi
    if [ "$2" = coordinator ]; then echo "DPSTREAM_API_TOKEN=$(value API_TOKEN)"; fi
}

for variable in $(sed -n 's/_PASSWORD=.*//p' "$passwords"); do
    case $variable in ADMIN | OPERATOR) continue ;; esac
    name=$(echo "$variable" | tr 'A-Z_' 'a-z-')
    echo ---
    environment "$variable" "$name" | kubectl create secret generic "dpstream-$name" \
        --namespace "$namespace" --dry-run=client --output yaml --from-env-file=/dev/stdin
done
