// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/tpm2"
	"github.com/coco-shim/coco/policy/engine"
)

// On platform vtpm nothing binds the launch to initdata. The guest measures what it was given: before it reads the
// policy, it extends PCR 8 with the digest, and whoever verifies a quote of the TPM decides whether it is the right
// one. Firmware and kernel leave PCR 8 alone, so its value says that this was done once, and with which initdata.
//
// The host runs the TPM. It can show a guest that did this to whoever trusts it, and can do as it likes to the guest.

// initdataPCR is the PCR that CoCo uses for initdata where there is a TPM.
const initdataPCR = 8

// HasTPM reports whether the kernel has found a TPM. sys is sysfs.
func HasTPM(sys string) bool {
	_, err := os.Lstat(filepath.Join(sys, "class/tpm/tpm0"))
	return err == nil
}

// TEE is the type, by CoCo's names, of the evidence that this guest makes: "snp", "tdx" or "tpm"; "sample" where
// nothing can be proved. confidential says that it runs in a TEE, sys is sysfs.
func TEE(confidential bool, sys string) string {
	_, err := os.Lstat(filepath.Join(sys, "bus/platform/devices/sev-guest"))
	switch {
	case confidential && err == nil:
		return "snp"
	case confidential:
		return "tdx"
	case HasTPM(sys):
		return "tpm"
	}
	return "sample"
}

// extendPCR extends a PCR of the guest's TPM.
func extendPCR(pcr int, digest [tpm2.DigestSize]byte) error {
	t, device, err := tpm2.Open("/dev/tpm0")
	if err != nil {
		return err
	}
	defer device.Close() // each command is complete
	return t.Extend(pcr, digest)
}

// measure is the binding on platform vtpm. PCR 8 is extended once, whatever is found: with zeros where there is no
// initdata that could be read, so that nobody can do it later.
func (c Config) measure(ctx context.Context) (*engine.Engine, error) {
	into, done := c.extend, false
	if into == nil {
		into = extendPCR
	}
	extend := func(digest [tpm2.DigestSize]byte) error {
		if done {
			return nil
		}
		done = true
		if err := into(initdataPCR, digest); err != nil {
			return &Error{Unverified, fmt.Errorf("measure the initdata: %w", err)}
		}
		return nil
	}
	e, err := c.judgeDisk(ctx, func(d *initdata.Document) error {
		digest := d.Digest()
		if len(digest) != tpm2.DigestSize {
			return fail(Format, "algorithm %q: platform vtpm takes sha256, the length of a PCR", d.Algorithm)
		}
		return extend([tpm2.DigestSize]byte(digest))
	}, true)
	if xerr := extend([tpm2.DigestSize]byte{}); xerr != nil {
		return nil, xerr
	}
	if e == nil && err == nil {
		e = engine.New(nil) // initdata without a policy
	}
	return e, err
}
