// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp_test

import (
	"os"
	"strings"
	"testing"

	"github.com/coco-shim/coco/internal/worktest"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/ovmf"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/measurement/snp"
)

// svsmLaunch is a launch of made-up images.
func svsmLaunch() snp.SVSMLaunch {
	fw := ovmftest.Build(ovmftest.Layout{Size: 128 << 10, Seed: 3, EIP: 0x80b004, SEV: ovmftest.Sections()})
	svsm := ovmftest.Build(ovmftest.Layout{Size: 76 << 10, Seed: 4, SEV: []ovmf.Section{
		{GPA: 0x1000, Size: 0x3000, Type: ovmf.SecMem},
		{GPA: 0x806000, Size: 0x1000, Type: ovmf.Secrets},
		{GPA: 0x805000, Size: 0x1000, Type: ovmf.CPUID},
		{GPA: 0x900000, Size: 0x2000, Type: ovmf.KernelHashes},
	}, Extra: []ovmftest.Entry{{GUID: ovmftest.SVSMInfo, Data: []byte{0x34, 0x12, 0, 0}}}})
	return snp.SVSMLaunch{Firmware: fw, SVSM: svsm, VarsSize: 528 << 10, VCPUs: 2, Signature: 0x800f12, Features: 1}
}

// Expectations are what sev-snp-measure 0.0.13 prints with --mode snp:svsm. Its two published digests, which the makers
// of Coconut compared with a launch (its tests/fixtures), came out alike when this was written.
func TestSVSMDigestMatchesReference(t *testing.T) {
	if dir := os.Getenv("COCO_SVSM_DUMP"); dir != "" { // for making the expectations
		l := svsmLaunch()
		if os.WriteFile(dir+"/fw.fd", l.Firmware, 0o600) != nil || os.WriteFile(dir+"/svsm.bin", l.SVSM, 0o600) != nil {
			t.Fatal("not written")
		}
	}
	for vcpus, want := range map[int]string{
		1:   "5f5c83b2aac98544f5797c819f2c4aa30137834b96b60735ba93c120916880de5e7e46ef19fcc6df0946d33cb0ed78da",
		2:   "34a64d5f1fa15713c3b9ec7b1b71b8637aa10e4f3092988ec71bc29c14862acd0fae295e57b8c4bdd5273afebf645440",
		255: "ff8082e45e8c04a97cc8629d77ca3976403afd97374a2fbdc174a1fd81b7077bb3e458280e1d797a47c677e4b010ff8f",
	} {
		l := svsmLaunch()
		l.VCPUs = vcpus
		got, err := snp.MeasureSVSM(l, nil)
		if err != nil || got.String() != want {
			t.Errorf("%d vCPUs: %s, %v, want %s", vcpus, got, err, want)
		}
	}
}

func TestSVSMTraceEndsAtTheDigest(t *testing.T) {
	var trace measurement.Trace
	d, err := snp.MeasureSVSM(svsmLaunch(), &trace)
	if err != nil || len(trace.Steps) == 0 || !trace.Steps[len(trace.Steps)-1].After.Equal(d) {
		t.Errorf("MeasureSVSM = %s, %v, after %d steps", d, err, len(trace.Steps))
	}
}

func TestSVSMRefusals(t *testing.T) {
	for want, change := range map[string]func(*snp.SVSMLaunch){
		"0 vcpus":                     func(l *snp.SVSMLaunch) { l.VCPUs = 0 },
		"SNPActive":                   func(l *snp.SVSMLaunch) { l.Features = 2 },
		"store of variables of 1 by":  func(l *snp.SVSMLaunch) { l.VarsSize = 1 },
		"firmware: image has 0 bytes": func(l *snp.SVSMLaunch) { l.Firmware = nil },
		"SVSM: image has 0 bytes":     func(l *snp.SVSMLaunch) { l.SVSM = nil },
		"SVSM info: not in":           func(l *snp.SVSMLaunch) { l.SVSM = l.Firmware },
		"SVSM: SEV metadata":          func(l *snp.SVSMLaunch) { l.SVSM = make([]byte, 4096) },
		"outside of its image": func(l *snp.SVSMLaunch) {
			l.SVSM = ovmftest.Build(ovmftest.Layout{
				Size: 8 << 10, SEV: ovmftest.Sections(),
				Extra: []ovmftest.Entry{{GUID: ovmftest.SVSMInfo, Data: []byte{0, 0x20, 0, 0}}},
			})
		},
		"overlaps the firmware itself": func(l *snp.SVSMLaunch) {
			l.SVSM = ovmftest.Build(ovmftest.Layout{
				Size: 8 << 10, SEV: []ovmf.Section{{GPA: 0xfff60000, Size: 0x1000, Type: ovmf.SecMem}},
				Extra: []ovmftest.Entry{{GUID: ovmftest.SVSMInfo, Data: make([]byte, 4)}},
			})
		},
	} {
		l := svsmLaunch()
		change(&l)
		if d, err := snp.MeasureSVSM(l, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("MeasureSVSM = %s, %v, want an error with %q", d, err, want)
		}
	}
}

func FuzzMeasureSVSM(f *testing.F) {
	l := svsmLaunch()
	f.Add(l.SVSM[len(l.SVSM)-4096:], uint64(0))
	f.Fuzz(func(t *testing.T, svsm []byte, vars uint64) {
		defer worktest.Bound(t, len(svsm))()
		l := svsmLaunch()
		l.SVSM, l.VarsSize = svsm, vars
		if d, err := snp.MeasureSVSM(l, nil); err == nil && len(d) != 48 {
			t.Errorf("a digest of %d bytes", len(d))
		}
	})
}
