#!/usr/bin/env bash
# Creates or replaces the keystore, with the enclaves of the nodes that are named as arguments.
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

# Prints the commonName of a certificate: the name of the enclave, such as /talker or /arm/left.
enclave_of() {
    openssl x509 -in "$1" -noout -subject -nameopt multiline | sed -n 's/^ *commonName *= //p'
}

fail() {
    echo "keystore.sh: error: $1" >&2
    exit 1
}

# The keystore is filled under another name, so that an error leaves the old one as it was.
new=.keystore
rm -rf "$new"
mkdir -p "$new/public" "$new/private" "$new/enclaves"
cp keys/dds/cert.pem "$new/public/identity_ca.cert.pem"
cp keys/permissions/cert.pem "$new/public/permissions_ca.cert.pem"
sign <governance.xml >"$new/enclaves/governance.p7s"

for node in "$@"; do
    grant=permissions.xml
    if [ -e "permissions-$node.xml" ]; then
        grant=permissions-$node.xml
    fi
    if ! grep -q '>ENDS<' "$grant"; then
        fail "$grant: its not_after must be ENDS, the certificate's end"
    fi
    name=$(enclave_of "keys/$node/cert.pem")
    if ! [[ $name =~ ^(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+$ ]]; then
        fail "keys/$node/cert.pem: its commonName must be an enclave's, such as /$node"
    fi
    begins=$(when "keys/$node/cert.pem" startdate)
    ends=$(when "keys/$node/cert.pem" enddate)

    enclave=$new/enclaves$name
    mkdir -p "$enclave"
    cp "keys/$node/cert.pem" "keys/$node/key.pem" "keys/$node/crl.pem" "$enclave"
    ln -s --relative "$new"/public/*.pem "$new/enclaves/governance.p7s" "$enclave"
    sed "s|NODE|${name#/}|; s|BEGINS|$begins|; s|ENDS|$ends|" "$grant" |
        sign >"$enclave/permissions.p7s"
done

rm -rf keystore
mv "$new" keystore
