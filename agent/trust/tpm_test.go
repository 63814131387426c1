// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/internal/tpm2"
)

// Whatever the disk has, PCR 8 is extended exactly once, and before anything of the disk counts.
func TestInitdataIsMeasuredWhereThereIsATPM(t *testing.T) {
	good := document(t, head+"'policy.coco' = '"+smallest+"'\n")
	bare := document(t, head+"'aa.toml' = ''\n")
	long := document(t, strings.Replace(head, "sha256", "sha384", 1)+"'policy.coco' = '"+smallest+"'\n")
	wrong := document(t, head+"'policy.coco' = '{}'\n")
	sum := func(b []byte) [tpm2.DigestSize]byte { return [tpm2.DigestSize]byte(b) }
	for _, tc := range []struct {
		name string
		disk []byte // nil: there is none
		pcr  [tpm2.DigestSize]byte
		err  error // of the TPM
		code Code
		has  string // "policy", "closed" or ""
	}{
		{name: "a policy", disk: good.Disk(), pcr: sum(good.Digest()), has: "policy"},
		{name: "initdata without a policy", disk: bare.Disk(), pcr: sum(bare.Digest()), has: "closed"},
		{name: "no initdata", has: "closed"},
		{name: "a policy that is none", disk: wrong.Disk(), pcr: sum(wrong.Digest()), code: BadPolicy},
		{name: "initdata that cannot be read", disk: make([]byte, 512), code: Format},
		{name: "a digest that is longer than a PCR", disk: long.Disk(), code: Format},
		{name: "a TPM that refuses", disk: good.Disk(), err: errors.New("no"), code: Unverified},
		{name: "a TPM that refuses without initdata", err: errors.New("no"), code: Unverified},
	} {
		t.Run(tc.name, func(t *testing.T) {
			disks := map[string]string(nil)
			if tc.disk != nil {
				disks = map[string]string{"vda": "initdata"}
			}
			sys := sysfs(t, disks, nil)
			if err := os.MkdirAll(filepath.Join(sys, "class/tpm/tpm0"), 0o755); err != nil {
				t.Fatal(err)
			}
			var extended [][tpm2.DigestSize]byte
			c := Config{
				IsBound: true, Bound: bound(bare), // which platform vtpm does not look at
				Sys: sys, dev: t.TempDir(), Load: func(string, ...string) error { return nil },
				extend: func(pcr int, d [tpm2.DigestSize]byte) error {
					if pcr != 8 {
						t.Errorf("PCR %d was extended", pcr)
					}
					extended = append(extended, d)
					return tc.err
				},
			}
			if err := os.WriteFile(filepath.Join(c.dev, "vda"), tc.disk, 0o600); err != nil {
				t.Fatal(err)
			}
			e, err := Establish(t.Context(), c)
			has := ""
			if e != nil {
				has = "closed"
				if !strings.Contains(e.Forward(1).Error(), "no-policy") {
					has = "policy"
				}
			}
			if codeOf(err) != tc.code || has != tc.has {
				t.Errorf("code %q (%v), has %q; want %q, %q", codeOf(err), err, has, tc.code, tc.has)
			}
			if len(extended) != 1 || tc.err == nil && extended[0] != tc.pcr {
				t.Errorf("PCR 8 was extended with %x, want %x once", extended, tc.pcr)
			}
		})
	}
}
