// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp_test

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	oracle "github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/testdata"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/snp"
)

// Google's verifier (go-sev-guest 0.15.0) judges the same reports as ours, also with changed bits. It refuses genuine
// certificates of Turin, so it is asked about Milan only.
func TestGooglesVerifierAgrees(t *testing.T) {
	reports := append(slices.Clone(published), real{name: "google's module"})
	rng := rand.New(rand.NewPCG(1, 2))
	for _, r := range reports {
		var ev attestation.Evidence
		col := attestation.Collateral{Now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
		if r.report == "" {
			ev = attestation.Evidence{Type: attestation.SNP, Report: testdata.AttestationBytes}
			col.Documents = []attestation.Document{{Kind: snp.KindVCEK, Data: testdata.VcekBytes}}
		} else {
			ev, col = r.load(t)
		}
		want := undecided()
		want.AllowDebug = true
		clean := ev.Report
		for i := range 50 {
			ev.Report = slices.Clone(clean)
			if i > 0 {
				bit := rng.IntN((0x2A0 + 144) * 8)
				ev.Report[bit/8] ^= 1 << (bit % 8)
			}
			_, err := snp.AMD().Verify(ev, col, want)
			theirs := google(ev.Report, col)
			if (err == nil) != (theirs == nil) {
				t.Errorf("%s, change %d: ours %v, theirs %v", r.name, i, err, theirs)
			}
			if i == 0 && err != nil {
				t.Errorf("%s: %v", r.name, err)
			}
		}
	}
}

// google asks Google's verifier, with the roots that it has built in.
func google(report []byte, col attestation.Collateral) error {
	pb, err := abi.ReportToProto(report)
	if err != nil {
		return err
	}
	return oracle.SnpAttestation(&spb.Attestation{
		Report:           pb,
		CertificateChain: &spb.CertificateChain{VcekCert: col.Documents[0].Data},
		Product:          &spb.SevProduct{Name: spb.SevProduct_SEV_PRODUCT_MILAN},
	}, &oracle.Options{DisableCertFetching: true, Now: col.Now})
}

// Both decoders read the same values out of the same report.
func TestGooglesDecoderAgrees(t *testing.T) {
	r, err := snp.Parse(testdata.AttestationBytes)
	if err != nil {
		t.Fatal(err)
	}
	pb, err := abi.ReportToProto(testdata.AttestationBytes)
	if err != nil {
		t.Fatal(err)
	}
	tcb := func(b [8]byte) uint64 { return binary.LittleEndian.Uint64(b[:]) }
	for name, pair := range map[string][2]any{
		"version":     {r.Version, pb.GetVersion()},
		"guest_svn":   {r.GuestSVN, pb.GetGuestSvn()},
		"policy":      {uint64(r.Policy), pb.GetPolicy()},
		"vmpl":        {r.VMPL, pb.GetVmpl()},
		"platform":    {uint64(r.PlatformInfo), pb.GetPlatformInfo()},
		"key_info":    {uint32(r.KeyInfo), pb.GetSignerInfo()},
		"current":     {tcb(r.TCB.Current), pb.GetCurrentTcb()},
		"reported":    {tcb(r.TCB.Reported), pb.GetReportedTcb()},
		"committed":   {tcb(r.TCB.Committed), pb.GetCommittedTcb()},
		"launch":      {tcb(r.TCB.Launch), pb.GetLaunchTcb()},
		"measurement": {string(r.Launch.Measurement[:]), string(pb.GetMeasurement())},
		"host_data":   {string(r.Launch.HostData[:]), string(pb.GetHostData())},
		"report_data": {string(r.ReportData[:]), string(pb.GetReportData())},
		"chip_id":     {string(r.ChipID[:]), string(pb.GetChipId())},
		"id_key":      {string(r.Launch.IDKeyDigest[:]), string(pb.GetIdKeyDigest())},
		"author_key":  {string(r.Launch.AuthorKeyDigest[:]), string(pb.GetAuthorKeyDigest())},
		"build":       {uint32(r.Firmware.Current.Build), pb.GetCurrentBuild()},
		"committed_minor": {
			uint32(r.Firmware.Committed.Minor), pb.GetCommittedMinor(),
		},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %v, theirs %v", name, pair[0], pair[1])
		}
	}
}
