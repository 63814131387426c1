// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/initdata"
)

// document is the initdata of a pod: the annotation's, else that of the configured file. nil: there is none.
func document(in Input) (*initdata.Document, error) {
	if in.Initdata != "" {
		d, err := initdata.FromAnnotation(in.Initdata)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w: %w", contract.KataInitdata, err, errdefs.ErrInvalidArgument)
		}
		return d, nil
	}
	path := in.Config.Hypervisor.Initdata
	if path == "" {
		return nil, nil
	}
	text, err := in.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("hypervisor.initdata: %w", err)
	}
	d, err := initdata.FromText(text)
	if err != nil {
		return nil, fmt.Errorf("hypervisor.initdata, %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	return d, nil
}

// bind puts the digest of the initdata into the field that the platform's report has for it. The plain platform has no
// report, and gets it on the kernel command line.
// Each platform takes the one algorithm whose digest is as long as the field: a digest that is cut or
// padded would have to be judged by other rules.
func bind(v hypervisor.VMSpec, d *initdata.Document) (hypervisor.VMSpec, error) {
	if d == nil {
		return v, nil
	}
	wrong := func(want string) error {
		return fmt.Errorf("initdata with algorithm %q: platform %s takes %s, the length of its field: %w",
			d.Algorithm, v.TEE, want, errdefs.ErrInvalidArgument)
	}
	if v.Boot.TPM != nil { // the guest measures it
		if d.Algorithm != "sha256" {
			return v, fmt.Errorf("initdata with algorithm %q: platform %s takes sha256, the length of a PCR: %w", d.Algorithm,
				configs.PlatformVTPM, errdefs.ErrInvalidArgument)
		}
		return v, nil
	}
	switch v.TEE {
	case hypervisor.TEESNP:
		if d.Algorithm != "sha256" {
			return v, wrong("sha256")
		}
		v.SNP.HostData = [32]byte(d.Digest())
	case hypervisor.TEETDX:
		if d.Algorithm != "sha384" {
			return v, wrong("sha384")
		}
		v.TDX.MRConfigID = [48]byte(d.Digest())
	case hypervisor.TEENone: // no report tells of it, so the command line does, as a rehearsal
		v.Boot.Cmdline = fmt.Sprintf("%s=%s:%x %s", contract.ParamInitdata, d.Algorithm, d.Digest(), v.Boot.Cmdline)
	}
	return v, nil
}
