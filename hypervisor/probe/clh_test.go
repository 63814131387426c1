// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPlatformsOfCloudHypervisor(t *testing.T) {
	release := CLH{Version: "v53.0", Major: 53, Min: 51, MinSNP: 52}
	own := release
	own.Features = []string{"fw_cfg", "igvm", "sev_snp"}
	old := CLH{Version: "v51.1", Major: 51, Min: 51, MinSNP: 52, Features: own.Features}
	ancient := CLH{Version: "v28.0", Major: 28, Min: 51, MinSNP: 52}
	tdx := []string{"tdx.clh"}
	for _, tt := range []struct {
		name string
		m    machine
		clh  *CLH
		want []Platform
	}{
		{"an SNP host, a build with SNP", milan, &own, []Platform{
			{"none", true, "KVM", nil},
			{"snp", true, "KVM", nil},
			{"tdx", false, "", tdx},
		}},
		{
			"an SNP host, a release", milan, &release,
			[]Platform{{"none", true, "KVM", nil}, {"snp", false, "", []string{"snp.clh"}}, {"tdx", false, "", tdx}},
		},
		{
			"an SNP host, the version before", milan, &old,
			[]Platform{{"none", true, "KVM", nil}, {"snp", false, "", []string{"snp.clh"}}, {"tdx", false, "", tdx}},
		},
		{"an SNP host, an ancient version", milan, &ancient, []Platform{
			{"none", false, "KVM", []string{"clh"}},
			{"snp", false, "", []string{"snp.clh", "clh"}},
			{"tdx", false, "", []string{"tdx.clh", "clh"}},
		}},
		{"a TDX host", emerald, &own, []Platform{
			{"none", true, "KVM", nil},
			{"snp", false, "", []string{"snp.cpu", "snp.kvm", "snp.firmware"}},
			{"tdx", false, "", tdx},
		}},
		{"nothing at all", bare, nil, []Platform{
			{"none", false, "", []string{"clh", "kvm", "tun"}},
			{"snp", false, "", []string{"kvm", "snp.cpu", "snp.kvm", "snp.firmware", "snp.clh", "clh", "tun"}},
			{"tdx", false, "", []string{"kvm", "tdx.clh", "clh", "tun"}},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := tt.m.host(t)
			h.CLH = func(context.Context, string) (CLH, error) {
				if tt.clh == nil {
					return CLH{}, errors.New("no such file")
				}
				return *tt.clh, nil
			}
			r := Run(t.Context(), h, Options{QEMUPath: "/q", CLHPath: "/c", Driver: "clh"})
			if d := cmp.Diff(tt.want, r.Platforms); d != "" {
				t.Errorf("platforms (-want +got):\n%s", d)
			}
			for _, f := range r.Findings {
				if strings.Contains(f.Detail, "TCG") {
					t.Errorf("%s: %q speaks of what Cloud Hypervisor has not", f.Name, f.Detail)
				}
				if f.Status == No && f.Fix == "" {
					t.Errorf("%s: %q says no and not what to do", f.Name, f.Detail)
				}
				if f.Status == No && (f.Name == "qemu" || f.Name == "snp.qemu" || f.Name == "tdx.qemu") {
					t.Errorf("%s: %q is in the way of Cloud Hypervisor", f.Name, f.Detail)
				}
			}
		})
	}
}

func TestCloudHypervisorIsOnlyMentionedOtherwise(t *testing.T) {
	h := milan.host(t)
	want := "Cloud Hypervisor: none is installed; not configured, not needed"
	for range 2 {
		r := Run(t.Context(), h, Options{QEMUPath: "/q", CLHPath: "/c"})
		for _, f := range r.Findings {
			if f.Name == "clh" && (f.Detail != want || f.Status != Note) {
				t.Errorf("clh = %+v, want the note %q", f, want)
			}
		}
		if !r.Platforms[0].Usable || !r.Platforms[1].Usable {
			t.Errorf("platforms = %v", r.Platforms)
		}
		h.CLH = func(context.Context, string) (CLH, error) { return CLH{Version: "v53.0", Major: 53}, nil }
		want = "/c, version v53.0; not configured"
	}
}
