// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/snp"
	"github.com/coco-shim/coco/measurement/snp/idauth"
	"github.com/coco-shim/coco/measurement/snp/idblock"
)

// snpResult is the digest of one VM with what it was computed from.
type snpResult struct {
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

func (r *snpResult) lines() []string {
	out := []string{r.Measurement.String()}
	if r.ID != nil {
		out = append(out, "id-block="+r.ID.Block, "id-auth="+r.ID.Auth)
	}
	return out
}

func (r *snpResult) references() map[string]string {
	return map[string]string{"snp_launch_measurement": r.Measurement.String()}
}

func (r *snpResult) trace() *measurement.Trace { return r.Trace }

func (o *snpOptions) measure(d snp.Description, counts []int) ([]result, error) {
	digest, err := digester(d, o.explain, len(counts) > 1)
	if err != nil {
		return nil, err
	}
	out := make([]result, 0, len(counts))
	for _, n := range counts {
		r := &snpResult{Platform: "snp", Mode: o.mode, VMM: o.vmm, CPUModel: o.model}
		if o.mode != "sev" {
			r.VCPUs, r.CPUSignature = n, fmt.Sprintf("%#x", d.Signature)
		}
		if o.mode == "snp" {
			r.Features = fmt.Sprintf("%#x", d.Features)
		}
		if k := d.Kernel; k != nil {
			r.KernelHash, r.InitrdHash, r.CmdlineHash = hex.EncodeToString(k.Kernel[:]), hex.EncodeToString(k.Initrd[:]), hex.EncodeToString(k.Cmdline[:])
		}
		if o.explain {
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

// digester returns a function for the digests of many processor counts. Without a trace, all but
// the processors is measured once.
func digester(d snp.Description, explain, many bool) (func(int, *measurement.Trace) (measurement.Digest, error), error) {
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
