#!/usr/bin/env bash
# Creates or replaces the enclaves of the nodes that are named as arguments.
set -euo pipefail
umask 077

sign() {
    openssl smime -sign -text -signer keys/permissions/cert.pem \
        -inkey keys/permissions/key.pem -passin env:SROS_PASSPHRASE
}

# Prints when a certificate begins (startdate) or ends (enddate), in the form of DDS, in UTC.
when() {
    openssl x509 -in "$1" -noout "-$2" -dateopt iso_8601 | cut -d= -f2 | tr -d Z | tr ' ' T
}

for node in "$@"; do
    grant=permissions.xml
    if [ -e "permissions-$node.xml" ]; then
        grant=permissions-$node.xml
    fi
    if ! grep -q '>ENDS<' "$grant"; then
        echo "enclaves.sh: error: $grant: its not_after must be ENDS, the certificate's end" >&2
        exit 1
    fi
    begins=$(when "keys/$node/cert.pem" startdate)
    ends=$(when "keys/$node/cert.pem" enddate)

    # The enclave is filled under another name, so that an error leaves the old one as it was.
    new=enclaves/.$node
    rm -rf "$new"
    mkdir -p "$new"
    cp "keys/$node/cert.pem" "keys/$node/key.pem" "keys/$node/crl.pem" "$new"
    cp "keys/$node/ca.pem" "$new/identity_ca.cert.pem"
    cp keys/permissions/cert.pem "$new/permissions_ca.cert.pem"
    sign <governance.xml >"$new/governance.p7s"
    sed "s/NODE/$node/; s/BEGINS/$begins/; s/ENDS/$ends/" "$grant" | sign >"$new/permissions.p7s"
    rm -rf "enclaves/$node"
    mv "$new" "enclaves/$node"
done
