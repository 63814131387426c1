# Copyright The coco Authors.
# SPDX-License-Identifier: Apache-2.0
"""A broker that was written from the protocol's description, with libraries that are not ours.

Arguments: files with its certificate and key. Its address goes to stdout. It accepts all evidence that holds the digest.
"""
import base64
import hashlib
import http.server
import json
import os
import ssl
import sys

import rfc8785
from jwcrypto import jwe, jwk

nonce = base64.b64encode(os.urandom(32)).decode()
guest = None


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body, status=200):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Set-Cookie", "kbs-session-id=0123456789abcdef; Path=/kbs")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self):
        global guest
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/kbs/v0/auth":
            assert body["version"] == "0.4.0", body
            return self.answer({"nonce": nonce, "extra-params": ""})
        assert self.headers["Cookie"] == "kbs-session-id=0123456789abcdef"
        runtime = body["runtime-data"]
        bound = {"additional-evidence": body["tee-evidence"]["additional_evidence"]}
        bound.update(runtime)
        digest = hashlib.sha384(rfc8785.dumps(bound)).hexdigest()
        if runtime["nonce"] != nonce or body["tee-evidence"]["primary_evidence"]["report_data"] != digest:
            return self.answer({"type": "https://github.com/confidential-containers/kbs/errors/AttestationError",
                                "detail": "REPORT_DATA is different from that in the evidence"}, 401)
        guest = jwk.JWK(**runtime["tee-pubkey"])
        self.answer({"token": "e30.e30.AA"})

    def do_GET(self):
        assert self.headers["Authorization"] == "Bearer e30.e30.AA"
        header = {"alg": guest.get("alg"), "enc": "A256GCM"}
        sealed = jwe.JWE(b"a secret", json.dumps(header))
        sealed.add_recipient(guest)
        # The compact form has all of the header protected, as the protocol wants it.
        names = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
        self.answer(dict(zip(names, sealed.serialize(compact=True).split("."))))

    def log_message(self, *args):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
