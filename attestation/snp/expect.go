// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package snp

import (
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/coco-shim/coco/attestation"
)

// Items of SNP on which the caller must have an opinion.
const (
	ItemTCB        attestation.Item = "tcb"        // lowest patch level
	ItemRevocation attestation.Item = "revocation" // AMD's list of revoked certificates
)

// Expectations are what the caller demands of a report. A field that is empty demands nothing, except for those whose
// comment says otherwise and those of attestation.Expectations.
type Expectations struct {
	attestation.Expectations
	// MinTCB are the lowest patch levels, by product. A product that is not in a map that is not nil is refused. A nil
	// map needs ItemTCB in Undecided.
	MinTCB map[Product]TCB
	// MinFirmware is the lowest committed version of the firmware.
	MinFirmware Version
	// MinGuestSVN is the lowest version that the ID block gives the guest.
	MinGuestSVN uint32
	// VMPLs are the allowed privilege levels. Empty means 0 only.
	VMPLs []uint32
	// AllowDebug and AllowMigration accept policies with these bits.
	AllowDebug, AllowMigration bool
	// RequirePolicy and ForbidPolicy are bits of the guest's policy.
	RequirePolicy, ForbidPolicy Policy
	// RequirePlatform and ForbidPlatform are bits of the platform's state.
	RequirePlatform, ForbidPlatform PlatformInfo
	// Source are the allowed origins of the report.
	Source Source
	// Identity are the allowed values of the ID block.
	Identity Identity
}

// Source says which processors and keys are accepted. An empty list accepts all.
type Source struct {
	Products []Product
	Keys     []SigningKey
	// Chips are allowed chips by CHIP_ID; 8 bytes suffice for Turin. A report that hides its chip is then refused.
	Chips [][]byte
	// Providers are the allowed owners of a VLEK.
	Providers []string
}

// Identity are the allowed values of an ID block. An empty list accepts all, also a guest without an ID block.
type Identity struct {
	FamilyIDs, ImageIDs, IDKeys, AuthorKeys [][]byte
}

