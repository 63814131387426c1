// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package wire is how the agent and coco-trust talk over the socket pair between them, which nobody else can reach. A
// message is four bytes with its length, the most significant first, and JSON. The agent sends a Setup first, which
// coco-trust answers with a Hello. Then the agent sends one Request after the other; coco-trust sends an Answer to
// each, in the same order.
package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// maxMessage bounds a message: a secret of 2 MiB is 2.7 MiB in base64, initdata is at most 1 MiB.
const maxMessage = 4 << 20

// Descriptors of coco-trust.
const (
	Socket = 3 // the connection with the agent
	TPM    = 4 // the guest's TPM, with TEE "tpm" only
	API    = 5 // the way on which the agent passes connections to the workload API, and coco-trust asks for renewals
)

// Setup says for which pod coco-trust works.
type Setup struct {
	Initdata string `json:"initdata"` // the document, whose digest the launch is bound to
	TEE      string `json:"tee"`      // type of this guest's evidence: snp, tdx, tpm or, without any of them, sample
	// Workload has coco-trust serve the workload API. The policy in Initdata says to whom.
	Workload bool `json:"workload,omitempty"`
	// Pull is the one thing that this coco-trust has to do, if it is there. It talks with no broker: what it needs of one
	// it asks the agent for.
	Pull *Pull `json:"pull,omitempty"`
}

// Hello is the first message of a coco-trust that does not pull.
type Hello struct {
	// Insecure has a sentence for each switch of the initdata with which something unproven is accepted. They belong in
	// the log: coco-trust has none.
	Insecure []string `json:"insecure,omitempty"`
}

// Pull asks for the layers of an image.
type Pull struct {
	Source string `json:"source"` // as the policy has it: repository@digest
	Dir    string `json:"dir"`    // empty directory in which the layers' files are made
}

// PullAnswer is what coco-trust says while it pulls. Exactly one member is set; Layers and Error are the last message.
type PullAnswer struct {
	Progress string   `json:"progress,omitempty"` // how far it is
	Need     string   `json:"need,omitempty"`     // a resource of the key broker, which the agent sends in an Answer
	Layers   []Layer  `json:"layers,omitempty"`   // the topmost first
	Error    *Failure `json:"error,omitempty"`
}

// Layer is a layer that was made: an EROFS image with its dm-verity tree, under the salt that all layers have.
type Layer struct {
	File       string `json:"file"`     // name in the directory
	RootHash   string `json:"rootHash"` // in hexadecimal digits
	DataBlocks uint64 `json:"dataBlocks"`
	HashOffset uint64 `json:"hashOffset"`
}

// Request asks for a secret.
type Request struct {
	Resource string `json:"resource"` // kbs:///repository/type/tag
	// Sealed is a sealed text that is to be opened; "": the secret is the resource. Resource is then the one that the text
	// may name.
	Sealed string `json:"sealed,omitempty"`
	// Container is the id of the container that gets the secret. Keys of signers are got once for each.
	Container string `json:"container,omitempty"`
}

// Answer has the secret, which is never empty, or says why there is none.
type Answer struct {
	Secret []byte   `json:"secret,omitempty"`
	Error  *Failure `json:"error,omitempty"`
}

// Renewed answers a request to renew the files of a container. coco-trust sends it on the way API: the container's name
// in the policy, with the end of a pipe for this message.
type Renewed struct {
	Changed int    `json:"changed"`         // how many files have another content now
	Error   string `json:"error,omitempty"` // of the others, with the codes of their failures
}

// Failure is why a secret was not got.
type Failure struct {
	Code string `json:"code"` // a Reason of attestation/kbs/client, a Code of attestation/sealed, or Config
	Text string `json:"text"` // one sentence
}

// Codes of failures of coco-trust's own.
const (
	Config = "config" // lies in the pod's initdata
	Image  = "image"  // an image cannot be pulled, or is not the one that the policy names
)

// Error returns the sentence with the code.
func (f *Failure) Error() string { return fmt.Sprintf("[%s] %s", f.Code, f.Text) }

// Write sends a message.
func Write(w io.Writer, message any) error {
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	defer clear(body)
	if len(body) > maxMessage {
		return fmt.Errorf("a message of %d bytes: at most %d are sent", len(body), maxMessage)
	}
	out := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))) //nolint:gosec // bounded
	out = append(out, body...)
	defer clear(out)
	_, err = w.Write(out)
	return err
}

// Read receives a message. It returns io.EOF when the other side has closed the connection before it.
func Read(r io.Reader, message any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return fmt.Errorf("a message of %d bytes: at most %d are read", n, maxMessage)
	}
	body := make([]byte, n)
	defer clear(body)
	if _, err := io.ReadFull(r, body); err != nil {
		return fmt.Errorf("a message is cut short: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	return dec.Decode(message)
}
