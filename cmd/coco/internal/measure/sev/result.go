// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sev

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"

	"github.com/coco-shim/coco/cmd/coco/internal/measure/report"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/snp"
	"github.com/coco-shim/coco/measurement/snp/idauth"
	"github.com/coco-shim/coco/measurement/snp/idblock"
)

// Result is the digest of one VM with what it was computed from.
type Result struct {
	Platform     string             `json:"platform"`
	Mode         string             `json:"mode"`
	VMM          string             `json:"vmm,omitempty"`
	VCPUs        int                `json:"vcpus,omitempty"`
	CPUModel     string             `json:"cpu_model,omitempty"`
	CPUSignature string             `json:"cpu_signature,omitempty"`
	Features     string             `json:"features,omitempty"`
	KernelHash   string             `json:"kernel_sha256,omitempty"`
	InitrdHash   string             `json:"initrd_sha256,omitempty"`
	CmdlineHash  string             `json:"cmdline_sha256,omitempty"`
	Measurement  measurement.Digest `json:"measurement"`
	ID           *idResult          `json:"id_block,omitempty"`
	Trace        *measurement.Trace `json:"trace,omitempty"`
}

// Lines returns the digest, and the ID block if there is one.
func (r *Result) Lines() []string {
	out := []string{r.Measurement.String()}
	if r.ID != nil {
		out = append(out, "id-block="+r.ID.Block, "id-auth="+r.ID.Auth)
	}
	return out
}

// References names the digest as Trustee's default policy does.
func (r *Result) References() map[string]string {
	return map[string]string{"snp_launch_measurement": r.Measurement.String()}
}

// Steps returns the trace.
func (r *Result) Steps() *measurement.Trace { return r.Trace }

// Measure computes a digest for each number of vCPUs.
func (o *Options) Measure(d snp.Description, counts []int) ([]report.Result, error) {
	digest, err := digester(d, o.Explain, len(counts) > 1)
	if err != nil {
		return nil, err
	}
	out := make([]report.Result, 0, len(counts))
	for _, n := range counts {
		r := &Result{Platform: "snp", Mode: o.Mode, VMM: o.VMM, CPUModel: o.Model}
		if o.Mode != "sev" {
			r.VCPUs, r.CPUSignature = n, fmt.Sprintf("%#x", d.Signature)
		}
		if o.Mode == "snp" {
			r.Features = fmt.Sprintf("%#x", d.Features)
		}
		if k := d.Kernel; k != nil {
			r.KernelHash, r.InitrdHash = hex.EncodeToString(k.Kernel[:]), hex.EncodeToString(k.Initrd[:])
			r.CmdlineHash = hex.EncodeToString(k.Cmdline[:])
		}
		if o.Explain {
			r.Trace = &measurement.Trace{}
		}
		if r.Measurement, err = digest(n, r.Trace); err != nil {
			return nil, err
		}
		if r.ID, err = o.id.make(r.Measurement); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// digestOf computes the digest for a number of processors.
type digestOf func(vcpus int, t *measurement.Trace) (measurement.Digest, error)

// digester returns a function for the digests of many processor counts. Without a trace, all but
// the processors is measured once.
func digester(d snp.Description, explain, many bool) (digestOf, error) {
	if explain || !many || d.Mode != snp.SNP {
		return func(n int, t *measurement.Trace) (measurement.Digest, error) {
			d.VCPUs = n
			return snp.Measure(d, t)
		}, nil
	}
	p, err := snp.Prepare(d)
	if err != nil {
		return nil, err
	}
	return func(n int, _ *measurement.Trace) (measurement.Digest, error) { return p.Digest(n) }, nil
}

// idResult is an ID block with its authentication, as QEMU takes them.
type idResult struct {
	Block        string             `json:"id_block"`
	Auth         string             `json:"id_auth"`
	KeyDigest    measurement.Digest `json:"id_key_digest"`
	AuthorDigest measurement.Digest `json:"author_key_digest,omitempty"`
	Policy       string             `json:"policy"`
	Anonymous    bool               `json:"anonymous"`
}

func newIDResult(block idblock.Block, auth []byte, anonymous bool) (*idResult, error) {
	raw := block.Marshal()
	keys, err := idauth.Verify(raw, auth)
	if err != nil {
		return nil, err
	}
	return &idResult{
		Block: base64.StdEncoding.EncodeToString(raw), Auth: base64.StdEncoding.EncodeToString(auth),
		KeyDigest: keys.ID, AuthorDigest: keys.Author, Policy: fmt.Sprintf("%#x", uint64(block.Policy)), Anonymous: anonymous,
	}, nil
}
