// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/cose"
	"github.com/coco-shim/coco/attestation/hcl"
	"github.com/coco-shim/coco/attestation/snp"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
)

// azureFlags are for endorsed launch digests, and for the reports of Azure's confidential VMs.
type azureFlags struct {
	endorsement, issuer, feed string
	minSVN                    uint64
	allowNoUserData           bool

	flagSet  *pflag.FlagSet
	envelope *hcl.Envelope // of the evidence, if it is a report of such a VM
}

func (a *azureFlags) flags(f *pflag.FlagSet) {
	f.StringVar(&a.endorsement, "endorsement", "", "SNP: signed statement on the launch digest (COSE_Sign1)")
	f.StringVar(&a.issuer, "endorsement-issuer", "", "the only issuer whose statement counts (did:x509)")
	f.StringVar(&a.feed, "endorsement-feed", "", "product that the statement must be about, such as ContainerPlat-AMD-UVM")
	f.Uint64Var(&a.minSVN, "endorsement-min-svn", 0, "lowest version that the statement may give the guest")
	f.BoolVar(&a.allowNoUserData, "allow-no-user-data", false,
		"accept the report of an Azure VM whose guest has written no user data; it is as old as the VM")
	a.flagSet = f
}

// endorsed verifies the endorsement of --endorsement. It returns nil without one.
func (o *options) endorsed() (*cose.Endorsement, error) {
	given := func(name string) bool { return o.flagSet.Changed(name) }
	all := given("endorsement-issuer") && given("endorsement-feed") && given("endorsement-min-svn")
	some := given("endorsement-issuer") || given("endorsement-feed") || given("endorsement-min-svn")
	switch {
	case o.endorsement == "" && some, o.endorsement != "" && !all:
		return nil, errors.New("--endorsement, --endorsement-issuer, --endorsement-feed and --endorsement-min-svn go " +
			"together")
	case o.endorsement == "":
		return nil, nil
	case o.references != "":
		return nil, errors.New("--endorsement and --reference-values both say which launch digest is allowed: give one")
	}
	b, err := cli.ReadFile(o.endorsement, cose.MaxSize)
	if err != nil {
		return nil, fmt.Errorf("--endorsement: %w", err)
	}
	return cose.Verify(b, cose.Expectations{Issuer: o.issuer, Feed: o.feed, MinSVN: &o.minSVN})
}

// judgeSNP verifies a report of SNP, alone or in the envelope of an Azure VM.
func (o *options) judgeSNP(ev attestation.Evidence, col attestation.Collateral) (*attestation.Claims, error) {
	e, err := o.endorsed()
	if err != nil {
		return nil, err
	}
	want, err := o.expectations()
	if err != nil {
		return nil, err
	}
	if e != nil {
		want.Measurements = e.Measurements("snp")
	}
	if o.envelope == nil && o.allowNoUserData {
		return nil, errors.New("--allow-no-user-data is for the report of an Azure VM")
	}
	v := snp.AMD()
	if o.verifier != nil {
		v = *o.verifier
	}
	var c *attestation.Claims
	if o.envelope != nil {
		c, err = hcl.Verify(v, o.envelope, col, want, o.allowNoUserData)
	} else {
		c, err = v.Verify(ev, col, want)
	}
	if err == nil && e != nil {
		c.Checks = append(e.Checks, c.Checks...)
	}
	return c, err
}

// readHCL reads the report of an Azure VM. Other evidence is left alone.
func (a *azureFlags) readHCL(b []byte) (attestation.Evidence, bool, error) {
	if !hcl.Is(b) {
		return attestation.Evidence{}, false, nil
	}
	var err error
	if a.envelope, err = hcl.Parse(b); err != nil {
		return attestation.Evidence{Type: attestation.SNP}, true, err
	}
	return a.envelope.Evidence(), true, nil
}
