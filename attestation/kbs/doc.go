// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kbs has the messages of the protocol by which a guest proves what it is and receives secrets: the one of
// CoCo's key broker service (KBS), called RCAR after its four messages.
//
//	guest → broker  Request      protocol version and type of the TEE
//	broker → guest  Challenge    a nonce, and a cookie that names the session
//	guest → broker  Attestation  nonce, the guest's public key, evidence
//	broker → guest  Token        a signed statement on the evidence
//
// The guest's key is made for the session. REPORTDATA of the evidence is a digest over nonce and key (Digest), so that
// the evidence speaks for the holder of the key. Resources are encrypted to the key as JWE (PublicKey.Seal, Key.Open).
//
// The package decodes strictly: a member that stands twice is refused everywhere, an unknown member wherever it would
// be signed or encrypted to. It opens no connection and knows no verifier. Package kbs/client speaks the protocol for a
// guest, package broker for the other side.
//
// Sources: protocol document of confidential-containers/trustee and its crate kbs-types 0.4.0, RFC 8785 (canonical
// JSON), RFC 7516 to 7518 (JWE, JWK, algorithms), RFC 3394 (key wrap).
package kbs
