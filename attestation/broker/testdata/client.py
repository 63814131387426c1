# Copyright The coco Authors.
# SPDX-License-Identifier: Apache-2.0
"""A guest that was written from the protocol's description, with libraries that are not ours.

Arguments: URL of the broker, file with its certificate, kind of the key (P-256, P-521, RSA), path of the resource. The
digest that the evidence must hold goes to stdout; the evidence is read from stdin; then the secret goes to stdout.
"""
import hashlib
import json
import ssl
import sys
import urllib.request

import jwt
import rfc8785
from jwcrypto import jwe, jwk

url, cert, kind, path = sys.argv[1:]
context = ssl.create_default_context(cafile=cert)
cookie = None


def ask(method, route, body=None, headers=None):
    global cookie
    request = urllib.request.Request(url + route, data=body, method=method, headers=headers or {})
    if cookie:
        request.add_header("Cookie", cookie)
    with urllib.request.urlopen(request, context=context) as response:
        if response.headers["Set-Cookie"]:
            cookie = response.headers["Set-Cookie"].split(";")[0]
        return json.load(response)


challenge = ask("POST", "/kbs/v0/auth", json.dumps(
    {"version": "0.4.0", "tee": "snp", "extra-params": {"supported-hash-algorithms": ["sha384"]}}).encode())
if kind == "RSA":
    key = jwk.JWK.generate(kty="RSA", size=2048)
    public = {"alg": "RSA-OAEP-256"}
    public.update({k: v for k, v in key.export_public(as_dict=True).items() if k in ("kty", "n", "e")})
else:
    key = jwk.JWK.generate(kty="EC", crv=kind)
    public = {"alg": "ECDH-ES+A256KW"}
    public.update({k: v for k, v in key.export_public(as_dict=True).items() if k in ("kty", "crv", "x", "y")})
bound = {"additional-evidence": "", "nonce": challenge["nonce"], "tee-pubkey": public}
print(hashlib.sha384(rfc8785.dumps(bound)).hexdigest(), flush=True)
given = json.loads(sys.stdin.readline())
token = ask("POST", "/kbs/v0/attest", json.dumps({
    "init-data": {"format": "toml", "body": given["initdata"]},
    "runtime-data": {"nonce": challenge["nonce"], "tee-pubkey": public},
    "tee-evidence": {"primary_evidence": given["evidence"], "additional_evidence": ""},
}).encode())["token"]

found = ask("GET", "/.well-known/openid-configuration")
keys = jwt.PyJWKSet.from_dict(ask("GET", "/.well-known/jwks.json"))
head = jwt.get_unverified_header(token)
claims = jwt.decode(token, keys[head["kid"]].key, algorithms=found["id_token_signing_alg_values_supported"],
                    issuer=found["issuer"], options={"verify_exp": False, "verify_iat": False, "verify_nbf": False})
assert claims["submods"]["cpu0"]["ear.status"] == "affirming", claims
assert sorted(head["jwk"])[:2] == ["alg", "crv"], head
inside = claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["runtime_data_claims"]
assert inside["tee-pubkey"] == public and inside["nonce"] == challenge["nonce"], inside

cookie = None  # the token alone must suffice
answer = ask("GET", "/kbs/v0/resource/" + path, headers={"Authorization": "Bearer " + token})
sealed = jwe.JWE()
sealed.deserialize(json.dumps(answer), key)
print(sealed.payload.decode())
