// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// driverCLH is Cloud Hypervisor's driver in the configuration.
const driverCLH = "clh"

// CLH describes a Cloud Hypervisor binary by its own output.
type CLH struct {
	Version     string
	Major       int
	Min, MinSNP int      // least versions that the driver takes
	Features    []string // of its build
}

// clh looks at Cloud Hypervisor. Of the two VMMs only the configured one is needed.
func (p *prober) clh(ctx context.Context, o Options) *CLH {
	if o.Driver != driverCLH {
		p.need("qemu")
		if c, err := p.askCLH(ctx, o.CLHPath); err == nil {
			p.add("clh", Note, fmt.Sprintf("%s, version %s; not configured", o.CLHPath, c.Version), "")
		} else {
			p.add("clh", Note, fmt.Sprintf("Cloud Hypervisor: %v; not configured, not needed", err), "")
		}
		return nil
	}
	p.need("clh")
	p.need("kvm") // it emulates nothing
	p.demote("qemu")
	fix := "install a release of Cloud Hypervisor, or set hypervisor.path in the configuration"
	c, err := p.askCLH(ctx, o.CLHPath)
	switch {
	case err != nil:
		p.add("clh", No, fmt.Sprintf("%s: %v", o.CLHPath, err), fix)
		return nil
	case c.Major < c.Min:
		p.add("clh", No, fmt.Sprintf("%s, version %s", o.CLHPath, c.Version),
			fmt.Sprintf("install Cloud Hypervisor %d or later", c.Min))
		return nil
	}
	p.yes("clh", "%s, version %s", o.CLHPath, c.Version)
	return &c
}

func (p *prober) askCLH(ctx context.Context, path string) (CLH, error) {
	if path == "" || p.host.CLH == nil {
		return CLH{}, fmt.Errorf("none is installed")
	}
	return p.host.CLH(ctx, path)
}

// demote makes notes of findings that are not in the way.
func (p *prober) demote(names ...string) {
	for i := range p.report.Findings {
		f := &p.report.Findings[i]
		if slices.Contains(names, f.Name) && f.Status == No {
			f.Status, f.Fix = Note, ""
			f.Detail += "; not configured, not needed"
		}
	}
}

// clhPlatforms replaces what the TEEs need of QEMU by what they need of Cloud Hypervisor.
func (p *prober) clhPlatforms(c *CLH, snp []string) (_, tdx []string) {
	p.demote("snp.qemu", "tdx.qemu")
	snp = append(slices.DeleteFunc(snp, func(n string) bool { return n == "snp.qemu" }), "snp.clh")
	build := "build Cloud Hypervisor with cargo build --release --no-default-features --features kvm,igvm,sev_snp,fw_cfg"
	switch missing := missingFeatures(c); {
	case c == nil:
		p.add("snp.clh", No, "no usable Cloud Hypervisor", build)
	case c.Major < c.MinSNP:
		p.add("snp.clh", No, fmt.Sprintf("Cloud Hypervisor %s has no SNP on KVM", c.Version),
			fmt.Sprintf("use version %d or later; %s", c.MinSNP, build))
	case len(missing) > 0:
		p.add("snp.clh", No, fmt.Sprintf("Cloud Hypervisor %s was built without %s, as releases are", c.Version,
			strings.Join(missing, ", ")), build)
	default:
		p.yes("snp.clh", "Cloud Hypervisor was built with SNP, IGVM and fw_cfg")
	}
	p.add("tdx.clh", No, "Cloud Hypervisor has TDX for a KVM interface that Linux never got",
		"use QEMU: hypervisor.type = \"qemu\"")
	return snp, []string{"tdx.clh"}
}

func missingFeatures(c *CLH) (out []string) {
	if c == nil {
		return nil
	}
	for _, f := range []string{"igvm", "sev_snp", "fw_cfg"} {
		if !slices.Contains(c.Features, f) {
			out = append(out, f)
		}
	}
	return out
}
