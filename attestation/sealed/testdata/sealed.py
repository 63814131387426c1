# Copyright The coco Authors.
# SPDX-License-Identifier: Apache-2.0

"""Another implementation of sealed secrets, from the description of the format, on jwcrypto and cryptography.

sealed.py seal              prints JSON: the signer's public JWK, resources of a broker, sealed texts, and what is in them
sealed.py open < JSON       opens {"jwk", "kid", "resources", "text"}, prints the secret
"""

import base64
import json
import os
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from jwcrypto import jwk, jws


def std(b):
    return base64.b64encode(b).decode()


def seal(key, header, payload):
    token = jws.JWS(json.dumps(payload))
    token.add_signature(key, None, json.dumps(header))
    return "sealed." + token.serialize(compact=True)


def vault(name, **other):
    return {"version": "0.1.0", "type": "vault", "name": name, "provider": "kbs",
            "provider_settings": {}, "annotations": {}} | other


def envelope(kek, secret):
    dek, iv, nonce = os.urandom(32), os.urandom(12), os.urandom(12)
    return {"version": "0.1.0", "type": "envelope", "provider": "kbs", "key_id": "kbs:///default/kek/one",
            "encrypted_key": std(nonce + AESGCM(kek).encrypt(nonce, dek, None)),
            "encrypted_data": std(AESGCM(dek).encrypt(iv, secret, None)),
            "wrap_type": "A256GCM", "iv": std(iv), "provider_settings": {}, "annotations": {}}


def make():
    key = jwk.JWK.generate(kty="EC", crv="P-256")
    kid, kek = "kbs:///default/sealed/signer", os.urandom(32)
    head = {"alg": "ES256", "kid": kid}
    octets = jwk.JWK.generate(kty="oct", size=256)
    p384 = jwk.JWK.generate(kty="EC", crv="P-384")
    v = vault("kbs:///default/db/password")
    print(json.dumps({
        "kid": kid,
        "resources": {
            "default/sealed/signer": key.export_public(),
            "default/db/password": "hunter2",
        },
        "kek": std(kek),
        "vault": seal(key, head, v),
        "envelope": seal(key, head, envelope(kek, b"in an envelope")),
        "refused": {
            "algorithm hs256": seal(octets, {"alg": "HS256", "kid": kid}, v),
            "algorithm es384": seal(p384, {"alg": "ES384", "kid": kid}, v),
            "malformed crit": seal(key, {"alg": "ES256", "kid": kid, "jwk": json.loads(key.export_public())}, v),
            "malformed no kid": seal(key, {"alg": "ES256"}, v),
            "no-signer other kid": seal(key, {"alg": "ES256", "kid": "kbs:///default/sealed/other"}, v),
            "signature other key": seal(jwk.JWK.generate(kty="EC", crv="P-256"), head, v),
            "provider aws": seal(key, head, vault("arn:aws:kms:key", provider="aws")),
            "malformed version": seal(key, head, vault("kbs:///default/db/password", version="0.2.0")),
            "malformed settings": seal(key, head, vault("kbs:///default/db/password", provider_settings={"a": 1})),
            "malformed no uri": seal(key, head, vault("default/db/password")),
            "moved": seal(key, head, vault("kbs:///default/db/root")),
        },
    }))


def read():
    q = json.load(sys.stdin)
    key = jwk.JWK.from_json(q["jwk"])
    token = jws.JWS()
    token.deserialize(q["text"].removeprefix("sealed."))
    token.allowed_algs = ["ES256"]
    token.verify(key)
    assert token.jose_header["kid"] == q["kid"], token.jose_header
    p = json.loads(token.payload)
    assert p["version"] == "0.1.0" and p["provider"] == "kbs", p
    assert p["provider_settings"] == {} and p["annotations"] == {}, p
    if p["type"] == "vault":
        print(q["resources"][p["name"]])
        return
    assert p["type"] == "envelope" and p["wrap_type"] == "A256GCM", p
    wrapped = base64.b64decode(p["encrypted_key"])
    dek = AESGCM(base64.b64decode(q["resources"][p["key_id"]])).decrypt(wrapped[:12], wrapped[12:], None)
    print(AESGCM(dek).decrypt(base64.b64decode(p["iv"]), base64.b64decode(p["encrypted_data"]), None).decode())


if __name__ == "__main__":
    {"seal": make, "open": read}[sys.argv[1]]()
