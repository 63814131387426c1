// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"crypto/sha512"
	"encoding/json"
	"fmt"

	"github.com/coco-shim/coco/policy"
)

// Attester makes the evidence of the guest.
type Attester interface {
	// TEE is the name of the evidence's type in CoCo's protocol, such as "snp".
	TEE() string
	// Evidence returns the JSON of evidence with the data in REPORTDATA. The attester fills or cuts the data to the
	// length of the TEE's field.
	Evidence(ctx context.Context, data []byte) (json.RawMessage, error)
}

// Domain begins what is hashed for the evidence of a workload, and ends its REPORTDATA. It has 16 bytes.
const Domain = "coco-workload-v1"

const (
	reportDataSize = 64 // of SEV-SNP and TDX
	tpmDataSize    = 32 // of a TPM's quote, as CoCo uses it
	maxData        = 1024
)

// ReportData is REPORTDATA of evidence that a container asks for: SHA-384 over Domain, a zero byte, the container's
// name in the policy, a zero byte and the data; then Domain as a tag. The name has no zero byte, so that no two pairs
// of name and data are hashed alike.
//
// A key broker does not take such evidence for that of the guest's own client. There the digest is over JSON, which
// begins with a brace, and 16 zero bytes follow it. A TPM's quote has the first 32 bytes only; the beginning of what
// was hashed tells the two apart there.
func ReportData(container string, data []byte) [reportDataSize]byte {
	h := sha512.New384()
	h.Write([]byte(Domain + "\x00" + container + "\x00"))
	h.Write(data)
	return [reportDataSize]byte(append(h.Sum(nil), Domain...))
}

// evidence makes evidence with the data of a container.
func (a *API) evidence(ctx context.Context, c *policy.Container, data []byte) ([]byte, error) {
	bound := ReportData(c.Name, data)
	in := bound[:]
	if c.Workload.Evidence == policy.EvidenceRaw {
		most := reportDataSize
		if a.cfg.Attester.TEE() == "tpm" {
			most = tpmDataSize
		}
		if len(data) > most {
			return nil, &refusal{400, fmt.Sprintf("raw evidence of %s takes at most %d bytes of runtime_data, not %d",
				a.cfg.Attester.TEE(), most, len(data))}
		}
		in = data
	}
	return a.cfg.Attester.Evidence(ctx, in)
}
