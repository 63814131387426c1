# Copyright The coco Authors.
# SPDX-License-Identifier: Apache-2.0
"""Uses the fakes through Microsoft's own clients, and checks what they answer with other libraries.

Reads one JSON object from stdin: URLs, CA file, policies, attestation token, private wrapping key. Prints one with what
was found; the test compares. Nothing of the clients is replaced: they get their CA, a credential, and leave to take the
fake's host for the vault's resource.
"""

import base64
import json
import ssl
import sys
import urllib.parse
import urllib.request

import jwt
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.keyvault.keys import JsonWebKey, KeyClient, KeyReleasePolicy
from azure.security.attestation import AttestationClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from jwcrypto import jwk, jws

HASHES = {
    "CKM_RSA_AES_KEY_WRAP": hashes.SHA1(), "RSA_AES_KEY_WRAP_256": hashes.SHA256(), "RSA_AES_KEY_WRAP_384": hashes.SHA384(),
}


def b64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Entra:
    """A credential: asks the fake's Entra as workload identity does."""

    def __init__(self, given):
        self.url = given["entra"] + "/tenant/oauth2/v2.0/token"
        self.context = ssl.create_default_context(cafile=given["ca"])

    def get_token(self, *scopes, **_):
        form = urllib.parse.urlencode({
            "grant_type": "client_credentials", "client_id": "me", "scope": scopes[0],
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion": "x",
        }).encode()
        with urllib.request.urlopen(self.url, form, context=self.context) as answer:
            doc = json.load(answer)
        return AccessToken(doc["access_token"], 1 << 40)


def unwrapped(value, private):
    """Verifies a JWS of a vault by its certificate, and unwraps its key."""
    head = jwt.get_unverified_header(value)
    leaf = x509.load_der_x509_certificate(base64.b64decode(head["x5c"][0]))
    doc = jwt.decode(value, leaf.public_key(), algorithms=["RS256"])
    inner = json.loads(b64(doc["response"]["key"]["key"]["key_hsm"]))
    blob, digest = b64(inner["ciphertext"]), HASHES[inner["header"]["enc"]]
    size = private.key_size // 8
    kek = private.decrypt(blob[:size], padding.OAEP(padding.MGF1(digest), digest, None))
    return keywrap.aes_key_unwrap_with_padding(kek, blob[size:]).hex()


def vault(url, given, credential, private):
    client = KeyClient(url, credential, verify_challenge_resource=False, connection_verify=given["ca"], retry_total=2)
    key = JsonWebKey(kty="oct-HSM", k=b"0123456789abcdef0123456789abcdef", key_ops=["encrypt", "decrypt"])
    policy = KeyReleasePolicy(json.dumps(given["policy"]).encode())
    made = client.import_key("from-python", key, hardware_protected=True, exportable=True, release_policy=policy)
    out = {"id": made.id, "got": client.get_key("from-python").id, "released": {}}
    for name in HASHES:
        value = client.release_key("from-python", given["token"], algorithm=name, nonce="a nonce").value
        out["released"][name] = unwrapped(value, private)
    other = KeyReleasePolicy(json.dumps(given["other_policy"]).encode())
    client.update_key_properties("from-python", release_policy=other)
    try:
        client.release_key("from-python", given["token"])
    except HttpResponseError as e:
        out["refused"] = "%d %s" % (e.status_code, e.error.code)
    return out


def main():
    given = json.load(sys.stdin)
    private = serialization.load_pem_private_key(given["key"].encode(), None)
    credential = Entra(given)
    out = {name: vault(given[name], given, credential, private) for name in ("vault", "hsm")}
    attestation = AttestationClient(given["maa"], credential, connection_verify=given["ca"])
    out["issuer"] = attestation.get_open_id_metadata()["issuer"]
    signer = attestation.get_signing_certificates()[0]
    cert = x509.load_pem_x509_certificate(signer.certificates[0].encode())
    public = cert.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    token = jws.JWS()
    token.deserialize(given["token"], jwk.JWK.from_pem(public), alg="RS256")
    out["signer"], out["claims"] = signer.key_id, json.loads(token.payload)
    out["wrapped"] = {}
    for name, digest in HASHES.items():
        kek = bytes(range(32))
        head = private.public_key().encrypt(kek, padding.OAEP(padding.MGF1(digest), digest, None))
        out["wrapped"][name] = (head + keywrap.aes_key_wrap_with_padding(kek, b"from cryptography")).hex()
    json.dump(out, sys.stdout)


main()
