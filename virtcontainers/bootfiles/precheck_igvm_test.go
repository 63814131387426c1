// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootfiles

import (
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement/igvm"
)

func compose(t *testing.T, policy uint64) []byte {
	t.Helper()
	w := igvm.Writer{Policy: policy}
	w.Data(0x1000, []byte{1})
	b, err := w.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestIGVMFilesMustBeAsTheConfigurationSays(t *testing.T) {
	spec := func(f *os.File, s hypervisor.SNP) hypervisor.VMSpec {
		return hypervisor.VMSpec{TEE: hypervisor.TEESNP, SNP: &s, Boot: hypervisor.Boot{Firmware: f}}
	}
	good, debug := compose(t, 0x30000), compose(t, 0xb0000)
	for _, tt := range []struct {
		name string
		spec hypervisor.VMSpec
		want string
	}{
		{"a plain VM", hypervisor.VMSpec{}, ""},
		{"the same policy", spec(file(t, good), hypervisor.SNP{Policy: 0x30000}), ""},
		{
			"another policy", spec(file(t, good), hypervisor.SNP{Policy: 0x20000}),
			"its guest policy is 0x30000, and the VMM takes that one; hypervisor.snp_guest_policy is 0x20000",
		},
		{"debugging", spec(file(t, debug), hypervisor.SNP{Policy: 0xb0000}), "allows debugging"},
		{"debugging, accepted", spec(file(t, debug), hypervisor.SNP{Policy: 0xb0000, InsecureDebug: true}), ""},
		{"no file", spec(nil, hypervisor.SNP{}), "needs firmware"},
		{"firmware of another kind", spec(file(t, []byte("_FVH")), hypervisor.SNP{Policy: 0x30000}), "fw.fd: "},
		{"cut short", spec(file(t, good[:len(good)/2]), hypervisor.SNP{Policy: 0x30000}), "fw.fd: "},
	} {
		err := Precheck(configs.TypeCLH)(tt.spec)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) ||
			!errdefs.IsFailedPrecondition(err)) {
			t.Errorf("%s: Precheck() = %v, want %q", tt.name, err, tt.want)
		}
	}
}
