#!/usr/bin/env bash
# Creates or replaces the enclaves of the nodes that are named as arguments.
set -euo pipefail
umask 077

# Signs a document with the key of the permissions CA.
sign() {
    openssl smime -sign -text -signer keys/permissions/cert.pem \
        -inkey keys/permissions/key.pem -passin env:SROS_PASSPHRASE
}

# Prints one thing that a node's certificate says, in the form of DDS; times are in UTC.
says() {
    openssl x509 -in "keys/$1/cert.pem" -noout "-$2" -nameopt RFC2253 -dateopt iso_8601 |
        sed "s/^[^=]*=//; s/^\(....-..-..\) \(.*\)Z$/\1T\2/"
}

for node in "$@"; do
    # The enclave is filled under another name, so that an error leaves the old one as it was.
    new=enclaves/.$node
    rm -rf "$new"
    mkdir -p "$new"
    cp "keys/$node/cert.pem" "keys/$node/key.pem" "keys/$node/crl.pem" "$new"
    cat keys/master/cert.pem keys/root/cert.pem >"$new/identity_ca.cert.pem"
    cp keys/permissions/cert.pem "$new/permissions_ca.cert.pem"
    sign <governance.xml >"$new/governance.p7s"

    # The grant is good for as long as the certificate.
    subject=$(says "$node" subject)
    begins=$(says "$node" startdate)
    ends=$(says "$node" enddate)
    sed "s|NODE|$node|; s|SUBJECT|$subject|; s|BEGINS|$begins|; s|ENDS|$ends|" \
        permissions.xml | sign >"$new/permissions.p7s"

    rm -rf "enclaves/$node"
    mv "$new" "enclaves/$node"
done