// expected compares a verified report with the expectations.
func (e *Expectations) expected(t *attestation.Trail, r *Report, p Product) error {
	for _, step := range []func() error{
		func() error { return e.privilege(t, r) },
		func() error { return e.policy(t, r) },
		func() error { return e.platform(t, r) },
		func() error { return e.identity(t, r) },
		func() error { return e.patched(t, r, p) },
		func() error { return e.chip(t, r, p) },
		func() error { return t.ReportData(r.ReportData[:], e.Expectations) },
		func() error { return t.InitData("host_data", r.Launch.HostData[:], e.Expectations) },
		func() error { return t.Measurement("measurement", r.Launch.Measurement[:], e.Expectations) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	if len(e.Registers) > 0 {
		return fail(attestation.CodeExpectation, "registers", "none, since SNP has no registers", "%d", len(e.Registers))
	}
	return nil
}

func (e *Expectations) privilege(t *attestation.Trail, r *Report) error {
	allowed := e.VMPLs
	if len(allowed) == 0 {
		allowed = []uint32{0}
	}
	return t.Check(slices.Contains(allowed, r.VMPL), attestation.Check{
		Code: attestation.CodePrivilege, Field: "vmpl", Expected: words(allowed), Got: fmt.Sprint(r.VMPL),
	})
}

func (e *Expectations) policy(t *attestation.Trail, r *Report) error {
	for _, b := range []struct {
		code  attestation.Code
		bit   Policy
		allow bool
	}{{attestation.CodeDebug, PolicyDebug, e.AllowDebug}, {attestation.CodeMigration, PolicyMigrateMA, e.AllowMigration}} {
		expected := "0"
		if b.allow {
			expected = "0 or 1"
		}
		set := r.Policy&b.bit != 0
		err := t.Check(!set || b.allow, attestation.Check{
			Code: b.code, Field: "policy." + names(policyNames, uint64(b.bit))[0], Expected: expected, Got: digit(set),
		})
		if err != nil {
			return err
		}
	}
	return bits(t, attestation.CodeGuestPolicy, "policy.", policyNames, uint64(r.Policy), uint64(e.RequirePolicy),
		uint64(e.ForbidPolicy))
}

func (e *Expectations) platform(t *attestation.Trail, r *Report) error {
	return bits(t, attestation.CodePlatform, "platform_info.", platformNames, uint64(r.PlatformInfo),
		uint64(e.RequirePlatform), uint64(e.ForbidPlatform))
}

// bits checks that demanded bits are set and forbidden ones are not. A bit without a name cannot be demanded.
func bits(
	t *attestation.Trail, code attestation.Code, prefix string, known map[int]string, got, must, mustNot uint64,
) error {
	for i := range 64 {
		bit := uint64(1) << i
		if (must|mustNot)&bit == 0 {
			continue
		}
		name, ok := known[i]
		if !ok || must&mustNot&bit != 0 {
			return fail(attestation.CodeExpectation, prefix+"bit", "a known bit, demanded or forbidden", "bit %d", i)
		}
		err := t.Check((got&bit != 0) == (must&bit != 0), attestation.Check{
			Code: code, Field: prefix + name, Expected: digit(must&bit != 0), Got: digit(got&bit != 0),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *Expectations) identity(t *attestation.Trail, r *Report) error {
	id := e.Identity
	if len(id.AuthorKeys) > 0 {
		err := t.Check(r.KeyInfo.AuthorKey(), attestation.Check{
			Code: attestation.CodeIDBlock, Field: "key_info.author_key_en", Expected: "1", Got: digit(r.KeyInfo.AuthorKey()),
		})
		if err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name    string
		allowed [][]byte
		got     []byte
	}{
		{"id_key_digest", id.IDKeys, r.Launch.IDKeyDigest[:]},
		{"author_key_digest", id.AuthorKeys, r.Launch.AuthorKeyDigest[:]},
		{"family_id", id.FamilyIDs, r.Launch.FamilyID[:]},
		{"image_id", id.ImageIDs, r.Launch.ImageID[:]},
	} {
		if len(f.allowed) == 0 {
			continue
		}
		if err := t.OneOf(attestation.CodeIDBlock, f.name, f.allowed, f.got); err != nil {
			return err
		}
	}
	if e.MinGuestSVN == 0 {
		return nil
	}
	return t.Check(r.GuestSVN >= e.MinGuestSVN, attestation.Check{
		Code: attestation.CodeIDBlock, Field: "guest_svn", Expected: fmt.Sprintf("at least %d", e.MinGuestSVN),
		Got: fmt.Sprint(r.GuestSVN),
	})
}

// patched compares the patch levels with the lowest that are accepted. The reported level is the one that the key
// proves. The level at the launch counts too: a later update does not undo what an old firmware let happen.
func (e *Expectations) patched(t *attestation.Trail, r *Report, p Product) error {
	if e.MinFirmware != (Version{}) {
		got := r.Firmware.Committed
		err := t.Check(got.number() >= e.MinFirmware.number(), attestation.Check{
			Code: attestation.CodeOutdated, Field: "committed_version", Expected: "at least " + e.MinFirmware.String(),
			Got: got.String(),
		})
		if err != nil {
			return err
		}
	}
	least, ok := e.MinTCB[p]
	switch {
	case e.MinTCB == nil && e.Leaves(ItemTCB):
		t.Undecided(ItemTCB)
		return nil
	case e.MinTCB == nil:
		return fail(attestation.CodeExpectation, string(ItemTCB), "lowest levels, or the item named as undecided", "neither")
	case !ok:
		return fail(attestation.CodeExpectation, string(ItemTCB), "lowest patch levels of %s", "none", p)
	}
	reported, _ := p.TCB(r.TCB.Reported)
	launched, _ := p.TCB(r.TCB.Launch)
	for _, l := range []struct {
		name string
		tcb  TCB
	}{{"reported_tcb", reported}, {"launch_tcb", launched}} {
		for i, part := range l.tcb.parts() {
			want := least.parts()[i].level
			err := t.Check(part.level >= want, attestation.Check{
				Code: attestation.CodeOutdated, Field: l.name + "." + part.name, Expected: fmt.Sprintf("at least %d", want),
				Got: fmt.Sprint(part.level),
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// chip looks for the chip on the list of allowed ones.
func (e *Expectations) chip(t *attestation.Trail, r *Report, p Product) error {
	if len(e.Source.Chips) == 0 {
		return nil
	}
	if r.masked() {
		return fail(attestation.CodeChip, "chip_id", "one of %d allowed", "hidden by the host", len(e.Source.Chips))
	}
	got := r.ChipID[:p.hwidLen()]
	allowed := make([][]byte, 0, len(e.Source.Chips))
	for _, c := range e.Source.Chips {
		if len(c) != 64 && len(c) != p.hwidLen() {
			return fail(attestation.CodeExpectation, "chip_id", "%d or 64 bytes", "%s", p.hwidLen(), hex.EncodeToString(clip(c)))
		}
		allowed = append(allowed, c[:p.hwidLen()])
	}
	return t.OneOf(attestation.CodeChip, "chip_id", allowed, got)
}

// names returns the names of the bits of a value.
func names(known map[int]string, v uint64) []string {
	var out []string
	for i := range 64 {
		if name, ok := known[i]; ok && v&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

func digit(set bool) string {
	if set {
		return "1"
	}
	return "0"
}

// words joins values as alternatives.
func words[T any](values []T) string {
	var s string
	for i, v := range values {
		if i > 0 {
			s += " or "
		}
		s += fmt.Sprint(v)
	}
	return s
}
