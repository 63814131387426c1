// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"strings"
	"testing"

	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/measurement/snp"
	"github.com/coco-shim/coco/measurement/snp/idblock"
)

func TestMeasureIGVM(t *testing.T) {
	fw := ovmftest.Build(ovmftest.Layout{Size: 64 << 10, Seed: 1, EIP: 0x80b004, SEV: ovmftest.Sections()})
	raw, err := snp.ComposeIGVM(snp.IGVMContents{
		Policy: idblock.DefaultPolicy, Firmware: fw,
		Signature: 0x800f12, Features: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	file, image := write(t, "guest.igvm", raw), write(t, "fw.fd", fw)
	want, _, err := measure(t, "snp", "--firmware", image, "--vcpus", "1", "--cpu-model", "EPYC-v4")
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := measure(t, "igvm", file); err != nil || got != want {
		t.Errorf("measure igvm = %q, %v, want %q", got, err, want)
	}
	if got, _, err := measure(t, "igvm", file, "--loader", "igvmmeasure"); err != nil || got == want || len(got) != 97 {
		t.Errorf("measure igvm --loader igvmmeasure = %q, %v", got, err)
	}
	if got, _, err := measure(t, "igvm", file, "--list"); err != nil || strings.Count(got, "PAGE_DATA") != 16+31 {
		t.Errorf("measure igvm --list = %q, %v", got, err)
	}
	for name, args := range map[string][]string{
		"no file":          {"igvm"},
		"missing file":     {"igvm", "/nonexistent"},
		"another file":     {"igvm", image},
		"unknown loader":   {"igvm", file, "--loader", "x"},
		"kernel elsewhere": {"igvm", file, "--loader", "igvmmeasure", "--kernel", image},
	} {
		if out, _, err := measure(t, args...); err == nil || out != "" {
			t.Errorf("%s: measure = %q, %v, want a refusal", name, out, err)
		}
	}
}

func TestMeasureIGVMCreate(t *testing.T) {
	fw := firmware(t, 64<<10)
	blob, out := write(t, "blob", []byte("some bytes")), write(t, "out.igvm", nil)
	args := []string{"igvm", "create", "--out", out, "--firmware", fw, "--cpu-model", "EPYC-Genoa", "--vcpus", "2"}
	for name, more := range map[string][]string{
		"firmware alone": nil,
		"kernel":         {"--kernel", blob, "--append", "quiet"},
		"blob":           {"--blob", "0x1000000=" + blob},
		"id block":       {"--id-block"},
	} {
		digest, errs, err := measure(t, append(args, more...)...)
		if err != nil || len(digest) != 97 || errs != "" {
			t.Fatalf("%s: create = %q, %q, %v", name, digest, errs, err)
		}
		if got, _, err := measure(t, "igvm", out, "--vcpus", "2"); err != nil || got != digest {
			t.Errorf("%s: the file has digest %q, %v, create printed %q", name, got, err, digest)
		}
		list, _, err := measure(t, "igvm", out, "--list")
		if err != nil || strings.Contains(list, "SNP_ID_BLOCK") != (name == "id block") {
			t.Errorf("%s: list = %q, %v", name, list, err)
		}
	}
	for name, more := range map[string][]string{
		"no processor":    {"igvm", "create", "--out", out, "--firmware", fw},
		"two processors":  append(args, "--vcpu-sig", "1"),
		"no out":          {"igvm", "create", "--firmware", fw, "--cpu-model", "EPYC"},
		"nothing":         {"igvm", "create", "--out", out, "--cpu-model", "EPYC"},
		"odd blob":        append(args, "--blob", "1="+blob),
		"malformed blob":  append(args, "--blob", blob),
		"debug policy":    append(args, "--policy", "0xb0000"),
		"no vcpu":         append(args, "--vcpus", "0"),
		"short save area": {"igvm", "create", "--out", out, "--firmware", fw, "--vmsa", blob},
	} {
		if digest, _, err := measure(t, more...); err == nil || digest != "" {
			t.Errorf("%s: create = %q, %v, want a refusal", name, digest, err)
		}
	}
}
